//! What goes wrong is told in a sentence that names the cause, by containerd and in its log, and
//! leaves nothing behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kata_e2e::{
    CommandLine, Containerd, Deadline, IDLE, Image, Runtime, Scenario, Spec, only_a_vm, scenario,
};
use kata_initrd::{Archive, Entry};
use serde_json::json;
use tempfile::TempDir;

/// How soon a failure must be told. The longest is a guest that says nothing.
const PATIENCE: Duration = Duration::from_secs(60);

/// A configuration file of a test's own. All keys that it does not set have their defaults.
struct Configuration {
    directory: TempDir,
}

impl Configuration {
    fn new(text: &str) -> Result<Self> {
        let configuration = Self { directory: tempfile::tempdir()? };
        fs::write(configuration.file(), text)?;
        Ok(configuration)
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("configuration.toml")
    }
}

/// Runs a container, which must fail with one sentence that has all of `words`.
fn fails_with(containerd: &Containerd, words: &[&str]) -> Result<()> {
    let client = containerd.run(["true"]).attach()?;
    let error = client.wait_until(Deadline::after(PATIENCE))?.failure()?;
    is_one_sentence(&error)?;
    names(&error, words)?;
    logs(containerd, words[0])
}

fn logs(containerd: &Containerd, words: &str) -> Result<()> {
    let logged = containerd.log().expect(words, Deadline::after(Duration::from_secs(5)));
    logged.context("containerd's log does not tell the cause")
}

fn is_one_sentence(error: &str) -> Result<()> {
    ensure!(error.trim().lines().count() == 1, "this is not one sentence: {error}");
    Ok(())
}

fn names(error: &str, words: &[&str]) -> Result<()> {
    let lower = error.to_lowercase();
    for word in words {
        ensure!(lower.contains(&word.to_lowercase()), "{word:?} is not in: {error}");
    }
    Ok(())
}

fn with_configuration(text: &str, words: &[&str]) -> Result<()> {
    if !only_a_vm("a configuration") {
        return Ok(());
    }
    let configuration = Configuration::new(text)?;
    Scenario::new()
        .configuration(&configuration.file())
        .run(|containerd| fails_with(containerd, words))
}

#[test]
fn missing_kernel_is_named() -> Result<()> {
    let text = "[hypervisor.qemu]\nkernel = '/no/such/vmlinux'\n";
    with_configuration(text, &["/no/such/vmlinux", "kernel"])
}

#[test]
fn missing_initrd_is_named() -> Result<()> {
    let text = "[hypervisor.qemu]\ninitrd = '/no/such/initrd.img'\n";
    with_configuration(text, &["/no/such/initrd.img", "initrd"])
}

#[test]
fn missing_qemu_is_named() -> Result<()> {
    with_configuration("[hypervisor.qemu]\npath = '/no/such/qemu'\n", &["/no/such/qemu"])
}

#[test]
fn missing_file_server_is_named() -> Result<()> {
    let text = "[hypervisor.qemu]\nvirtio_fs_daemon = '/no/such/virtiofsd'\n";
    with_configuration(text, &["/no/such/virtiofsd"])
}

#[test]
fn broken_initrd_is_told_with_the_guests_last_words() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let initrd = directory.path().join("broken.img");
    fs::write(&initrd, "this is no archive of files")?;
    let text = format!("[hypervisor.qemu]\ninitrd = '{}'\n", initrd.display());
    let file = format!("{} (`initrd`)", initrd.display());
    with_configuration(&text, &["panicked", "Initramfs unpacking failed", &file])
}

#[test]
fn initrd_without_an_agent_is_named() -> Result<()> {
    let mut archive = Archive::default();
    archive.add("nothing", 0o755, Entry::Directory);
    let directory = tempfile::tempdir()?;
    let initrd = directory.path().join("empty.img");
    fs::write(&initrd, archive.finish())?;
    let text = format!("[hypervisor.qemu]\ninitrd = '{}'\n", initrd.display());
    let file = format!("{} (`initrd`) has no /init", initrd.display());
    with_configuration(&text, &["panicked", "Unable to mount root fs", &file])
}

/// A QEMU that is this shell script, and has the least time that one can have.
fn with_qemu(script: &str, words: &[&str]) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let program = directory.path().join("qemu-system-fake");
    fs::write(&program, format!("#!/bin/sh\n{script}\n"))?;
    // QEMU's own user runs it.
    for path in [directory.path(), &program] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    let path = program.display();
    let text =
        format!("[hypervisor.qemu]\npath = '{path}'\n[agent.kata]\nreconnect_timeout_ms = 10000\n");
    with_configuration(&text, &[words, &["qemu-system-fake"]].concat())
}

#[test]
fn qemu_that_says_nothing_is_ended() -> Result<()> {
    with_qemu("exec sleep 1000", &["did not say within 10 s", "wrote nothing to stderr"])
}

#[test]
fn qemu_that_hangs_is_told_with_what_it_wrote() -> Result<()> {
    let script = "echo 'waiting for a firmware' >&2; exec sleep 1000";
    with_qemu(script, &["did not say within 10 s", "waiting for a firmware"])
}

#[test]
fn guest_that_does_not_reach_its_agent_is_told() -> Result<()> {
    // The kernel waits for a disk that never comes.
    let text = "[hypervisor.qemu]\nkernel_params = 'rdinit=/none root=/dev/none rootwait loglevel=7'\n\
                [agent.kata]\nreconnect_timeout_ms = 10000\n";
    let late = "kernel did not reach the agent within 10 s (`reconnect_timeout_ms`)";
    with_configuration(text, &[late, "Waiting for root device", "has no /init"])
}

#[test]
fn agent_that_does_not_answer_is_told() -> Result<()> {
    let directory = tempfile::tempdir()?;
    Image::unpack(&directory.path().join("rootfs"))?;
    let busybox = fs::read(directory.path().join("rootfs/bin/busybox"))?;
    let init = "#!/busybox sh\n/busybox mount -t devtmpfs none /dev\n\
                echo 'kata-agent of nobody' >/dev/console\nexec /busybox sleep 100000\n";
    let mut archive = Archive::default();
    archive.add("dev", 0o755, Entry::Directory);
    archive.add("busybox", 0o755, Entry::File(&busybox));
    archive.add("init", 0o755, Entry::File(init.as_bytes()));
    let initrd = directory.path().join("mute.img");
    fs::write(&initrd, archive.finish())?;
    let text = format!(
        "[hypervisor.qemu]\ninitrd = '{}'\n[agent.kata]\nreconnect_timeout_ms = 10000\n",
        initrd.display()
    );
    let late = "agent started but did not answer within 10 s (`reconnect_timeout_ms`)";
    with_configuration(&text, &[late, "kata-agent of nobody"])
}

#[test]
fn broken_kernel_is_told() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let kernel = directory.path().join("broken-vmlinux");
    fs::write(&kernel, "this is no kernel")?;
    let text = format!("[hypervisor.qemu]\nkernel = '{}'\n", kernel.display());
    let cause = "is neither an uncompressed kernel (vmlinux) nor a bzImage";
    with_configuration(&text, &[cause, "the guest kernel", "broken-vmlinux"])
}

#[test]
fn too_little_memory_is_told() -> Result<()> {
    // Refused before a boot is tried.
    with_configuration("[hypervisor.qemu]\ndefault_memory = 8\n", &["default_memory", "not 8"])
}

#[test]
fn guest_without_memory_to_boot_is_told() -> Result<()> {
    // The guest is made to believe that it has far less than the initial ramdisk needs.
    let text = "[hypervisor.qemu]\nkernel_params = 'mem=36M'\n";
    let remedy = "MiB of memory may be too little: raise `default_memory`";
    with_configuration(text, &[remedy])
}

#[test]
fn unknown_key_is_named_with_its_place() -> Result<()> {
    let text = "[hypervisor.qemu]\ndefault_vcpus = 1\ndefault_memroy = 512\n";
    with_configuration(text, &["default_memroy", "configuration.toml:3: "])
}

#[test]
fn wrong_type_is_named_with_its_place() -> Result<()> {
    let text = "[hypervisor.qemu]\ndefault_memory = 'much'\n";
    with_configuration(text, &["default_memory", "configuration.toml:2: "])
}

/// What upstream has and this version lacks is not passed over in silence.
#[test]
fn key_that_cannot_be_honoured_is_named_with_its_place() -> Result<()> {
    let text = "[hypervisor.qemu]\ndefault_vcpus = 1\nenable_iommu = true\n";
    let refusal = "configuration.toml:3: `hypervisor.qemu.enable_iommu` = true is not supported";
    with_configuration(text, &[refusal, "remove it"])
}

#[test]
fn missing_configuration_is_named() -> Result<()> {
    if !only_a_vm("a configuration") {
        return Ok(());
    }
    Scenario::new()
        .configuration(Path::new("/no/such/configuration.toml"))
        .run(|containerd| fails_with(containerd, &["/no/such/configuration.toml"]))
}

#[test]
fn bad_bundles_are_refused() -> Result<()> {
    let no_arguments = match Runtime::under_test() {
        Runtime::Kata => "the container's specification has no arguments for its process",
        Runtime::Runc => "args must not be empty",
    };
    scenario(|containerd| {
        let rootfs = containerd.directory().join("rootfs");
        Image::unpack(&rootfs)?;
        let fails = |spec: Spec, words: &[&str]| -> Result<()> {
            let error = containerd.shell("true").spec(spec).output()?.failure()?;
            names(&error, words)?;
            if Runtime::under_test() == Runtime::Kata {
                is_one_sentence(&error)?;
                logs(containerd, words[0])?;
            }
            Ok(())
        };
        let missing = containerd.directory().join("no-such-rootfs");
        fails(Spec::new(&missing, &["true"]), &["no-such-rootfs", "no such file or directory"])?;
        fails(Spec::new(&rootfs, &[]), &[no_arguments])?;
        let relative = Spec::new(&rootfs, &["true"]).set("/process/cwd", json!("not/absolute"));
        fails(relative, &["Cwd must be an absolute path"])
    })
}

/// containerd writes that file itself; others do by hand.
#[test]
fn bundle_without_a_specification_and_one_with_a_broken_one_are_refused() -> Result<()> {
    if !only_a_vm("kata-runtime's words") {
        return Ok(());
    }
    CommandLine::scenario(Runtime::Kata, |host| {
        let bundle = host.bundle("c", IDLE, |spec| spec)?;
        let file = bundle.join("config.json");
        let refused = |words: &[&str]| -> Result<()> {
            let create = ["create", "--bundle", &bundle.display().to_string(), &host.id("c")];
            let error = host.call(&create)?.failure()?;
            is_one_sentence(&error)?;
            names(&error, words)?;
            names(&error, &[&file.display().to_string()])
        };
        fs::write(&file, "{ \"ociVersion\": ")?;
        refused(&["cannot understand", "line 1 column"])?;
        fs::write(&file, "{ \"ociVersion\": 1 }")?;
        refused(&["cannot understand", "invalid type", "line 1 column"])?;
        fs::remove_file(&file)?;
        refused(&["JSON specification file", "not found"])
    })
}

#[test]
fn file_in_the_place_of_a_directory_is_told() -> Result<()> {
    scenario(|containerd| {
        let file = containerd.directory().join("a-file");
        fs::write(&file, "")?;
        let run = containerd.run(["true"]).bind(&file, "/srv", "rbind:ro");
        names(&run.output()?.failure()?, &["not a directory"])
    })
}

#[test]
fn failure_leaves_a_working_engine() -> Result<()> {
    scenario(|containerd| {
        containerd.run(["no-such-command"]).output()?.failure()?;
        assert_eq!(containerd.run(["echo", "works"]).output()?.success()?, "works\n");
        Ok(())
    })
}
