//! Loading whole files, as an administrator would write them.

use std::fs;
use std::path::Path;

use kata_config::{
    HostConfig, HypervisorName, InternetworkingModel, LogLevel, MachineType, Root, VirtioFsCache,
};
use proptest::prelude::*;

const PREFIX: &str = "/usr/local";

/// What upstream's two QEMU templates set, as an installation under /opt/kata fills them in.
const UPSTREAM: &str = include_str!("upstream-qemu.toml");

fn parse(text: &str) -> Result<HostConfig, String> {
    HostConfig::parse(text, Path::new("f.toml"), Path::new(PREFIX)).map_err(|e| e.to_string())
}

/// The error for `text`, which must have one.
fn refused(text: &str) -> String {
    parse(text).expect_err("this must be refused")
}

#[test]
fn empty_file_gives_the_defaults() {
    assert_eq!(parse("").unwrap(), HostConfig::defaults(Path::new(PREFIX)));
}

#[test]
fn keys_of_all_sections_are_read() {
    let config = parse(
        r#"
        [hypervisor.qemu]
        path = "/opt/qemu"
        machine_type = "q35"
        default_vcpus = 1.5
        virtio_fs_daemon = "/usr/libexec/virtiofsd"
        virtio_fs_cache = "metadata"
        enable_debug = true
        [agent.kata]
        kernel_modules = ["tun", "e1000e EEE=1"]
        dial_timeout_ms = 50
        [runtime]
        internetworking_model = "none"
        sandbox_bind_mounts = ["/a", "/b:rw"]
        "#,
    )
    .unwrap();
    assert_eq!(config.qemu.path, Path::new("/opt/qemu"));
    assert_eq!(config.qemu.machine_type, MachineType::Q35);
    assert_eq!(config.qemu.vm.default_vcpus, 1.5);
    assert_eq!(
        config.qemu.virtio_fs.virtio_fs_daemon.as_deref(),
        Some(Path::new("/usr/libexec/virtiofsd"))
    );
    assert_eq!(config.qemu.virtio_fs.virtio_fs_cache, VirtioFsCache::Metadata);
    assert_eq!(config.qemu.vm.effective_log_level(), LogLevel::Debug);
    assert_eq!(config.agent.kernel_modules, ["tun", "e1000e EEE=1"]);
    assert_eq!(config.agent.dial_timeout_ms, 50);
    assert_eq!(config.runtime.internetworking_model, InternetworkingModel::None);
    assert!(!config.runtime.sandbox_bind_mounts[1].read_only);
}

#[test]
fn upstreams_file_loads_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let base = directory.path().join("configuration.toml");
    fs::write(&base, UPSTREAM).unwrap();

    let config = HostConfig::load(Some(&base), Path::new(PREFIX)).unwrap();
    let image = Path::new("/opt/kata/share/kata-containers/kata-containers.img");
    assert_eq!(config.qemu.vm.root(), Root::Image(image));
    assert_eq!(config.agent.reconnect_timeout_ms, 45_000, "from Go's dial_timeout");
    assert_eq!(config.agent.create_container_timeout, 60, "from Go's place in [runtime]");
    let in_vain: Vec<_> = config.listed_in_vain().map(|(name, _)| name).collect();
    assert_eq!(in_vain, ["kernel_params", "kernel_verity_params"]);
}

#[test]
fn upstreams_files_for_the_other_hypervisors_load_as_they_are() {
    let image = Path::new("/opt/kata/share/kata-containers/kata-containers.img");
    let clh = parse(include_str!("upstream-clh.toml")).unwrap();
    assert_eq!(clh.runtime.hypervisor_name, HypervisorName::CloudHypervisor);
    assert_eq!(clh.vm().root(), Root::Image(image));
    let firecracker = parse(include_str!("upstream-firecracker.toml")).unwrap();
    assert_eq!(firecracker.runtime.hypervisor_name, HypervisorName::Firecracker);
    assert_eq!(firecracker.vm().root(), Root::Image(image));
    assert_eq!(firecracker.firecracker.jailer_path, Some("/opt/kata/bin/jailer".into()));
}

#[test]
fn what_krun_would_lose_asks_for_qemu() {
    let asks = |key| {
        let config = parse(&format!("[hypervisor.qemu]\n{key}\n")).unwrap();
        config.asks_for_qemu(Path::new(PREFIX))
    };
    assert!(asks("disable_vhost_net = true"));
    assert!(asks("disable_block_device_use = true"));
    assert!(!asks("rootless = false"), "krun is as much root as before");
    assert!(!asks("block_device_aio = \"io_uring\""), "krun has threads for that");
}

#[test]
fn io_submit_needs_the_page_cache_out_of_the_way() {
    let native =
        "[hypervisor.qemu]\nblock_device_aio = \"native\"\nblock_device_cache_direct = true\n";
    let error = refused(native);
    assert!(error.contains("`hypervisor.qemu.block_device_aio` = \"native\" needs"), "{error}");
    parse(&format!("{native}block_device_cache_set = true\n")).unwrap();
}

#[test]
fn pod_cannot_take_down_a_wall() {
    let config = parse("[hypervisor.qemu]\nenable_annotations = [\"rootless\"]\n").unwrap();
    let in_vain: Vec<_> = config.listed_in_vain().map(|(name, _)| name).collect();
    assert_eq!(in_vain, ["rootless"]);
}

#[test]
fn errors_name_file_line_and_key() {
    let error = refused("[hypervisor.qemu]\n\ndefault_vcpu = 1\n");
    assert!(error.starts_with("f.toml:3: `hypervisor.qemu.default_vcpu` is not known"), "{error}");
    assert!(error.contains("did you mean `default_vcpus`"), "{error}");

    let error = refused("[hypervisor.qemu]\ndefault_memory = \"2G\"\n");
    assert!(error.starts_with("f.toml:2: `hypervisor.qemu.default_memory` must be"), "{error}");
    assert!(error.contains("not \"2G\""), "{error}");

    let error = refused("[hypervisor.qemu]\nenable_iommu = true\n");
    let expected = "f.toml:2: `hypervisor.qemu.enable_iommu` = true is not supported in this version; remove it";
    assert_eq!(error, expected);

    let error = refused("[hypervisor.qemu.factory]\nenable_template = 1\n");
    assert!(
        error.starts_with("f.toml:2: `hypervisor.qemu.factory.enable_template` must be"),
        "{error}"
    );

    let error = refused("[runtime]\na = \n");
    assert!(error.starts_with("f.toml:2: this is not TOML"), "{error}");
}

#[test]
fn template_is_configured_in_each_of_the_places_that_katas_runtimes_have_for_it() {
    for table in ["factory", "hypervisor.qemu.factory", "hypervisor.qemu"] {
        let config =
            parse(&format!("[{table}]\nenable_template = true\ntemplate_path = \"/t\"\n")).unwrap();
        assert!(config.qemu.enable_template, "{table}");
        assert_eq!(config.qemu.template_path, Path::new("/t"), "{table}");
    }
    // What a table says of QEMU chooses no hypervisor.
    let other = "[hypervisor.clh]\npath = \"/clh\"\n[factory]\nenable_template = false\n";
    let other = parse(other).unwrap();
    assert_eq!(other.runtime.hypervisor_name, HypervisorName::CloudHypervisor);
}

#[test]
fn template_is_refused_with_what_it_does_not_go_with() {
    let with =
        |lines: &str| refused(&format!("[hypervisor.qemu]\nenable_template = true\n{lines}"));
    for (lines, other) in [
        ("image = \"/image\"\n", "initial ramdisk"),
        ("enable_hugepages = true\n", "enable_hugepages"),
        ("enable_mem_prealloc = true\n", "enable_mem_prealloc"),
        ("enable_virtio_mem = true\n", "enable_virtio_mem"),
    ] {
        let error = with(lines);
        assert!(error.starts_with("f.toml:2: `hypervisor.qemu.enable_template` = true"), "{error}");
        assert!(error.contains(other), "{error}");
    }
    let error = with("[factory]\nenable_template = true\n");
    assert!(error.contains("is the older form of"), "{error}");
    let error = refused("[hypervisor.clh]\npath = \"/clh\"\n[factory]\nenable_template = true\n");
    assert!(error.starts_with("f.toml:4: `factory.enable_template` = true needs QEMU"), "{error}");
}

#[test]
fn memory_that_is_set_aside_is_not_given_back() {
    for other in ["enable_hugepages", "enable_mem_prealloc"] {
        let text = "[hypervisor.qemu]\nreclaim_guest_freed_memory = true\n";
        let error = refused(&format!("{text}{other} = true\n"));
        let begins = "f.toml:2: `hypervisor.qemu.reclaim_guest_freed_memory` = true";
        assert!(error.starts_with(begins) && error.contains(other), "{error}");
    }
}

#[test]
fn section_of_cloud_hypervisor_chooses_it() {
    let text =
        "[hypervisor.clh]\npath = \"/opt/clh\"\nvirtio_fs_cache = \"never\"\ndefault_vcpus = 2\n";
    let config = HostConfig::parse(text, Path::new("f.toml"), Path::new(PREFIX)).unwrap();
    assert_eq!(config.runtime.hypervisor_name, HypervisorName::CloudHypervisor);
    assert_eq!(config.clh.path, Path::new("/opt/clh"));
    assert_eq!(config.virtio_fs().unwrap().virtio_fs_cache, VirtioFsCache::Never);
    assert_eq!(config.vm().default_vcpus, 2.0);
    let text = "[hypervisor.clh]\nenable_hugepages = true\n";
    let error = HostConfig::parse(text, Path::new("f.toml"), Path::new(PREFIX)).unwrap_err();
    assert!(error.to_string().starts_with("f.toml:2: `hypervisor.clh.enable_hugepages"), "{error}");
}

#[test]
fn first_mistake_of_a_file_is_the_one_reported() {
    let error = refused("[runtime]\nzzz = 1\naaa = 1\n");
    assert!(error.contains("runtime.zzz"), "{error}");
}

#[test]
fn image_and_initrd_exclude_each_other_wherever_they_are_set() {
    let error = refused("[hypervisor.qemu]\ninitrd = \"/initrd\"\nimage = \"/image\"\n");
    assert!(error.starts_with("f.toml:3: `hypervisor.qemu.image` and `initrd` exclude"), "{error}");

    let root = |text: &str| {
        let config = HostConfig::parse(text, Path::new("f.toml"), Path::new(PREFIX)).unwrap();
        format!("{:?}", config.qemu.vm.root())
    };
    assert_eq!(root(""), "Initrd(None)");
    assert_eq!(root("[hypervisor.qemu]\ninitrd = \"/i\"\nimage = \"\"\n"), "Initrd(Some(\"/i\"))");
    assert_eq!(root("[hypervisor.qemu]\ninitrd = \"\"\nimage = \"/i\"\n"), "Image(\"/i\")");
}

#[test]
fn what_an_image_is_checked_with_needs_an_image() {
    let verity = format!(
        "kernel_verity_params = \"root_hash={},salt=00,data_blocks=9,data_block_size=4096,hash_block_size=4096\"",
        "ab".repeat(32)
    );
    let error = refused(&format!("[hypervisor.qemu]\n{verity}\n"));
    assert!(error.contains("kernel_verity_params` checks an image and there is none"), "{error}");
    let both = format!("[hypervisor.qemu]\nimage = \"/i\"\nimage_drivers = \"/d\"\n{verity}\n");
    assert!(refused(&both).contains("exclude each other"), "{both}");
}

#[test]
fn key_of_every_hypervisor_is_refused_by_the_one_that_lacks_its_feature() {
    let error = refused("[hypervisor.firecracker]\nenable_hugepages = true\n");
    assert!(error.starts_with("f.toml:2: ") && error.contains("not supported"), "{error}");
    assert!(parse("[hypervisor.firecracker]\nenable_hugepages = false\n").is_ok());
}

#[test]
fn values_out_of_range_are_refused() {
    for (line, words) in [
        ("default_memory = 63", "at least 64"),
        ("default_memory = -1", "whole number"),
        ("overhead_vcpus = -0.5", "not be negative"),
        ("default_vcpus = nan", "a number"),
        ("path = \"qemu\"", "absolute path"),
        ("initrd = \"here.img\"", "absolute path"),
        ("rootfs_type = \"squashfs\"", "\"erofs\""),
        ("kernel_verity_params = \"root_hash=00\"", "root_hash=HEX"),
        ("kernel_params = \"a\\nb\"", "control characters"),
        ("machine_type = \"pc\"", "\"microvm\" or \"q35\""),
        ("shared_fs = \"none\"", "\"virtio-fs\""),
        ("memory_slots = 3", "not supported"),
        ("enable_annotations = [\".*\"]", "exact names"),
    ] {
        let error = refused(&format!("[hypervisor.qemu]\n{line}\n"));
        assert!(error.starts_with("f.toml:2: ") && error.contains(words), "{line}: {error}");
    }
}

#[test]
fn bind_mounts_of_all_sandboxes_have_names_of_their_own() {
    let of = |mounts: &str| parse(&format!("[runtime]\nsandbox_bind_mounts = [{mounts}]\n"));
    assert!(of(r#""/a/data", "/b/other:rw""#).is_ok());
    for (mounts, words) in
        [(r#""/a/data", "/b/data:rw""#, "two paths that end in data"), (r#""/""#, "has no name")]
    {
        let error = of(mounts).unwrap_err();
        assert!(error.starts_with("f.toml:2: ") && error.contains(words), "{error}");
    }
}

#[test]
fn annotation_that_does_not_go_with_the_file_is_refused() {
    let text = "[hypervisor.qemu]\nreclaim_guest_freed_memory = true\nenable_annotations = [\"enable_hugepages\"]\n";
    let config = parse(text).unwrap();
    let annotated = |value: &str| {
        let name = "io.katacontainers.config.hypervisor.enable_hugepages";
        config.with_annotations(&[(name.to_owned(), value.to_owned())].into())
    };
    assert!(annotated("false").is_ok());
    let error = annotated("true").unwrap_err().to_string();
    assert!(error.contains("enable_hugepages leads to"), "{error}");
    assert!(error.contains("`hypervisor.qemu.reclaim_guest_freed_memory`"), "{error}");
}

#[test]
fn hypervisor_without_a_driver_may_stand_there_but_not_be_chosen() {
    let dragonball = "[hypervisor.dragonball]\nwhatever = 1\n";
    assert!(parse(&format!("{dragonball}[hypervisor.qemu]\n")).is_ok());
    assert!(parse(&format!("{dragonball}[runtime]\nhypervisor_name = \"qemu\"\n")).is_ok());

    let error = refused(&format!("{dragonball}[runtime]\nhypervisor_name = \"dragonball\"\n"));
    assert!(
        error.starts_with("f.toml:4: `runtime.hypervisor_name` = \"dragonball\" chooses"),
        "{error}"
    );
    let error = refused(dragonball);
    assert!(
        error.starts_with("f.toml:1: `hypervisor.dragonball` is the only hypervisor"),
        "{error}"
    );
    let error = refused("[hypervisor.qemmu]\n");
    assert!(error.contains("did you mean `qemu`"), "{error}");
}

#[test]
fn hypervisor_is_chosen_by_name_or_by_being_the_only_one() {
    let chosen = |text: &str| parse(text).unwrap().runtime.hypervisor_name;
    let (krun, qemu) = ("[hypervisor.krun]\ndefault_memory = 512\n", "[hypervisor.qemu]\n");
    assert_eq!(chosen(""), HypervisorName::Auto);
    assert_eq!(chosen(krun), HypervisorName::Krun);
    assert_eq!(chosen(qemu), HypervisorName::Qemu);
    assert_eq!(chosen(&format!("{krun}{qemu}")), HypervisorName::Auto);
    assert_eq!(
        chosen(&format!("{qemu}[runtime]\nhypervisor_name = \"krun\"\n")),
        HypervisorName::Krun
    );
    let firecracker =
        "[hypervisor.firecracker]\njailer_path = \"/usr/bin/jailer\"\nshared_fs = \"none\"\n";
    assert_eq!(chosen(firecracker), HypervisorName::Firecracker);
    let error = refused("[hypervisor.firecracker]\nshared_fs = \"virtio-fs\"\n");
    assert!(error.contains("must be \"none\""), "{error}");
    // The keys that all have are those of the chosen one.
    assert_eq!(parse(krun).unwrap().vm().default_memory, 512);
    assert_eq!(parse(&format!("{krun}{qemu}")).unwrap().vm().default_memory, 2048);
    let error = refused("[hypervisor.krun]\nmachine_type = \"q35\"\n");
    assert!(error.starts_with("f.toml:2: `hypervisor.krun.machine_type` is not known"), "{error}");
}

#[test]
fn older_names_are_taken_but_not_beside_the_new_ones() {
    let config = parse("[hypervisor.qemu]\nseccompsandbox = \"on\"\n").unwrap();
    assert_eq!(config.qemu.seccomp_sandbox, "on");

    let error = refused("[hypervisor.qemu]\nseccomp_sandbox = \"on\"\nseccompsandbox = \"on\"\n");
    assert!(
        error.starts_with("f.toml:3: `hypervisor.qemu.seccompsandbox` is the older"),
        "{error}"
    );
    let error = refused("[agent.kata]\ndial_timeout = \"soon\"\n");
    assert!(error.starts_with("f.toml:2: `agent.kata.dial_timeout` must be"), "{error}");
    let error = refused("agent = 1\n[runtime]\ncreate_container_timeout = 1\n");
    assert!(error.contains("must be a table"), "{error}");
}

#[test]
fn drop_in_error_names_the_drop_in() {
    let directory = tempfile::tempdir().unwrap();
    let base = directory.path().join("configuration.toml");
    fs::write(&base, "[runtime]\nenable_debug = true\n").unwrap();
    fs::create_dir(directory.path().join("config.d")).unwrap();
    fs::write(directory.path().join("config.d/a.toml"), "[runtime]\nenable_debug = 1\n").unwrap();

    let error = HostConfig::load(Some(&base), Path::new(PREFIX)).unwrap_err().to_string();
    assert!(error.contains("config.d/a.toml:2: `runtime.enable_debug`"), "{error}");
}

proptest! {
    #[test]
    fn any_text_is_loaded_or_refused_but_never_panics(text in ".{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn any_value_of_any_key_never_panics(
        table in prop::sample::select(vec!["hypervisor", "hypervisor.qemu", "hypervisor.qemu.factory", "agent", "agent.kata", "agent.kata.mem_agent", "runtime", "factory", "x"]),
        key in prop::sample::select(vec!["path", "image", "qemu", "kata", "default_vcpus", "default_memory", "machine_type", "enable_annotations", "enable_iommu", "create_container_timeout", "dial_timeout", "sandbox_bind_mounts", "hypervisor_name", "compact_force_times", "\"\\u001b\"", "a.b"]),
        value in prop_oneof![
            any::<i64>().prop_map(|n| n.to_string()),
            any::<f64>().prop_map(|n| format!("{n:?}").to_lowercase()),
            any::<bool>().prop_map(|b| b.to_string()),
            "\"[a-z/:.]{0,8}\"",
            Just("[]".to_owned()), Just("[[1], {a = 2}]".to_owned()), Just("{ b = 1 }".to_owned()),
            Just("1979-05-27".to_owned()), Just("18446744073709551615".to_owned()), Just("0xffffffffffffffffffffffffffffffffffffff".to_owned()),
        ],
        again in any::<bool>(),
    ) {
        let line = format!("[{table}]\n{key} = {value}\n");
        let _ = parse(&line);
        if again {
            let _ = parse(&format!("{line}[runtime]\ncreate_container_timeout = 1\n"));
        }
    }
}
