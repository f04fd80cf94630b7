//! The one directory that a jailed VMM can write to: its sockets and fifos.

use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use kata_linux::mount::{DetachedMount, MountAttributes, Propagation};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, unlinkat};
use rustix::io::Errno;
use tokio::net::UnixStream;

use crate::connect_in;

/// A directory in the sandbox's own. It is held open: paths into it are then short enough for a
/// socket's address (unix(7)), whatever the sandbox's id.
#[derive(Debug)]
pub struct VmmDir(OwnedFd);

impl VmmDir {
    /// Makes the directory `path` with mode 0700, or opens it.
    pub fn make(path: &Path) -> io::Result<Self> {
        DirBuilder::new().mode(0o700).recursive(true).create(path)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::openat(CWD, path, flags, Mode::empty())?))
    }

    /// Removes a file or socket of it, which an earlier VM may have left. One that is not there is
    /// fine.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match unlinkat(&self.0, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// A path to a file in it, for this process and as long as this value lives. What the VMM has
    /// made is not to be reached by it: there may be a link instead.
    #[must_use]
    pub fn path(&self, name: &str) -> String {
        format!("/proc/self/fd/{}/{name}", self.0.as_raw_fd())
    }

    /// Connects to a socket that the VMM has made in it, as [`connect_in`] does.
    pub async fn connect(&self, name: &str) -> io::Result<UnixStream> {
        connect_in(&self.0, name).await
    }

    /// The directory through a mount of its own, which holds nothing else and leads nowhere else: a
    /// VMM in a strict jail, whose file systems are read-only, can write through it.
    pub fn writable_alone(&self) -> io::Result<OwnedFd> {
        let mount = DetachedMount::clone_of(&self.0, false)?;
        mount.set(MountAttributes {
            readonly: false,
            nosuid: true,
            nodev: true,
            noexec: true,
            propagation: Some(Propagation::Private),
        })?;
        Ok(mount.into_root())
    }
}
