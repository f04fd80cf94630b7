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
//! that what is bound into it later gets there.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kata_hypervisor::VmmDir;
use kata_linux::mount::{self, DetachedMount, MountAttributes, Propagation};
use kata_linux::user;
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};

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
    files: PathBuf,
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
        let jail = Jail { user: user::of_this_process(), files: root.join("files"), base };
        // From here on, whatever fails takes the mount away.
        let directory = VmmDir::make(&root.join("run")).inspect_err(|_| jail.take_away())?;
        let cell =
            Self { directory: Arc::new(directory), seen_as: "/run".into(), jail: Some(jail) };
        let jail = cell.jail.as_ref().expect("it was put there a line above");
        mount::make_shared(&jail.base, false).map_err(io::Error::other)?;
        fs::create_dir_all(&jail.files)?;
        chown(root.join("run"), Some(jail.user), Some(jail.user))?;
        cell.furnished()
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
        let target = jail.files.join(name);
        if metadata.file_type().is_block_device() {
            // Its user may not open the host's node.
            let mode = Mode::RUSR | Mode::WUSR;
            mknodat(CWD, &target, FileType::BlockDevice, mode, metadata.rdev())?;
            chown(&target, Some(jail.user), Some(jail.user))?;
        } else {
            if metadata.mode() & READABLE_BY_ALL == 0 {
                let file = file.display();
                return Err(io::Error::other(format!(
                    "{file} is not for everybody to read, so the jailer's user cannot; allow it (chmod o+r), or set `jailer_path` to \"\""
                )));
            }
            File::create(&target)?;
            bind(file, &target)?;
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
            jail.take_away();
        }
    }
}

impl Jail {
    fn dismiss(&self, name: &str) {
        let target = self.files.join(name);
        if let Err(error) = mount::unmount_tree(&target) {
            tracing::warn!("{error}");
        }
        // It may never have been there.
        let _ = fs::remove_file(target);
    }

    fn take_away(&self) {
        if let Err(error) = mount::unmount_tree(&self.base) {
            tracing::warn!("the jail stays: {error}");
        }
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        self.close();
    }
}

fn bind(file: &Path, target: &Path) -> io::Result<()> {
    let open =
        |path: &Path| rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let mount = DetachedMount::clone_of(open(file)?.as_fd(), false)?;
    mount.set(MountAttributes {
        readonly: false,
        nosuid: true,
        nodev: true,
        noexec: true,
        // The copy in the jailer's namespace goes with it all the same: that follows the mount it
        // is on.
        propagation: Some(Propagation::Private),
    })?;
    mount.attach(open(target)?).map(drop)
}
