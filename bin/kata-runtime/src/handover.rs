//! A mount that was made after a sandbox's proxy took its mount namespace, for that namespace.
//!
//! The namespace takes mounts of the host as they come, unless they are made below a private mount,
//! like the one that Podman makes of its storage. Then the proxy would find an empty directory
//! where a container's root file system is.
//!
//! ```text
//!   host:   storage/overlay (private) ── ID/merged (overlay) ──copy──┐
//!   proxy:  storage/overlay           ── ID/merged (empty)  ◀──mount─┘   gone with the namespace, or when the engine removes the directory
//! ```

use std::fs;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, anyhow};
use kata_linux::mount::{DetachedMount, enter_mount_namespace};
use rustix::fs::{CWD, Mode, OFlags, Stat, fstat, openat};

/// Mounts the directory at `path` at the same path of another mount namespace, an open file of
/// `/proc`, unless it is there already.
pub(crate) fn mount(path: &Path, namespace: BorrowedFd<'_>) -> Result<()> {
    let failed = || format!("cannot hand {} over to the sandbox", path.display());
    let path = fs::canonicalize(path).with_context(failed)?;
    let ours = open(&path).with_context(failed)?;
    let wanted = identity(&fstat(&ours).with_context(failed)?);
    let copy = DetachedMount::clone_of(&ours, true).with_context(failed)?;
    let attach = || -> Result<()> {
        enter_mount_namespace(namespace)?;
        let theirs = open(&path)?;
        if identity(&fstat(&theirs)?) != wanted {
            copy.attach(&theirs)?;
        }
        Ok(())
    };
    // A thread of its own, since there is no way back for it.
    let attached = thread::scope(|scope| scope.spawn(attach).join());
    attached.map_err(|_| anyhow!("a thread panicked"))?.with_context(failed)
}

/// What tells one directory from all others.
fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

fn open(path: &Path) -> std::io::Result<OwnedFd> {
    Ok(openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::mpsc;

    use kata_linux::mount::{make_private, mounts_below, unshare_mount_namespace};

    use super::*;

    /// Needs root. The test's thread is the host, with a namespace of its own; another thread is
    /// the proxy.
    #[test]
    fn what_is_mounted_below_a_private_mount_is_handed_over_once() {
        let outside = tempfile::tempdir().unwrap();
        let storage = fs::canonicalize(outside.path()).unwrap();
        let host = move || {
            unshare_mount_namespace().unwrap();
            let tmpfs = |at: &Path| kata_linux::mount::mount("tmpfs", at, "tmpfs", &[]).unwrap();
            tmpfs(&storage);
            make_private(&storage, false).unwrap();
            let rootfs = storage.join("merged");
            fs::create_dir(&rootfs).unwrap();
            let (tell, told) = mpsc::channel::<()>();
            let (ready, is_ready) = mpsc::channel();
            let seen = rootfs.clone();
            let proxy = thread::spawn(move || {
                unshare_mount_namespace().unwrap();
                ready.send(rustix::thread::gettid()).unwrap();
                told.recv().unwrap();
                (seen.join("file").exists(), mounts_below(&seen).unwrap().len())
            });
            let tid = is_ready.recv().unwrap();
            tmpfs(&rootfs);
            fs::write(rootfs.join("file"), "").unwrap();
            let namespace = format!("/proc/self/task/{}/ns/mnt", tid.as_raw_nonzero());
            let namespace = fs::File::open(namespace).unwrap();
            for _ in 0..2 {
                mount(&rootfs, namespace.as_fd()).unwrap();
            }
            tell.send(()).unwrap();
            let (exists, mounts) = proxy.join().unwrap();
            assert!(exists, "the proxy does not see the file");
            assert_eq!(mounts, 1, "it was mounted twice");
        };
        thread::spawn(host).join().unwrap();
    }
}
