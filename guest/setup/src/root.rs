//! From an initial ramdisk to a disk: for a kernel that has the drivers of its root file system as
//! modules.
//!
//! ```text
//!   initramfs: /init (the agent) ──▶ modules ──▶ mount root= ──▶ over the initramfs ──▶ exec /sbin/init (the agent of the disk)
//! ```
//!
//! This is what the kernel does by itself where everything is built in, with one exception: it
//! cannot be checked (dm-verity), for the device that does the checking is made by the kernel
//! before the first process, or not at all.

use std::ffi::CString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{MountFlags, mount, mount_move};

use crate::modules::{self, ModuleError};
use crate::mounts::{self, MountError};

/// Where the disk is mounted before it becomes the root.
const STAGE: &str = "/.disk";
/// What the disk's first program is called.
const INIT: &str = "/sbin/init";

/// Why the disk could not become the root.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// The kernel's own file systems could not be mounted.
    #[error(transparent)]
    Early(#[from] MountError),
    /// The command line could not be read.
    #[error("cannot read the kernel's command line")]
    Cmdline(#[source] io::Error),
    /// A driver could not be loaded.
    #[error(transparent)]
    Modules(#[from] ModuleError),
    /// The image is to be checked, which this way cannot do.
    #[error(
        "this kernel cannot check its image, since the drivers of its disks are modules; boot the small kernel, or clear kernel_verity_params"
    )]
    Unchecked,
    /// The command line says where the disk is, but not what is on it.
    #[error("the kernel's parameter root= needs rootfstype= beside it")]
    NoType,
    /// The disk could not be mounted.
    #[error("cannot mount the root file system {fstype} of {device}")]
    Mount {
        /// The disk or partition.
        device: String,
        /// What should be on it.
        fstype: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The disk has no program to go on with.
    #[error("cannot start {INIT} of the root file system")]
    Exec(#[source] io::Error),
}

/// Where the kernel's command line says that the root file system is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct RootParams<'a> {
    device: &'a str,
    fstype: Option<&'a str>,
    checked: bool,
}

/// `None` when the initramfs is all there is. Of several words of one name the last counts, as it
/// does for the kernel.
fn params(cmdline: &str) -> Option<RootParams<'_>> {
    let words = || cmdline.split_ascii_whitespace();
    let last = |name: &str| words().filter_map(|word| word.strip_prefix(name)).next_back();
    Some(RootParams {
        device: last("root=")?,
        fstype: last("rootfstype="),
        checked: last("dm-mod.create=").is_some(),
    })
}

/// Goes on to the disk that the command line names, and does not return; returns at once if it
/// names none. For the first process of an initramfs, before it mounts anything.
///
/// # Errors
///
/// Fails when a driver or the disk cannot be used, or when the disk is to be checked.
pub fn switch_to_disk() -> Result<(), RootError> {
    mounts::set_up_one("/proc")?;
    let cmdline = std::fs::read_to_string("/proc/cmdline").map_err(RootError::Cmdline)?;
    let Some(root) = params(&cmdline) else { return Ok(()) };
    if root.checked {
        return Err(RootError::Unchecked);
    }
    let fstype = root.fstype.ok_or(RootError::NoType)?;
    mounts::set_up_one("/dev")?;
    modules::load_all(Path::new(modules::LIST))?;
    let failed = |source| RootError::Mount {
        device: root.device.to_owned(),
        fstype: fstype.to_owned(),
        source,
    };
    std::fs::create_dir_all(STAGE).map_err(failed)?;
    let device = CString::new(root.device).expect("a word of a text has no NUL");
    mount(device.as_c_str(), STAGE, fstype, MountFlags::RDONLY, None)
        .map_err(|errno| failed(errno.into()))?;
    for kept in ["proc", "dev"] {
        let from = Path::new("/").join(kept);
        mount_move(&from, Path::new(STAGE).join(kept)).map_err(|errno| failed(errno.into()))?;
    }
    // The initramfs stays below, empty, so that its memory is free again.
    empty_initramfs();
    let over = || -> rustix::io::Result<()> {
        rustix::process::chdir(STAGE)?;
        mount_move(".", "/")?;
        rustix::process::chroot(".")?;
        rustix::process::chdir("/")
    };
    over().map_err(|errno| failed(errno.into()))?;
    Err(RootError::Exec(Command::new(INIT).exec()))
}

/// Only memory is lost where something cannot be removed.
fn empty_initramfs() {
    for file in ["/init", "/sbin/init", "/etc", "/lib"] {
        let file = PathBuf::from(file);
        let _ = std::fs::remove_file(&file).or_else(|_| std::fs::remove_dir_all(&file));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_without_root_means_the_initramfs() {
        assert_eq!(params("console=ttyS0 rootfstype=ext4 noroot=1"), None);
    }

    #[test]
    fn last_word_counts_and_a_check_is_seen() {
        let line =
            "root=/dev/sda root=/dev/vda1 rootfstype=ext4 ro dm-mod.create=\"a,,,ro,0 8 verity 1\"";
        let expected = RootParams { device: "/dev/vda1", fstype: Some("ext4"), checked: true };
        assert_eq!(params(line), Some(expected));
    }
}
