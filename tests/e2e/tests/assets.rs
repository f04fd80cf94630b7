//! Whatever a guest boots, a container is a container: small kernel and distribution's, initial
//! ramdisk and image. Each pair goes through what depends on the guest most. And an image that was
//! tampered with boots nothing.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kata_e2e::{
    Configuration, Containerd, Deadline, GuestKernel, Input, Installation, Part, Scenario,
    guest_agent, hypervisor_under_test, kata_image, noise, only_a_vm, parts_of,
};
use kata_rootfs::{FileSystem, Init, RootfsOptions, build_rootfs};
use rustix::process::Signal;
use tempfile::TempDir;

/// How soon a guest that refuses its image, or that died, must be told.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many bytes go there and back, and how many in a terminal, which is slow under emulation.
const STREAM: usize = 8 << 20;
const IN_TERMINAL: usize = 1 << 20;

/// A configuration that boots this file of a kernel from this root.
fn configuration(kernel: &Path, root: &str) -> Result<Configuration> {
    let hypervisor = hypervisor_under_test()?;
    Configuration::with(&format!(
        "[hypervisor.{hypervisor}]\nkernel = \"{}\"\n{root}",
        kernel.display()
    ))
}

/// A guest that boots these is one like any other.
fn works(kernel: GuestKernel, root: &str) -> Result<()> {
    boots(kernel, &kernel.vmlinux(), root, |_| Ok(()))
}

/// And it does everything that the suite asks of a guest, in short.
fn passes(kernel: GuestKernel, root: &str) -> Result<()> {
    boots(kernel, &kernel.vmlinux(), root, |containerd| {
        streams_are_whole(containerd)?;
        files_are_shared(containerd)?;
        memory_is_limited(containerd)?;
        death_of_the_vmm_is_told(containerd)
    })
}

fn boots(
    kernel: GuestKernel,
    file: &Path,
    root: &str,
    further: impl FnOnce(&Containerd) -> Result<()>,
) -> Result<()> {
    if !only_a_vm("guest kernels and images") {
        return Ok(());
    }
    let configuration = configuration(file, root)?;
    Scenario::new().configuration(&configuration.file()).run(|containerd| {
        let release = containerd.run(["uname", "-r"]).output()?.success()?;
        let is_small = release.trim_end().ends_with("-kata");
        ensure!(is_small == (kernel == GuestKernel::Small), "the guest runs {release}");
        is_a_container(containerd)?;
        further(containerd)
    })
}

/// A little of everything that needs the guest's kernel: exit codes, files of the host, file
/// systems in memory, a second process, limits, device rules, signals.
fn is_a_container(containerd: &Containerd) -> Result<()> {
    let container = containerd.run(["sleep", "1000"]).start()?;
    let said = |script: &str| container.shell(script).output()?.success();
    assert_eq!(said("echo words >/file && cat /file")?, "words\n");
    assert_eq!(said("echo more >/dev/shm/file && cat /dev/shm/file")?, "more\n");
    assert_eq!(said("cat /proc/1/comm")?, "sleep\n");
    assert_eq!(said("grep -c lo: /proc/net/dev")?, "1\n");
    assert_eq!(container.shell("exit 7").output()?.code, 7);
    container.pause()?;
    container.resume()?;
    container.remove()
}

/// Through pipes of the first process, and through a terminal of another.
fn streams_are_whole(containerd: &Containerd) -> Result<()> {
    let data = noise(STREAM);
    let (client, container) =
        containerd.shell("cat; exit 5").stdin(Input::Bytes(data.clone())).attach_and_keep()?;
    let output = client.wait()?;
    ensure!(output.code == 5, "exit code {}", output.code);
    ensure!(output.stdout == data, "{} bytes of {STREAM} came back", output.stdout.len());
    container.remove()?;

    let container = containerd.run(["sleep", "1000"]).start()?;
    let data = noise(IN_TERMINAL);
    let script = format!("stty raw -echo; echo rea''dy; head -c {IN_TERMINAL}; exit 6");
    let mut client = container.shell(&script).tty().attach()?;
    client.expect("ready")?;
    client.write(&data)?;
    let output = client.wait()?;
    ensure!(output.code == 6, "exit code {}", output.code);
    // Before it is raw, a terminal says more.
    ensure!(output.stdout.ends_with(&data), "{} bytes came back", output.stdout.len());
    container.remove()
}

fn files_are_shared(containerd: &Containerd) -> Result<()> {
    let directory = containerd.directory().join("shared");
    fs::create_dir(&directory)?;
    fs::write(directory.join("file"), "of the host\n")?;
    let script = "cat /ro/file; echo of the guest > /rw/new; touch /ro/x 2>/dev/null || echo no";
    let run = containerd.shell(script).bind(&directory, "/rw", "rbind:rw");
    let said = run.bind(&directory, "/ro", "rbind:ro").output()?.success()?;
    assert_eq!(said, "of the host\nno\n");
    assert_eq!(fs::read_to_string(directory.join("new"))?, "of the guest\n");
    Ok(())
}

fn memory_is_limited(containerd: &Containerd) -> Result<()> {
    let limit = (64 << 20).to_string();
    let run = containerd.run(["sleep", "1000"]).option("--memory-limit", &limit);
    let container = run.start()?;
    assert_eq!(container.shell("tail /dev/zero").output()?.code, 137, "it had more than 64 MiB");
    container.exec(["true"]).output()?.success()?;
    container.remove()
}

fn death_of_the_vmm_is_told(containerd: &Containerd) -> Result<()> {
    let (client, container) = containerd.shell("echo up; exec sleep 1000").attach_and_keep()?;
    client.expect("up")?;
    let vmms = parts_of(containerd.mark(), Part::Vmm)?;
    ensure!(!vmms.is_empty(), "there is no VMM");
    vmms.iter().try_for_each(|vmm| vmm.signal(Signal::KILL))?;
    client.wait_until(Deadline::after(PATIENCE))?.failure()?;
    container.remove()
}

#[test]
fn small_kernel_boots_from_its_initrd() -> Result<()> {
    passes(GuestKernel::Small, &initrd(GuestKernel::Small))
}

#[test]
fn small_kernel_boots_from_an_image() -> Result<()> {
    passes(GuestKernel::Small, &image(&Installation::under_test().image()))
}

#[test]
fn distributions_kernel_boots_from_its_initrd() -> Result<()> {
    passes(GuestKernel::Distribution, &initrd(GuestKernel::Distribution))
}

#[test]
fn distributions_kernel_boots_from_an_image_with_drivers() -> Result<()> {
    let drivers = GuestKernel::Distribution.initrd();
    let image = image(&Installation::under_test().image());
    passes(
        GuestKernel::Distribution,
        &format!("{image}image_drivers = \"{}\"\n", drivers.display()),
    )
}

/// As who has no other form of a kernel boots it.
#[test]
fn compressed_kernels_boot() -> Result<()> {
    for kernel in [GuestKernel::Small, GuestKernel::Distribution] {
        boots(kernel, &kernel.vmlinuz(), &initrd(kernel), |_| Ok(()))?;
    }
    Ok(())
}

fn initrd(kernel: GuestKernel) -> String {
    format!("initrd = \"{}\"\n", kernel.initrd().display())
}

fn image(file: &Path) -> String {
    format!("image = \"{}\"\n", file.display())
}

/// An EROFS image with a hash tree, and a configuration that demands it. `tamper` changes the disk
/// after the root hash was taken.
fn checked_image(tamper: impl FnOnce(&mut Vec<u8>)) -> Result<(TempDir, String)> {
    built_image(FileSystem::Erofs, true, tamper)
}

fn built_image(
    file_system: FileSystem,
    verity: bool,
    tamper: impl FnOnce(&mut Vec<u8>),
) -> Result<(TempDir, String)> {
    let directory = tempfile::tempdir()?;
    let agent = fs::read(guest_agent()).context("there is no agent; run `make`")?;
    let options =
        RootfsOptions { agent: &agent, packages: &[], init: Init::Agent, file_system, verity };
    let mut built = build_rootfs(&options)?;
    tamper(&mut built.disk);
    let file = directory.path().join("built.img");
    fs::write(&file, &built.disk)?;
    ensure!(built.verity.is_some() == verity, "an image with a hash tree has a root hash");
    let params = built.verity.map(|verity| verity.kernel_verity_params()).unwrap_or_default();
    let file_system = file_system.name();
    let rest = format!("rootfs_type = \"{file_system}\"\nkernel_verity_params = \"{params}\"\n");
    Ok((directory, image(&file) + &rest))
}

/// The two others are what is installed, and what is checked below.
#[test]
fn image_is_of_either_file_system_with_a_hash_tree_or_without() -> Result<()> {
    for (file_system, verity) in [(FileSystem::Erofs, false), (FileSystem::Ext4, true)] {
        let (_directory, root) = built_image(file_system, verity, |_| {})?;
        works(GuestKernel::Small, &root)?;
    }
    Ok(())
}

#[test]
fn checked_image_boots_as_long_as_it_is_what_it_was() -> Result<()> {
    let (_directory, root) = checked_image(|_| {})?;
    works(GuestKernel::Small, &root)
}

#[test]
fn image_that_was_tampered_with_is_refused_with_a_sentence() -> Result<()> {
    // In the middle of the agent, where nothing but the hash could tell.
    let (_directory, root) = checked_image(|disk| {
        let middle = (1 << 20) + (2 << 20);
        disk[middle] ^= 1;
    })?;
    is_refused(
        GuestKernel::Small,
        &root,
        &["panicked", "built.img (`image`) is not the one", "kernel_verity_params"],
    )
}

#[test]
fn kernel_that_cannot_check_its_image_does_not_boot_it() -> Result<()> {
    let (_directory, root) = checked_image(|_| {})?;
    // It has neither the driver of the disk nor what makes the checked device, and says that there
    // is no root.
    let words = ["panicked", "Unable to mount root fs", "built.img (`image`)", "make kernel"];
    is_refused(GuestKernel::Distribution, &root, &words)
}

#[test]
fn kernel_without_drivers_for_its_image_says_where_they_are_to_be_had() -> Result<()> {
    let root = image(&Installation::under_test().image());
    let words = ["panicked", "kata-containers.img (`image`)", "set `image_drivers`"];
    is_refused(GuestKernel::Distribution, &root, &words)
}

#[test]
fn image_with_systemd_runs_the_agent_as_a_service() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("systemd.img");
    let output = Command::new(kata_image())
        .args(["rootfs", "--init=systemd", "--suite=stable", "--file-system=ext4", "--agent"])
        .arg(guest_agent())
        .arg("--output")
        .arg(&file)
        .output()
        .context("there is no kata-image; run `make`")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    works(GuestKernel::Small, &image(&file))
}

fn is_refused(kernel: GuestKernel, root: &str, words: &[&str]) -> Result<()> {
    if !only_a_vm("images") {
        return Ok(());
    }
    let configuration = configuration(&kernel.vmlinux(), root)?;
    Scenario::new().configuration(&configuration.file()).run(|containerd| {
        let client = containerd.run(["true"]).attach()?;
        let error = client.wait_until(Deadline::after(PATIENCE))?.failure()?;
        for word in words {
            ensure!(error.contains(word), "{word:?} is not in: {error}");
        }
        Ok(())
    })
}
