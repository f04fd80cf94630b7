//! Where the VMM lives: a directory that it can write to, and how it sees the host's files.
//!
//! ```text
//!   behind walls of ours                       in the jailer's cell
//!   <run_dir>/firecracker   the directory      <run_dir>/jail                       a file system of the sandbox's own, in memory
//!   files as the host has them, read-only        firecracker/<id>/root              the VMM's root
//!                                                  run                              the directory
//!                                                  files/<name>                     binds of files, nodes of block devices
//! ```
//!
//! The jailer makes its root from `jail` in a mount namespace that takes mounts of this one, so
//! that what is bound into it later gets there. It then gives that root to the VMM's user, who may
//! put a link in the place of any name in it. So `files` belongs to root and is held open, and once
//! the VMM runs nothing here takes a path through the jailer's root.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kata_hypervisor::VmmDir;
use kata_linux::mount::{self, DetachedMount, MountAttributes, Propagation};
use kata_linux::user;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, chownat, mknodat, openat, unlinkat,
};

/// The directory's name for a VMM behind walls of ours.
const DIRECTORY: &str = "firecracker";

/// The name of the jailer's base directory.
const JAIL: &str = "jail";

/// Most that the jailer's file system holds: a copy of the VMM's program, and little else.
const JAIL_SIZE: &str = "size=64m";

/// The right of everybody to read a file (inode(7)).
const READABLE_BY_ALL: u32 = 0o004;

/// What stands in for a disk that is not there. A disk has at least one sector.
const PLACEHOLDER: &str = "nothing";
const SECTOR: u64 = 512;

/// The VMM's surroundings.
#[derive(Debug)]
pub(crate) struct Cell {
    /// The directory for sockets and fifos.
    pub(crate) directory: Arc<VmmDir>,
    /// How the VMM sees it.
    seen_as: PathBuf,
    /// Only in the jailer's cell.
    jail: Option<Jail>,
}

/// What the jailer is told of.
#[derive(Debug)]
pub(crate) struct Jail {
    /// Its base directory.
    pub(crate) base: PathBuf,
    /// The user and group that the VMM becomes.
    pub(crate) user: u32,
    files: OwnedFd,
}

impl Cell {
    /// Where the directory is of a VMM behind walls of ours.
    pub(crate) fn walled_directory(run_dir: &Path) -> PathBuf {
        run_dir.join(DIRECTORY)
    }

    /// Surroundings behind walls of ours, for a VMM that sees its `directory` at `seen_as`.
    pub(crate) fn walled(directory: VmmDir, seen_as: PathBuf) -> io::Result<Self> {
        Self { directory: Arc::new(directory), seen_as, jail: None }.furnished()
    }

    /// Surroundings for the jailer, which makes a root directory for `program` under this `id`.
    pub(crate) fn jailed(run_dir: &Path, program: &Path, id: &str) -> io::Result<Self> {
        let base = run_dir.join(JAIL);
        fs::create_dir_all(&base)?;
        let options = ["nosuid", "mode=0755", JAIL_SIZE].map(str::to_owned);
        mount::mount("tmpfs", &base, "tmpfs", &options).map_err(io::Error::other)?;
        let root = base.join(program.file_name().unwrap_or_default()).join(id).join("root");
        // From here on, whatever fails takes the mount away.
        Self::in_root(&root, base.clone()).inspect_err(|_| take_away(&base))?.furnished()
    }

    fn in_root(root: &Path, base: PathBuf) -> io::Result<Self> {
        mount::make_shared(&base, false).map_err(io::Error::other)?;
        let user = user::of_this_process();
        let directory = VmmDir::make(&root.join("run"))?;
        chown(root.join("run"), Some(user), Some(user))?;
        fs::create_dir(root.join("files"))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let files = openat(CWD, root.join("files"), flags, Mode::empty())?;
        let jail = Some(Jail { base, user, files });
        Ok(Self { directory: Arc::new(directory), seen_as: "/run".into(), jail })
    }

    fn furnished(self) -> io::Result<Self> {
        let nothing = self.directory.path(PLACEHOLDER);
        File::create(&nothing)?.set_len(SECTOR)?;
        self.give(PLACEHOLDER)?;
        Ok(self)
    }

    /// The jailer's part, where it is one's cell.
    pub(crate) fn jail(&self) -> Option<&Jail> {
        self.jail.as_ref()
    }

    /// A file of the directory, as the VMM sees it.
    pub(crate) fn seen(&self, name: &str) -> PathBuf {
        self.seen_as.join(name)
    }

    /// What stands in for a disk, as the VMM sees it.
    pub(crate) fn placeholder(&self) -> PathBuf {
        self.seen(PLACEHOLDER)
    }

    /// Gives a file of the directory to the VMM's user.
    pub(crate) fn give(&self, name: &str) -> io::Result<()> {
        match &self.jail {
            Some(jail) => chown(self.directory.path(name), Some(jail.user), Some(jail.user)),
            None => Ok(()),
        }
    }

    /// Lets the VMM see a file or block device, under `name` where it does not see it anyhow.
    /// Returns where.
    pub(crate) fn admit(&self, file: &Path, name: &str) -> io::Result<PathBuf> {
        let Some(jail) = &self.jail else { return Ok(file.to_owned()) };
        jail.dismiss(name);
        let metadata = fs::metadata(file)?;
        if metadata.file_type().is_block_device() {
            // Its user may not open the host's node.
            let mode = Mode::RUSR | Mode::WUSR;
            mknodat(&jail.files, name, FileType::BlockDevice, mode, metadata.rdev())?;
            let (user, group) = (Uid::from_raw(jail.user), Gid::from_raw(jail.user));
            chownat(&jail.files, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
        } else {
            if metadata.mode() & READABLE_BY_ALL == 0 {
                let file = file.display();
                return Err(io::Error::other(format!(
                    "{file} is not for everybody to read, so the jailer's user cannot; allow it (chmod o+r), or set `jailer_path` to \"\""
                )));
            }
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            openat(&jail.files, name, flags, Mode::RUSR)?;
            bind(file, &jail.files, name)?;
        }
        Ok(Path::new("/files").join(name))
    }

    /// Takes away what [`Cell::admit`] let in.
    pub(crate) fn dismiss(&self, name: &str) {
        if let Some(jail) = &self.jail {
            jail.dismiss(name);
        }
    }

    /// Takes away what is mounted for it. The VMM must be gone.
    pub(crate) fn close(&self) {
        if let Some(jail) = &self.jail {
            take_away(&jail.base);
        }
    }
}

impl Jail {
    fn dismiss(&self, name: &str) {
        if let Err(error) = mount::unmount_tree_at(&self.files, name) {
            tracing::warn!("{error}");
        }
        // It may never have been there.
        let _ = unlinkat(&self.files, name, AtFlags::empty());
    }
}

fn take_away(base: &Path) {
    if let Err(error) = mount::unmount_tree(base) {
        tracing::warn!("the jail stays: {error}");
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        self.close();
    }
}

/// Binds `file`, links followed, onto the file `name` of a directory.
fn bind(file: &Path, directory: &OwnedFd, name: &str) -> io::Result<()> {
    let path = OFlags::PATH | OFlags::CLOEXEC;
    let source = openat(CWD, file, path, Mode::empty())?;
    let mount = DetachedMount::clone_of(source.as_fd(), false)?;
    mount.set(MountAttributes {
        // The kernel and the initial ramdisk are every VM's, and so may an image be. A file that a
        // guest may write to is none of the jailer's.
        readonly: true,
        nosuid: true,
        nodev: true,
        noexec: true,
        // The copy in the jailer's namespace goes with it all the same: that follows the mount it
        // is on.
        propagation: Some(Propagation::Private),
    })?;
    let target = openat(directory, name, path | OFlags::NOFOLLOW, Mode::empty())?;
    mount.attach(target).map(drop)
}
