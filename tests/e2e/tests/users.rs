//! Whom the VMM runs as: somebody who owns nothing, may nothing, and is in no other sandbox. And
//! behind which walls: QEMU's own filter of system calls, in each of its threads.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use kata_e2e::{Containerd, Installation, Part, Process, Scenario, only_a_vm, parts_of};

/// Where sandboxes keep what they are made of.
const STATE: [&str; 2] = ["/run/kata", "/var/lib/kata-containers"];

/// The words behind `key` in /proc/PID/status.
fn status(process: &Process, key: &str) -> Result<Vec<String>> {
    status_in(Path::new(&format!("/proc/{}", process.pid)), key)
}

/// The same of a directory that has a `status`: a thread's, too.
fn status_in(directory: &Path, key: &str) -> Result<Vec<String>> {
    let text = fs::read_to_string(directory.join("status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    Ok(line.with_context(|| format!("no {key}"))?.split_whitespace().map(str::to_owned).collect())
}

/// The VMM's one user, which is its one group too. It has no capability and never gets one.
fn user_of(vmm: &Process) -> Result<u32> {
    for set in ["CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"] {
        assert_eq!(status(vmm, set)?, ["0000000000000000"], "{set}");
    }
    assert_eq!(status(vmm, "NoNewPrivs")?, ["1"]);
    let ids = BTreeSet::from_iter([status(vmm, "Uid")?, status(vmm, "Gid")?].concat());
    let [id] = &Vec::from_iter(ids)[..] else { anyhow::bail!("several: {}", vmm.describe()) };
    Ok(id.parse()?)
}

/// All below a directory that belongs to this user or group.
fn owned_by(id: u32, directory: &Path) -> Result<Vec<PathBuf>> {
    let mut owned = Vec::new();
    // Other tests take theirs away meanwhile.
    let Ok(entries) = fs::read_dir(directory) else { return Ok(owned) };
    for entry in entries {
        let path = entry?.path();
        let Ok(metadata) = path.symlink_metadata() else { continue };
        if metadata.is_dir() {
            owned.extend(owned_by(id, &path)?);
        }
        if metadata.uid() == id || metadata.gid() == id {
            owned.push(path);
        }
    }
    Ok(owned)
}

/// Every thread of the VMM has a filter of system calls (`Seccomp` in proc(5)).
fn is_filtered(vmm: &Process) -> Result<()> {
    let threads = fs::read_dir(format!("/proc/{}/task", vmm.pid))?;
    for thread in threads {
        let thread = thread?.path();
        match status_in(&thread, "Seccomp") {
            Ok(mode) => ensure!(mode == ["2"], "no filter: {} {mode:?}", thread.display()),
            // Helpers of QEMU's come and go.
            Err(_) if !thread.exists() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn only_vmm(containerd: &Containerd) -> Result<Process> {
    let mut vmms = parts_of(containerd.mark(), Part::Vmm)?;
    ensure!(vmms.len() == 1, "not exactly one VMM: {vmms:?}");
    vmms.pop().context("none")
}

#[test]
fn every_vmm_is_a_nobody_of_its_own() -> Result<()> {
    if !only_a_vm("the VMM's user") {
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("configuration.toml");
    fs::write(&file, "[hypervisor.qemu]\n")?;
    Scenario::new().configuration(&file).run(|containerd| {
        let one = containerd.run(["sleep", "1000"]).start()?;
        let other = containerd.run(["sleep", "1000"]).start()?;
        let vmms = parts_of(containerd.mark(), Part::Vmm)?;
        let users = vmms.iter().map(user_of).collect::<Result<BTreeSet<_>>>()?;
        ensure!(users.len() == 2 && !users.contains(&0), "the users are {users:?}");
        vmms.iter().try_for_each(is_filtered)?;
        for (vmm, &user) in vmms.iter().flat_map(|vmm| users.iter().map(move |user| (vmm, user))) {
            assert_eq!(status(vmm, "Groups")?, [""; 0]);
            for directory in STATE {
                let owned = owned_by(user, Path::new(directory))?;
                ensure!(owned.is_empty(), "{user} owns {owned:?}");
            }
        }
        // What the file server does for the guest's root is another matter.
        let script = "touch /mine && chown 7:8 /mine && stat -c %u:%g /mine";
        assert_eq!(one.shell(script).output()?.success()?, "7:8\n");
        one.remove()?;
        other.remove()
    })
}

#[test]
fn vmm_is_root_where_the_administrator_wants_that() -> Result<()> {
    if !only_a_vm("the VMM's user") {
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("configuration.toml");
    fs::write(&file, "[hypervisor.qemu]\nrootless = false\n")?;
    Scenario::new().configuration(&file).run(|containerd| {
        let container = containerd.run(["sleep", "1000"]).start()?;
        let vmm = only_vmm(containerd)?;
        assert_eq!(user_of(&vmm)?, 0);
        is_filtered(&vmm)?;
        container.remove()
    })
}

#[test]
fn files_that_only_root_may_read_are_booted_from() -> Result<()> {
    if !only_a_vm("the VMM's user") {
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let secret = |name: &str, of: &Path| -> Result<PathBuf> {
        let path = directory.path().join(name);
        fs::copy(of, &path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(path)
    };
    let installed = Installation::under_test();
    let kernel = secret("kernel", &installed.kernel())?;
    let initrd = secret("initrd", &installed.initrd())?;
    let file = directory.path().join("configuration.toml");
    let text = format!("[hypervisor.qemu]\nkernel = {kernel:?}\ninitrd = {initrd:?}\n");
    fs::write(&file, text)?;
    Scenario::new().configuration(&file).run(|containerd| {
        let container = containerd.run(["sleep", "1000"]).start()?;
        ensure!(user_of(&only_vmm(containerd)?)? != 0, "it is root");
        container.remove()
    })
}
