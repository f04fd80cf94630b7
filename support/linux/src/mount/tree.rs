//! A copy of a mount, made and configured before anybody can see it, then put in place: all by file
//! descriptor, so no path is resolved twice.

#![expect(unsafe_code, reason = "mount_setattr(2) has no safe wrapper")]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsmount, fsopen, move_mount, open_tree,
};

/// Whether mounts made below a mount appear in its copies, and theirs in it (mount_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Both ways.
    Shared,
    /// From the original to the copy only.
    Slave,
    /// Not at all.
    Private,
}

/// What a mount forbids. A `false` leaves the attribute as the original has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MountAttributes {
    /// Nothing can be written through it.
    pub readonly: bool,
    /// Set-user-id bits and file capabilities are ignored.
    pub nosuid: bool,
    /// Device nodes cannot be opened.
    pub nodev: bool,
    /// Programs cannot be executed.
    pub noexec: bool,
    /// How mounts spread; `None` leaves it as the original has it.
    pub propagation: Option<Propagation>,
}

/// A mount (or a tree of mounts) that is not attached anywhere yet. Dropped, it is gone.
#[derive(Debug)]
pub struct DetachedMount {
    root: OwnedFd,
}

impl DetachedMount {
    /// Copies the mount of `source`, a directory or file opened with `O_PATH`, from there
    /// downwards; with `recursive` together with what is mounted below.
    pub fn clone_of(source: impl AsFd, recursive: bool) -> io::Result<Self> {
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
        Ok(Self { root: open_tree(source, c"", flags)? })
    }

    /// An empty directory, of a file system of its own.
    pub fn empty_directory() -> io::Result<Self> {
        let tmpfs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(tmpfs.as_fd())?;
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        Ok(Self { root: fsmount(tmpfs.as_fd(), flags, MountAttrFlags::empty())? })
    }

    /// Changes the attributes of every mount in the tree, all or none.
    pub fn set(&self, attributes: MountAttributes) -> io::Result<()> {
        set_attributes(self.root.as_fd(), attributes)
    }

    /// Mounts the tree on `target` (opened with `O_PATH`, of the tree's kind: a directory or not).
    /// Returns the tree's root, which stays valid for as long as it is open.
    pub fn attach(self, target: impl AsFd) -> io::Result<OwnedFd> {
        let flags =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&self.root, c"", target, c"", flags)?;
        Ok(self.root)
    }

    /// The tree's root, through which its files can be reached although it is mounted nowhere.
    #[must_use]
    pub fn into_root(self) -> OwnedFd {
        self.root
    }
}

fn set_attributes(root: BorrowedFd<'_>, attributes: MountAttributes) -> io::Result<()> {
    let switches = [
        (attributes.readonly, libc::MOUNT_ATTR_RDONLY),
        (attributes.nosuid, libc::MOUNT_ATTR_NOSUID),
        (attributes.nodev, libc::MOUNT_ATTR_NODEV),
        (attributes.noexec, libc::MOUNT_ATTR_NOEXEC),
    ];
    let wanted = libc::mount_attr {
        attr_set: switches.iter().filter(|(on, _)| *on).fold(0, |set, (_, flag)| set | flag),
        attr_clr: 0,
        propagation: match attributes.propagation {
            Some(Propagation::Shared) => libc::MS_SHARED,
            Some(Propagation::Slave) => libc::MS_SLAVE,
            Some(Propagation::Private) => libc::MS_PRIVATE,
            None => 0,
        },
        userns_fd: 0,
    };
    // SAFETY: the descriptor is open, the path is an empty C string, and the structure is alive and
    // as long as stated.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            root.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const wanted,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
