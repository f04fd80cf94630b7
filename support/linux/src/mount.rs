//! Mounts: containerd's and OCI's option strings, binds by file descriptor, propagation, and the
//! mount table.
//!
//! Everything here acts in the mount namespace of the calling thread. Needs Linux 5.12
//! (`mount_setattr`). Sources: mount(2), mount_setattr(2), mount_namespaces(7),
//! proc_pid_mountinfo(5).

mod options;
mod overlay;
mod table;
mod tree;

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use thiserror::Error;

use options::MountOptions;
pub use table::{MountEntry, mounts_below, parse_mount_table};
pub use tree::{DetachedMount, MountAttributes, Propagation};

/// Why a mount operation failed.
#[derive(Debug, Error)]
pub enum MountError {
    /// The kernel refused.
    #[error("cannot {action} {path}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file system could not be mounted.
    #[error("cannot mount {fstype} {what} at {target}")]
    Mount {
        /// The file system's type.
        fstype: String,
        /// The mount's source.
        what: String,
        /// Where it should have gone.
        target: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// An option that makes no sense here.
    #[error("mount option `{0}` is not supported; leave it out")]
    UnsupportedOption(String),
    /// The options do not fit into the page that mount(2) takes.
    #[error(
        "the mount options for {target} are {length} bytes long, more than the kernel takes ({limit})"
    )]
    OptionsTooLong {
        /// Where it should have gone.
        target: PathBuf,
        /// Their length in bytes.
        length: usize,
        /// The most that fits.
        limit: usize,
    },
}

/// Mounts `source` at `target` as a container engine words it: `fstype` and option strings, of
/// which flags (`ro`, `nosuid`, …), `bind`/`rbind` and propagation (`rslave`, …) are recognised and
/// all others are handed to the file system.
///
/// A bind takes its flags at once, never being writable for a moment, and recursively with `rbind`.
/// An overlay may have more layers than fit into mount(2)'s page, as long as they have a common
/// parent. `target` is resolved once.
pub fn mount(
    source: &str,
    target: &Path,
    fstype: &str,
    options: &[String],
) -> Result<(), MountError> {
    let options = MountOptions::parse(options)?;
    if let Some(recursive) = options.recursion(fstype) {
        return bind_with(Path::new(source), target, recursive, options.attributes());
    }
    let refused = |source_error: io::Error| MountError::Mount {
        fstype: fstype.to_owned(),
        what: source.to_owned(),
        target: target.to_owned(),
        source: source_error,
    };
    if options.data_length() <= options::PAGE_LIMIT {
        options.mount(source, target, fstype).map_err(refused)?;
    } else {
        let too_long = || MountError::OptionsTooLong {
            target: target.to_owned(),
            length: options.data_length(),
            limit: options::PAGE_LIMIT,
        };
        let (parent, shorter) = overlay::with_relative_layers(&options).ok_or_else(too_long)?;
        overlay::mount_from(&parent, &shorter, source, target, fstype).map_err(refused)?;
    }
    match options.propagation() {
        Some(propagation) => {
            change_propagation(target, propagation, options.propagates_recursively())
        }
        None => Ok(()),
    }
}

/// Binds `source` (a directory or a file, links are followed) onto `target`, with everything
/// mounted below it when `recursive`. With `readonly` the bind and all that it brings along is
/// read-only from the first moment.
pub fn bind(
    source: &Path,
    target: &Path,
    recursive: bool,
    readonly: bool,
) -> Result<(), MountError> {
    bind_with(source, target, recursive, MountAttributes { readonly, ..MountAttributes::default() })
}

fn bind_with(
    source: &Path,
    target: &Path,
    recursive: bool,
    attributes: MountAttributes,
) -> Result<(), MountError> {
    let source_fd = open_path(source)?;
    let target_fd = open_path(target)?;
    DetachedMount::clone_of(&source_fd, recursive)
        .and_then(|tree| {
            tree.set(attributes)?;
            tree.attach(&target_fd)
        })
        .map(drop)
        .map_err(|error| MountError::Mount {
            fstype: "bind".to_owned(),
            what: source.display().to_string(),
            target: target.to_owned(),
            source: error,
        })
}

/// Makes the mount at `path`, and with `recursive` all below it, pass on mounts to its copies and
/// take theirs.
pub fn make_shared(path: &Path, recursive: bool) -> Result<(), MountError> {
    change_propagation(path, Propagation::Shared, recursive)
}

/// Makes the mount at `path`, and with `recursive` all below it, take mounts from where it was
/// copied from but pass none on.
pub fn make_slave(path: &Path, recursive: bool) -> Result<(), MountError> {
    change_propagation(path, Propagation::Slave, recursive)
}

/// Makes the mount at `path`, and with `recursive` all below it, neither take nor pass on mounts.
pub fn make_private(path: &Path, recursive: bool) -> Result<(), MountError> {
    change_propagation(path, Propagation::Private, recursive)
}

fn change_propagation(
    path: &Path,
    propagation: Propagation,
    recursive: bool,
) -> Result<(), MountError> {
    let mut flags = match propagation {
        Propagation::Shared => MountPropagationFlags::SHARED,
        Propagation::Slave => MountPropagationFlags::DOWNSTREAM,
        Propagation::Private => MountPropagationFlags::PRIVATE,
    };
    flags.set(MountPropagationFlags::REC, recursive);
    rustix::mount::mount_change(path, flags).map_err(|errno| MountError::Io {
        action: "change the propagation of",
        path: path.to_owned(),
        source: errno.into(),
    })
}

/// Gives the calling thread a mount namespace of its own, in which mounts made by others still
/// appear but from which none gets out. To move a whole process, call it before any thread is
/// started.
pub fn unshare_mount_namespace() -> Result<(), MountError> {
    let root = PathBuf::from("/");
    unshare(CloneFlags::CLONE_NEWNS).map_err(|errno| MountError::Io {
        action: "unshare the mount namespace of",
        path: root.clone(),
        source: errno.into(),
    })?;
    make_slave(&root, true)
}

/// Makes the working directory, which must be a mount point, the root of this mount namespace, and
/// lets go of all mounts outside of it. For those who have a mount namespace of their own, with
/// CAP_SYS_ADMIN.
pub fn pivot_to_working_directory() -> Result<(), MountError> {
    let failed = |action| {
        move |errno: Errno| MountError::Io { action, path: "/".into(), source: errno.into() }
    };
    // With both the same, the old root ends up on top of the new one (pivot_root(2)), and is what
    // `.` unmounts.
    rustix::process::pivot_root(".", ".").map_err(failed("put the working directory at"))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(failed("let go of the old"))?;
    rustix::process::chdir("/").map_err(failed("change to"))
}

/// Moves the calling thread, and no other of its process, into a mount namespace: an open file like
/// `/proc/<pid>/ns/mnt`. Its root and working directory are that namespace's root from then on.
/// Needs CAP_SYS_ADMIN.
pub fn enter_mount_namespace(namespace: impl AsFd) -> Result<(), MountError> {
    let namespace = namespace.as_fd();
    let entered = || -> rustix::io::Result<()> {
        // Threads that share root and working directory must be in one namespace (setns(2)).
        unshare(CloneFlags::CLONE_FS).map_err(|errno| Errno::from_raw_os_error(errno as i32))?;
        move_into_link_name_space(namespace, Some(LinkNameSpaceType::Mount))
    };
    entered().map_err(|errno| MountError::Io {
        action: "enter the mount namespace",
        path: format!("/proc/self/fd/{}", namespace.as_raw_fd()).into(),
        source: errno.into(),
    })
}

/// Detaches everything that is mounted at `path`, with all below it, however busy; a last component
/// that is a link is not followed. `path` not being a mount point, or not existing, is fine.
pub fn unmount_tree(path: &Path) -> Result<(), MountError> {
    // A path can be mounted over several times.
    loop {
        match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(errno) => {
                return Err(MountError::Io {
                    action: "unmount",
                    path: path.to_owned(),
                    source: errno.into(),
                });
            }
        }
    }
}

/// Like [`unmount_tree`] for the entry `name` of an open directory, so that no other path is
/// resolved.
pub fn unmount_tree_at(directory: impl AsFd, name: &str) -> Result<(), MountError> {
    let path = format!("/proc/self/fd/{}/{name}", directory.as_fd().as_raw_fd());
    unmount_tree(Path::new(&path))
}

fn open_path(path: &Path) -> Result<rustix::fd::OwnedFd, MountError> {
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| {
        MountError::Io { action: "open", path: path.to_owned(), source: errno.into() }
    })
}
