//! What is seen by whoever enters this process's mount namespace, as `podman cp` does with a
//! container that runs: the container's root file system and the directories that it shares, never
//! the host's. Where the container has a file system of the guest's, like a tmpfs, it is an empty
//! directory that cannot be written: what is copied to there is refused, not lost.
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

/// A directory that every host has.
const ANYWHERE: &str = "/proc";

/// What is shown of a container whose files are not on the host: what is copied to there would
/// never come to the guest.
pub(crate) fn hidden(mounts: &[Shown]) -> Vec<Shown> {
    let root = mounts.first().map(|root| Shown { source: None, readonly: true, ..root.clone() });
    root.into_iter().collect()
}

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
    enter(copy(root)?, root.source.as_deref().unwrap_or(Path::new(ANYWHERE)))?;
    for (copy, shown) in copies.into_iter().zip(others) {
        // The root is the container's by now, so that a link in it leads nowhere else.
        if let Ok(target) = open(&shown.target) {
            copy.attach(&target).with_context(|| cannot_show(shown))?;
        }
    }
    Ok(())
}

/// A copy of the mounts at the source, on which nothing is run and no device is one.
fn copy(shown: &Shown) -> anyhow::Result<DetachedMount> {
    let copied = match &shown.source {
        Some(source) => open(source).and_then(|source| DetachedMount::clone_of(&source, true)),
        None => DetachedMount::empty_directory(),
    };
    let copied = copied.with_context(|| cannot_show(shown))?;
    let attributes = MountAttributes {
        readonly: shown.readonly,
        nosuid: true,
        nodev: true,
        noexec: true,
        propagation: Some(Propagation::Slave),
    };
    copied.set(attributes).with_context(|| cannot_show(shown))?;
    Ok(copied)
}

fn cannot_show(shown: &Shown) -> String {
    format!("cannot show {}", shown.source.as_ref().unwrap_or(&shown.target).display())
}

/// Makes `root` the root directory, and lets go of all other mounts. It has to be mounted somewhere
/// for that: on its original, if it has one.
fn enter(root: DetachedMount, original: &Path) -> anyhow::Result<()> {
    let root = root.attach(open(original)?).context("cannot mount the root file system")?;
    rustix::process::fchdir(root.as_fd()).context("cannot change to the root file system")?;
    Ok(mount::pivot_to_working_directory()?)
}

fn open(path: &Path) -> std::io::Result<OwnedFd> {
    Ok(openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_an_empty_root_is_left_of_what_is_hidden() {
        let shown = |source: &str, target: &str| Shown {
            source: Some(source.into()),
            target: target.into(),
            readonly: false,
        };
        let root = Shown { source: None, target: "/".into(), readonly: true };
        assert_eq!(hidden(&[shown("/b/rootfs", "/"), shown("/srv", "/data")]), [root]);
        assert_eq!(hidden(&[]), []);
    }
}
