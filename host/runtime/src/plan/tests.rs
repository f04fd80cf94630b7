//! From keys of the configuration to what of a plan they change: keys whose effect no other test
//! sees.

use std::fs;

use serde_json::json;
use tempfile::TempDir;

use super::*;

/// Both plans of one container, by a configuration of these lines besides a kernel and an initial
/// ramdisk.
struct Plans {
    sandbox: SandboxPlan,
    container: ContainerPlan,
}

const ID: &str = "c1";

fn plans(lines: &str) -> Plans {
    let directory = TempDir::new().unwrap();
    let asset = |name: &str| {
        let file = directory.path().join(name);
        fs::write(&file, b"\x7fELF").unwrap();
        file.display().to_string()
    };
    let file = directory.path().join("configuration.toml");
    let (kernel, initrd) = (asset("vmlinux"), asset("initrd"));
    let text = format!("[hypervisor.qemu]\nkernel = \"{kernel}\"\ninitrd = \"{initrd}\"\n{lines}");
    fs::write(&file, text).unwrap();
    let spec: Spec = serde_json::from_value(json!({
        "ociVersion": "1.0.2",
        "root": { "path": "rootfs" },
        "process": { "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": ["true"] },
        "linux": {
            "cgroupsPath": "/engine/c1",
            "namespaces": [{ "type": "network" }, { "type": "mount" }, { "type": "pid" }],
            "seccomp": { "defaultAction": "SCMP_ACT_ERRNO" },
        },
    }))
    .unwrap();
    let runtime = Runtime::load(Some(&file), None).unwrap();
    Plans {
        sandbox: runtime.plan_sandbox(ID, &spec, &[]).unwrap(),
        container: runtime.plan_container(ID, spec, directory.path(), Vec::new()).unwrap(),
    }
}

#[test]
fn images_are_kept_up_to_the_size_that_is_configured_where_no_sandbox_has_its_own() {
    let mut config = HostConfig::defaults(Path::new("/usr"));
    config.firecracker.rootfs_cache_size = 5;
    let ImagePlan { directory, cache } = images(&config, ID);
    assert_eq!(directory, Path::new("/var/lib/kata-containers/c1"));
    assert_eq!(cache, ImageCache::new("/var/lib/kata-containers/.cache".into(), 5 << 20));
    assert!(check_container_id(IMAGE_CACHE).is_err());
}

/// What a key changes, as text.
type Shown = fn(&Plans) -> String;

fn seccomp(plans: &Plans) -> String {
    let linux = plans.container.spec.linux().as_ref().unwrap();
    format!("{:?}", linux.seccomp().as_ref().map(|seccomp| seccomp.default_action()))
}

fn pipe_sizes(plans: &Plans) -> String {
    let parameters = plans.sandbox.vm.kernel_params.iter();
    let sizes = parameters.filter(|parameter| parameter.contains("pipe_size"));
    sizes.cloned().collect::<Vec<_>>().join(" ")
}

fn sandbox_mounts(plans: &Plans) -> String {
    let one = |mount: &SandboxMount| format!("{} {}", mount.source.display(), mount.readonly);
    plans.sandbox.sandbox_mounts.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn server_arguments(plans: &Plans) -> String {
    plans.sandbox.file_server.as_ref().unwrap().extra_args.join(" ")
}

#[test]
fn keys_change_the_plans_that_they_are_for() {
    // The lines, what shows their effect, what it is without them, and with them.
    let table: &[(&str, Shown, &str, &str)] = &[
        (
            "[runtime]\nsandbox_bind_mounts = [\"/srv\", \"/mnt:rw\"]\n",
            sandbox_mounts,
            "",
            "/srv true, /mnt false",
        ),
        (
            "[agent.kata]\nkernel_modules = [\"tun\", \"e1000e EEE=1\"]\n",
            |plans| plans.sandbox.guest.kernel_modules.join(", "),
            "",
            "tun, e1000e EEE=1",
        ),
        ("[runtime]\ndisable_guest_seccomp = true\n", seccomp, "Some(ScmpActErrno)", "None"),
        (
            "[runtime]\nsandbox_cgroup_only = false\n",
            |plans| plans.sandbox.cgroup.clone(),
            "/engine/c1",
            "/kata_overhead/c1",
        ),
        (
            "[agent.kata]\ncontainer_pipe_size = 65536\n",
            pipe_sizes,
            "",
            "agent.container_pipe_size=65536",
        ),
        (
            "virtio_fs_extra_args = [\"--thread-pool-size=2\"]\n",
            server_arguments,
            "",
            "--thread-pool-size=2",
        ),
    ];
    let defaults = plans("");
    for (lines, shown, without, with) in table {
        assert_eq!(shown(&defaults), *without, "without {lines}");
        assert_eq!(shown(&plans(lines)), *with, "with {lines}");
    }
}
