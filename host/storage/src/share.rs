//! The directory that is served to the guest.
//!
//! ```text
//!   <run_dir>/shared             made here, only seen by the host ("backing")
//!   <run_dir>/shared             the same, bound onto itself: read-only, what is served ("face")
//!     .mounts/<n>                a bind of a container's root file system; or of a mount's source,
//!                                a directory or a file, for all containers that mount it; or an
//!                                overlay, for one
//!     sandbox-mounts/<name>      a bind of a directory that the administrator gives to every sandbox
//! ```
//!
//! The guest can change what is inside of the binds, but none of the directories that lead to them.
//! The host makes those through the backing directory, and mounts on them through the face.
//!
//! No name is given twice. For some seconds the guest's kernel takes a name for what it was when it
//! last asked, so that who had the name of one that is gone would be led to that: a container of a
//! pod that is made again at once, to the root file system that it had before.

mod beneath;
mod binds;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use kata_linux::mount::{DetachedMount, MountAttributes, Propagation, mount, unmount_tree_at};
use oci_spec::runtime::Mount;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fstat, mkdirat, openat, unlinkat};
use rustix::io::Errno;

use crate::{GuestMounts, HostBind, HostOverlay, StorageError, point};
pub use beneath::check_container_id;
use beneath::{SANDBOX_MOUNTS, entries, open_beneath, open_directory, open_source, remove_empty};
use binds::{Binds, Key};

/// Where the agent mounts the share in the guest.
pub const GUEST_SHARE: &str = "/run/kata-containers/shared/containers";

/// The name of the directory that is served, in the sandbox's own.
pub const SHARED: &str = "shared";
const MOUNTS: &str = ".mounts";

/// One sandbox's share. All its mounts are in the mount namespace of the thread that created it.
/// Dropped, it takes everything away as far as it can; [`Share::remove`] tells what could not be.
#[derive(Debug)]
pub struct Share {
    path: PathBuf,
    /// The sandbox's private directory.
    run_dir: OwnedFd,
    /// The directory itself, writable, without any of the mounts.
    backing: OwnedFd,
    /// The root of its read-only bind, with all of the mounts.
    face: OwnedFd,
    binds: Binds,
    /// Whether what the host mounts below a source later may appear.
    follows_host: bool,
    removed: bool,
}

impl Share {
    /// Makes `<run_dir>/shared`, which must not exist yet, and prepares it for being served.
    /// `run_dir` belongs to the sandbox alone.
    pub fn create(run_dir: &Path) -> Result<Self, StorageError> {
        let path = run_dir.join(SHARED);
        let failed = |action: &'static str| {
            let path = path.clone();
            move |source: io::Error| StorageError::Io { action, path, source }
        };
        let run_dir_fd = open_directory(CWD, run_dir)
            .map_err(io::Error::from)
            .map_err(failed("open the parent of"))?;
        mkdirat(&run_dir_fd, SHARED, Mode::RWXU)
            .map_err(io::Error::from)
            .map_err(failed("create"))?;
        let backing =
            open_directory(&run_dir_fd, SHARED).map_err(io::Error::from).map_err(failed("open"))?;
        let face = bind_face(&backing).map_err(|error| {
            // It was made a moment ago and is empty.
            let _ = unlinkat(&run_dir_fd, SHARED, AtFlags::REMOVEDIR);
            failed("prepare")(error)
        })?;
        Ok(Self {
            path,
            run_dir: run_dir_fd,
            backing,
            face,
            binds: Binds::default(),
            follows_host: true,
            removed: false,
        })
    }

    /// The same, for a server that opens whatever a guest asks for. Such a guest must not see what
    /// the host mounts below a source later: it would come as the host has mounted it, with devices
    /// that can be used.
    #[must_use]
    pub fn for_trusting_server(mut self) -> Self {
        self.follows_host = false;
        self
    }

    /// The directory to serve.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Shows a container's root file system to the guest and returns its path there. `rootfs` is a
    /// directory.
    ///
    /// With `readonly`, not even mount points can be created in it.
    pub fn add_rootfs(
        &mut self,
        container: &str,
        rootfs: &Path,
        readonly: bool,
    ) -> Result<PathBuf, StorageError> {
        check_container_id(container)?;
        let source = self.io("open", rootfs, open_source(rootfs))?;
        let (name, relative) = self.next_place()?;
        self.make_directory(&relative)?;
        let kind = BindKind { readonly, recursive: true, follows_host: false };
        let bound = self.bind(&source, &relative, kind);
        self.keep(container, None, &name, bound)
    }

    /// Shows a directory or a single file of the host to the guest and returns its path there,
    /// which is the same for all containers that mount it in the same way.
    ///
    /// The source is resolved here, once. If it has become a device since it was planned, that is
    /// refused.
    pub fn add_mount(&mut self, container: &str, bind: &HostBind) -> Result<PathBuf, StorageError> {
        check_container_id(container)?;
        let source = self.io("open", &bind.source, open_source(&bind.source))?;
        let stat = self.io("look at", &bind.source, fstat(&source))?;
        let key = Key::of(bind, &stat)?;
        if let Some(name) = key.as_ref().and_then(|key| self.binds.join(key, container)) {
            return Ok(Path::new(GUEST_SHARE).join(MOUNTS).join(name));
        }
        let (name, relative) = self.next_place()?;
        self.make_place(bind, FileType::from_raw_mode(stat.st_mode), &relative)?;
        let bound = self.bind(&source, &relative, BindKind::of(bind));
        self.keep(container, key, &name, bound)
    }

    /// Mounts an overlay for a container, shows it to the guest, and returns its path there. The
    /// layers are where they are in this mount namespace, and stay the host's.
    pub fn add_overlay(
        &mut self,
        container: &str,
        overlay: &HostOverlay,
    ) -> Result<PathBuf, StorageError> {
        check_container_id(container)?;
        let (name, relative) = self.next_place()?;
        self.make_directory(&relative)?;
        // The server needs none of this, as with a bind.
        let forbidden = ["nosuid", "nodev", "noexec"].map(str::to_owned);
        let options = [overlay.options.as_slice(), forbidden.as_slice()].concat();
        let mounted = self
            .io("open", &self.path.join(&relative), self.place(&relative))
            .and_then(|place| {
                let target = format!("/proc/self/fd/{}", place.as_raw_fd());
                Ok(mount("overlay", Path::new(&target), "overlay", &options)?)
            })
            .map(|()| Path::new(GUEST_SHARE).join(&relative));
        self.keep(container, None, &name, mounted)
    }

    /// A name that no mount has had, and its path in the share.
    fn next_place(&mut self) -> Result<(String, PathBuf), StorageError> {
        self.make_directory(Path::new(MOUNTS))?;
        let name = self.binds.next_name();
        let relative = Path::new(MOUNTS).join(&name);
        Ok((name, relative))
    }

    /// Where something of the share is to be mounted on.
    fn place(&self, relative: &Path) -> rustix::io::Result<OwnedFd> {
        open_beneath(&self.face, relative, OFlags::empty())
    }

    /// Takes note of what was mounted under the name that was given last, or takes its place away
    /// again.
    fn keep(
        &mut self,
        container: &str,
        key: Option<Key>,
        name: &str,
        mounted: Result<PathBuf, StorageError>,
    ) -> Result<PathBuf, StorageError> {
        if mounted.is_err() {
            // It was made a moment ago and is empty; the first of two errors is the one to tell.
            let _ = self.remove_mount(name);
        } else {
            self.binds.add(key, container);
        }
        mounted
    }

    /// Makes something to mount a file of this kind on.
    fn make_place(
        &self,
        bind: &HostBind,
        kind: FileType,
        relative: &Path,
    ) -> Result<(), StorageError> {
        match kind {
            FileType::Directory => self.make_directory(relative),
            FileType::BlockDevice | FileType::CharacterDevice => Err(StorageError::Unsupported {
                destination: bind.destination.clone(),
                reason: format!(
                    "its source {} is a device; pass it as one, not as a mount",
                    bind.source.display()
                ),
            }),
            FileType::Socket | FileType::Fifo => {
                tracing::warn!(source = %bind.source.display(), "sharing a socket or fifo: nobody in the VM can speak to the host through it");
                self.make_file(relative)
            }
            _ => self.make_file(relative),
        }
    }

    /// Shares all that a plan asks for, and returns the mounts as the guest is to make them.
    pub fn add_mounts(
        &mut self,
        container: &str,
        plan: GuestMounts,
    ) -> Result<Vec<Mount>, StorageError> {
        let mut mounts = plan.spec_mounts;
        for bind in &plan.host_binds {
            point(&mut mounts, bind.index, self.add_mount(container, bind)?);
        }
        for overlay in &plan.host_overlays {
            point(&mut mounts, overlay.index, self.add_overlay(container, overlay)?);
        }
        Ok(mounts)
    }

    /// Shows a directory or file of the host to everything in the guest, under its own last name,
    /// and returns its path there.
    pub fn add_sandbox_mount(
        &self,
        source: &Path,
        readonly: bool,
    ) -> Result<PathBuf, StorageError> {
        let name = source.file_name().ok_or_else(|| StorageError::Unsupported {
            destination: Path::new(GUEST_SHARE).join(SANDBOX_MOUNTS),
            reason: format!("{} has no name; name a directory or file", source.display()),
        })?;
        let relative = Path::new(SANDBOX_MOUNTS).join(name);
        let tree = self.io("open", source, open_source(source))?;
        self.make_directory(Path::new(SANDBOX_MOUNTS))?;
        if source.is_dir() {
            self.make_directory(&relative)?;
        } else {
            self.make_file(&relative)?;
        }
        self.bind(&tree, &relative, BindKind { readonly, recursive: true, follows_host: !readonly })
    }

    /// Takes everything of a container away, also while the guest uses it. One that has nothing
    /// here is fine.
    pub fn remove_container(&mut self, container: &str) -> Result<(), StorageError> {
        check_container_id(container)?;
        // Everything is tried, and the first error is told.
        let mut result = Ok(());
        for name in self.binds.leave(container) {
            result = result.and(self.remove_mount(&name));
        }
        result
    }

    /// Only empty directories and files are ever removed, and only where no mount can be seen, so
    /// nothing of a source can be hit.
    fn remove_mount(&self, name: &str) -> Result<(), StorageError> {
        self.remove_from(MOUNTS, name)
    }

    fn remove_from(&self, directory: &str, name: &str) -> Result<(), StorageError> {
        let path = self.path.join(directory);
        let face = open_beneath(&self.face, Path::new(directory), OFlags::DIRECTORY);
        let face = self.io("open", &path, face)?;
        let backing = self.io("open", &path, open_directory(&self.backing, directory))?;
        unmount_tree_at(&face, name)?;
        self.io("remove", &path.join(name), remove_empty(&backing, name))
    }

    /// Takes everything away and tells what could not be.
    pub fn remove(mut self) -> Result<(), StorageError> {
        self.take_away()
    }

    fn take_away(&mut self) -> Result<(), StorageError> {
        self.removed = true;
        let all = self.io("list", &self.path, entries(&self.backing))?;
        let mut result = Ok(());
        for directory in &all {
            result = result.and(self.remove_all_from(directory));
        }
        result?;
        unmount_tree_at(&self.run_dir, SHARED)?;
        self.io("remove", &self.path, unlinkat(&self.run_dir, SHARED, AtFlags::REMOVEDIR))
    }

    /// With the directory itself.
    fn remove_all_from(&self, directory: &str) -> Result<(), StorageError> {
        let path = self.path.join(directory);
        let backing = self.io("open", &path, open_directory(&self.backing, directory))?;
        let mut result = Ok(());
        for name in self.io("list", &path, entries(&backing))? {
            result = result.and(self.remove_from(directory, &name));
        }
        result?;
        self.io("remove", &path, unlinkat(&self.backing, directory, AtFlags::REMOVEDIR))
    }

    fn bind(
        &self,
        source: &OwnedFd,
        relative: &Path,
        kind: BindKind,
    ) -> Result<PathBuf, StorageError> {
        let follows = kind.follows_host && self.follows_host;
        let propagation = if follows { Propagation::Slave } else { Propagation::Private };
        let attributes = MountAttributes {
            readonly: kind.readonly,
            // The server needs none of this, whatever becomes of it.
            nosuid: true,
            nodev: true,
            noexec: true,
            propagation: Some(propagation),
        };
        let attach = || -> io::Result<()> {
            let tree = DetachedMount::clone_of(source, kind.recursive)?;
            tree.set(attributes)?;
            tree.attach(self.place(relative)?).map(drop)
        };
        let failed = |source| StorageError::Io {
            action: "bind a mount to",
            path: self.path.join(relative),
            source,
        };
        attach().map_err(failed)?;
        Ok(Path::new(GUEST_SHARE).join(relative))
    }

    /// Makes a directory that may be there already.
    fn make_directory(&self, relative: &Path) -> Result<(), StorageError> {
        let made = match mkdirat(&self.backing, relative, Mode::RWXU) {
            Err(Errno::EXIST) => Ok(()),
            result => result,
        };
        self.io("create", &self.path.join(relative), made)
    }

    /// Makes an empty file to mount on.
    fn make_file(&self, relative: &Path) -> Result<(), StorageError> {
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = openat(&self.backing, relative, flags, Mode::RUSR).map(drop);
        self.io("create", &self.path.join(relative), made)
    }

    fn io<T>(
        &self,
        action: &'static str,
        path: &Path,
        result: rustix::io::Result<T>,
    ) -> Result<T, StorageError> {
        result.map_err(|errno| StorageError::Io {
            action,
            path: path.to_owned(),
            source: errno.into(),
        })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.removed {
            return;
        }
        if let Err(error) = self.take_away() {
            tracing::warn!(share = %self.path.display(), %error, "cannot take the share away");
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct BindKind {
    readonly: bool,
    recursive: bool,
    follows_host: bool,
}

impl BindKind {
    fn of(bind: &HostBind) -> Self {
        let HostBind { readonly, recursive, follows_host, .. } = *bind;
        Self { readonly, recursive, follows_host }
    }
}

/// Binds the directory onto itself: read-only, cut off from the host, and passing on what is
/// mounted below it to the server's copy.
fn bind_face(backing: &OwnedFd) -> io::Result<OwnedFd> {
    let tree = DetachedMount::clone_of(backing, false)?;
    tree.set(MountAttributes {
        readonly: true,
        nosuid: true,
        nodev: true,
        noexec: true,
        propagation: Some(Propagation::Private),
    })?;
    tree.set(MountAttributes {
        propagation: Some(Propagation::Shared),
        ..MountAttributes::default()
    })?;
    tree.attach(backing)
}
