//! What goes wrong is told in a sentence that names the cause, by containerd and in its log, and
//! leaves nothing behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kata_e2e::{Containerd, Deadline, Image, Scenario, Spec, only_a_vm, scenario};
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

/// Runs a container, which must fail with a message that has all of `words`.
fn fails_with(containerd: &Containerd, words: &[&str]) -> Result<()> {
    let client = containerd.run(["true"]).attach()?;
    let error = client.wait_until(Deadline::after(PATIENCE))?.failure()?;
    names(&error, words)?;
    let logged = containerd.log().expect(words[0], Deadline::after(Duration::from_secs(5)));
    logged.context("containerd's log does not tell the cause")
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
    with_configuration(&text, &["panic"])
}

#[test]
fn broken_kernel_is_told() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let kernel = directory.path().join("broken-vmlinux");
    fs::write(&kernel, "this is no kernel")?;
    let text = format!("[hypervisor.qemu]\nkernel = '{}'\n", kernel.display());
    with_configuration(&text, &["broken-vmlinux"])
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
    with_configuration(text, &["memory"])
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
    scenario(|containerd| {
        let rootfs = containerd.directory().join("rootfs");
        Image::unpack(&rootfs)?;
        let fails = |spec: Spec, words: &[&str]| -> Result<()> {
            let error = containerd.shell("true").spec(spec).output()?.failure()?;
            names(&error, words)
        };
        let missing = containerd.directory().join("no-such-rootfs");
        fails(Spec::new(&missing, &["true"]), &["no-such-rootfs"])?;
        fails(Spec::new(&rootfs, &[]), &["arg"])?;
        fails(Spec::new(&rootfs, &["true"]).set("/process/cwd", json!("not/absolute")), &["cwd"])
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
