//! The walls around the VMM. A guest that has taken it over finds a process without network, in a
//! file system of its own that holds what the machine is made of and nothing else:
//!
//! ```text
//!   /                   tmpfs, read-only
//!     dev/{kvm,null,urandom}        nobody's to change, as all devices here
//!     proc              of this PID namespace: the VMM alone, read-only
//!     boot/{kernel,initrd,image}    read-only, as far as there are such
//!     disk/N            in the order of the options
//!     share/N           what the guest may mount; mounts that the host makes below it later appear here too
//!     vsock             where the sockets for the guest's ports are made
//! ```
//!
//! libkrun's file server takes the names that a guest asks for as they are, `..` and `/` in them
//! too, and opens whatever is there. So a guest reaches all of this, and these walls are what there
//! is between it and the host: no more may be writable here than what is the guest's own.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use kata_linux::capabilities::{FILE_SERVER, keep_only};
use kata_linux::mount::{
    DetachedMount, MountAttributes, Propagation, pivot_to_working_directory,
    unshare_mount_namespace,
};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::MountFlags;
use rustix::process::{Pid, Signal, getpid};

use crate::options::{Disk, Options};

/// The devices that a VMM needs.
const DEVICES: [&str; 3] = ["/dev/kvm", "/dev/null", "/dev/urandom"];

/// Where things are from inside.
#[derive(Debug)]
pub(crate) struct Inside {
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: Option<PathBuf>,
    pub(crate) image: Option<PathBuf>,
    /// In the order of the options.
    pub(crate) disks: Vec<PathBuf>,
    pub(crate) vsock_dir: PathBuf,
    /// In the order of the options.
    pub(crate) shares: Vec<PathBuf>,
}

/// Asks the kernel to kill this process when the thread that started it ends.
pub(crate) fn die_with_parent() -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .context("cannot tie its life to its parent's")
}

/// Shuts the process in. It must have one thread only.
pub(crate) fn enter(options: &Options) -> anyhow::Result<Inside> {
    if getpid() != Pid::INIT {
        bail!(
            "it is not process 1 of a PID namespace; start it through the runtime, or with `unshare --pid --fork`"
        );
    }
    unshare(CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)
        .context("cannot leave the host's IPC and UTS namespaces")?;
    if !options.keep_network {
        unshare(CloneFlags::CLONE_NEWNET).context("cannot leave the host's network")?;
    }
    unshare_mount_namespace()?;
    let root = Root::on(&options.vsock_dir)?;
    for device in DEVICES {
        root.add_file(Path::new(device), device, Access::Device)?;
    }
    let kernel = root.add_file(&options.kernel, "/boot/kernel", Access::Read)?;
    let add = |file: &Option<PathBuf>, path| match file {
        Some(file) => root.add_file(file, path, Access::Read).map(Some),
        None => Ok(None),
    };
    let initrd = add(&options.initrd, "/boot/initrd")?;
    let image = add(&options.image, "/boot/image")?;
    let mut disks = Vec::new();
    for (number, disk) in options.disks.iter().enumerate() {
        let access = Access::of_disk(disk)?;
        disks.push(root.add_file(&disk.file, &format!("/disk/{number}"), access)?);
    }
    let mut shares = Vec::new();
    for (number, share) in options.shares.iter().enumerate() {
        shares.push(root.add_directory(&share.directory, &format!("/share/{number}"))?);
    }
    let vsock_dir = root.add_sockets()?;
    root.become_root()?;
    Ok(Inside { kernel, initrd, image, disks, vsock_dir, shares })
}

/// Leaves the process, and whatever it may become, with nothing but the capabilities of a file
/// server and without supplementary groups.
pub(crate) fn drop_capabilities() -> anyhow::Result<()> {
    nix::unistd::setgroups(&[])
        .context("cannot leave its supplementary groups; it must be started as root")?;
    keep_only(FILE_SERVER).context("cannot drop capabilities")
}

/// What is done with a file from inside.
#[derive(Debug, Clone, Copy)]
enum Access {
    Read,
    Write,
    Device,
}

impl Access {
    fn of_disk(disk: &Disk) -> anyhow::Result<Self> {
        let kind = fs::metadata(&disk.file)
            .with_context(|| format!("cannot look at {}", disk.file.display()))?
            .file_type();
        match (kind.is_block_device(), kind.is_file(), disk.readonly) {
            (true, _, _) => Ok(Self::Device),
            (_, true, true) => Ok(Self::Read),
            (_, true, false) => Ok(Self::Write),
            _ => bail!("{} is neither a block device nor a regular file", disk.file.display()),
        }
    }
}

/// The root directory to be, mounted on the one directory that is known to be the VMM's own.
struct Root {
    at: PathBuf,
    /// The directory itself.
    sockets: File,
}

impl Root {
    fn on(directory: &Path) -> anyhow::Result<Self> {
        let sockets = open(directory)?;
        let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
        rustix::mount::mount(c"kata-krun", directory, c"tmpfs", flags, c"mode=0755,size=64k")
            .context("cannot mount a root directory of its own")?;
        let root = Self { at: directory.to_owned(), sockets };
        let proc = root.make_directory("/proc")?;
        // Its user is root outside, too, and needs no capability to write to the kernel's settings.
        let flags =
            MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        rustix::mount::mount(c"proc", &proc, c"proc", flags, c"subset=pid")
            .context("cannot mount its own /proc")?;
        Ok(root)
    }

    /// Returns the path from inside.
    fn add_file(&self, source: &Path, path: &str, access: Access) -> anyhow::Result<PathBuf> {
        let is_device = matches!(access, Access::Device);
        let attributes = MountAttributes {
            // A device can be written to all the same. But its node is the host's, with its owner
            // and mode.
            readonly: !matches!(access, Access::Write),
            nosuid: true,
            nodev: !is_device,
            noexec: true,
            propagation: Some(Propagation::Private),
        };
        let target = self.path(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).with_context(|| format!("cannot make room for {path}"))?;
        }
        File::create(&target).with_context(|| format!("cannot make room for {path}"))?;
        bind(&open(source)?, false, attributes, &target)
            .with_context(|| format!("cannot take {} along", source.display()))?;
        Ok(path.into())
    }

    fn add_directory(&self, source: &Path, path: &str) -> anyhow::Result<PathBuf> {
        let attributes = MountAttributes {
            nosuid: true,
            nodev: true,
            noexec: true,
            propagation: Some(Propagation::Slave),
            ..MountAttributes::default()
        };
        let target = self.make_directory(path)?;
        bind(&open(source)?, true, attributes, &target)
            .with_context(|| format!("cannot take {} along", source.display()))?;
        Ok(path.into())
    }

    fn add_sockets(&self) -> anyhow::Result<PathBuf> {
        let attributes = MountAttributes {
            nosuid: true,
            nodev: true,
            noexec: true,
            propagation: Some(Propagation::Private),
            ..MountAttributes::default()
        };
        let target = self.make_directory("/vsock")?;
        bind(&self.sockets, false, attributes, &target)
            .context("cannot take the directory for sockets along")?;
        Ok("/vsock".into())
    }

    fn make_directory(&self, path: &str) -> anyhow::Result<PathBuf> {
        let target = self.path(path);
        fs::create_dir_all(&target).with_context(|| format!("cannot make room for {path}"))?;
        Ok(target)
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.at.join(inside.trim_start_matches('/'))
    }

    /// Makes it the root directory, for good: all other mounts are let go.
    fn become_root(self) -> anyhow::Result<()> {
        rustix::mount::mount_remount(
            &self.at,
            MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::BIND,
            c"",
        )
        .context("cannot make its root directory read-only")?;
        rustix::process::chdir(&self.at).context("cannot change to its root directory")?;
        Ok(pivot_to_working_directory()?)
    }
}

fn bind(
    source: impl AsFd,
    recursive: bool,
    attributes: MountAttributes,
    target: &Path,
) -> anyhow::Result<()> {
    let tree = DetachedMount::clone_of(source, recursive).context("cannot copy its mount")?;
    tree.set(attributes).context("cannot restrict its mount")?;
    tree.attach(open(target)?).context("cannot put its mount in place")?;
    Ok(())
}

fn open(path: &Path) -> anyhow::Result<File> {
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map(File::from)
        .with_context(|| format!("cannot open {}", path.display()))
}
