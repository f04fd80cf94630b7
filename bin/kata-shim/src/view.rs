//! What is seen by whoever enters this process's mount namespace, as `podman cp` does with a
//! container that runs: the container's root file system and the directories that it shares, never
//! the host's.
//!
//! Only the thread that calls [`show`] goes there. It has to be the process's first, whose
//! namespaces and root are the ones that `/proc/<pid>` tells; the others keep the host's view, in
//! which the rest of the work is done.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::Context;
use kata_linux::mount::{self, DetachedMount, MountAttributes, Propagation};
use kata_shim_api::stand_in::Shown;
use rustix::fs::{CWD, Mode, OFlags, openat};

/// Moves the calling thread into a mount namespace with nothing but `mounts`, of which the first is
/// the root; without any it stays where it is. A mount whose target the container does not have is
/// left out.
///
/// # Errors
///
/// Fails when the root or a source cannot be opened, and without CAP_SYS_ADMIN. The thread may be
/// in between then.
pub(crate) fn show(mounts: &[Shown]) -> anyhow::Result<()> {
    let Some((root, others)) = mounts.split_first() else { return Ok(()) };
    mount::unshare_mount_namespace().context("cannot take a mount namespace of its own")?;
    let copies: Vec<DetachedMount> = others.iter().map(copy).collect::<anyhow::Result<_>>()?;
    enter(copy(root)?, &root.source)?;
    for (copy, shown) in copies.into_iter().zip(others) {
        // The root is the container's by now, so that a link in it leads nowhere else.
        if let Ok(target) = open(&shown.target) {
            copy.attach(&target)
                .with_context(|| format!("cannot show {}", shown.source.display()))?;
        }
    }
    Ok(())
}

/// A copy of the mounts at the source, on which nothing is run and no device is one.
fn copy(shown: &Shown) -> anyhow::Result<DetachedMount> {
    let failed = || format!("cannot show {}", shown.source.display());
    let source = open(&shown.source).with_context(failed)?;
    let copy = DetachedMount::clone_of(&source, true).with_context(failed)?;
    let attributes = MountAttributes {
        readonly: shown.readonly,
        nosuid: true,
        nodev: true,
        noexec: true,
        propagation: Some(Propagation::Slave),
    };
    copy.set(attributes).with_context(failed)?;
    Ok(copy)
}

/// Makes `root` the root directory, and lets go of all other mounts. It has to be mounted somewhere
/// for that: on its original.
fn enter(root: DetachedMount, original: &Path) -> anyhow::Result<()> {
    let root = root.attach(open(original)?).context("cannot mount the root file system")?;
    rustix::process::fchdir(root.as_fd()).context("cannot change to the root file system")?;
    Ok(mount::pivot_to_working_directory()?)
}

fn open(path: &Path) -> std::io::Result<OwnedFd> {
    Ok(openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}
