//! The walls around the server. The guest speaks to it in raw FUSE requests, so it is taken to be
//! lost: what is left then is a process without network, without privileges over the host's
//! processes, that sees no file but the shared ones.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use kata_linux::capabilities::{FILE_SERVER, keep_only};
use kata_linux::mount::{
    DetachedMount, MountAttributes, Propagation, pivot_to_working_directory,
    unshare_mount_namespace,
};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::{Pid, Signal, getpid};
use virtiofsd::seccomp::{SeccompAction, enable_seccomp};

use crate::options::{Sandbox, Seccomp};

/// What is seen from inside.
#[derive(Debug)]
pub(crate) struct View {
    /// The shared directory.
    pub(crate) root: PathBuf,
    /// The process's own `/proc/self/fd`, from which no way leads up.
    pub(crate) proc_self_fd: File,
}

/// Asks the kernel to kill this process when the thread that started it ends.
pub(crate) fn die_with_parent() -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .context("cannot tie its life to its parent's")
}

/// Shuts the process in as told. The process must have one thread only.
pub(crate) fn enter(sandbox: Sandbox, shared_dir: &Path, readonly: bool) -> anyhow::Result<View> {
    match sandbox {
        Sandbox::Namespace => enter_namespaces(shared_dir, readonly),
        Sandbox::Chroot => {
            let proc_self_fd = own_descriptors()?;
            rustix::process::fchdir(open_directory(shared_dir)?).context("cannot change to it")?;
            rustix::process::chroot(".").context("cannot make it the root directory")?;
            Ok(View { root: "/".into(), proc_self_fd })
        }
        Sandbox::None => {
            open_directory(shared_dir)?;
            Ok(View { root: shared_dir.to_owned(), proc_self_fd: own_descriptors()? })
        }
    }
}

fn enter_namespaces(shared_dir: &Path, readonly: bool) -> anyhow::Result<View> {
    if getpid() != Pid::INIT {
        bail!(
            "it is not process 1 of a PID namespace; start it with `unshare --pid --fork`, or use --sandbox=chroot"
        );
    }
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC)
        .context("cannot leave the host's network")?;
    unshare_mount_namespace()?;
    let proc_self_fd = own_descriptors()?;
    keep_directory(shared_dir, readonly)?;
    Ok(View { root: "/".into(), proc_self_fd })
}

/// `/proc/self/fd` as a mount that is attached nowhere: it works without `/proc`, and `..` leads
/// out of it to nothing.
fn own_descriptors() -> anyhow::Result<File> {
    let directory = open_directory(Path::new("/proc/self/fd"))?;
    let mount =
        DetachedMount::clone_of(&directory, false).context("cannot cut /proc/self/fd out")?;
    Ok(mount.into_root().into())
}

/// Makes the directory the root of this mount namespace and lets go of all other mounts. It stays a
/// slave of the original: what is mounted there later appears here too.
fn keep_directory(shared_dir: &Path, readonly: bool) -> anyhow::Result<()> {
    let target = open_directory(shared_dir)?;
    let tree = DetachedMount::clone_of(&target, true).context("cannot copy its mounts")?;
    let attributes = MountAttributes {
        readonly,
        nosuid: true,
        nodev: true,
        noexec: true,
        propagation: Some(Propagation::Slave),
    };
    tree.set(attributes).context("cannot restrict its mounts")?;
    let root = tree.attach(&target).context("cannot put its mounts in place")?;
    rustix::process::fchdir(root.as_fd()).context("cannot change to it")?;
    Ok(pivot_to_working_directory()?)
}

/// Leaves the process, and whatever it may become, with nothing but the capabilities of a file
/// server and without supplementary groups.
pub(crate) fn drop_capabilities() -> anyhow::Result<()> {
    nix::unistd::setgroups(&[])
        .context("cannot leave its supplementary groups; it must be started as root")?;
    keep_only(FILE_SERVER).context("cannot drop capabilities")
}

/// Restricts the process to the system calls that serving files takes.
pub(crate) fn filter_system_calls(seccomp: Seccomp) -> anyhow::Result<()> {
    let action = match seccomp {
        Seccomp::Kill => SeccompAction::Kill,
        Seccomp::Log => SeccompAction::Log,
        Seccomp::None => return Ok(()),
    };
    enable_seccomp(action, false).context("cannot filter system calls")
}

fn open_directory(path: &Path) -> anyhow::Result<File> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map(File::from)
        .with_context(|| format!("cannot open directory {}", path.display()))
}
