//! The mounts that a guest begins with.

use std::ffi::CString;
use std::io;
use std::path::Path;

use rustix::mount::{MountFlags, mount, mount_bind, mount_move};

/// Where the guest's only cgroup hierarchy (version 2) is.
pub const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// Why the guest's file systems could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The kernel lacks the file system, or the directory could not be made.
    #[error("cannot mount {fstype} on {target}")]
    Mount {
        /// Kind of file system.
        fstype: &'static str,
        /// Where it belongs.
        target: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The initramfs could not be given a parent mount.
    #[error("cannot make the initramfs a root that containers can pivot from")]
    Root(#[source] io::Error),
    /// `/dev/console` could not be opened.
    #[error("cannot open the console")]
    Console(#[source] io::Error),
    /// A controller could not be switched on.
    #[error("cannot delegate the cgroup controllers")]
    Cgroup(#[source] io::Error),
}

struct Early {
    fstype: &'static str,
    target: &'static str,
    flags: MountFlags,
    data: &'static str,
}

const fn early(
    fstype: &'static str,
    target: &'static str,
    flags: MountFlags,
    data: &'static str,
) -> Early {
    Early { fstype, target, flags, data }
}

const STRICT: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);
const NO_SUID_DEV: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// In order: each may need the one before it.
const EARLY: &[Early] = &[
    early("proc", "/proc", STRICT, ""),
    early("sysfs", "/sys", STRICT, ""),
    early("devtmpfs", "/dev", MountFlags::NOSUID, "mode=0755"),
    early(
        "devpts",
        "/dev/pts",
        MountFlags::NOSUID.union(MountFlags::NOEXEC),
        "mode=0620,gid=5,ptmxmode=0666",
    ),
    early("tmpfs", "/dev/shm", NO_SUID_DEV, "mode=1777"),
    early("tmpfs", "/run", NO_SUID_DEV, "mode=0755"),
    early("tmpfs", "/tmp", NO_SUID_DEV, "mode=1777"),
    // Without this every move into a group waits for all CPUs, for tens of milliseconds.
    early("cgroup2", CGROUP_ROOT, STRICT, "favordynmods"),
];

/// Does what PID 1 of an initrd (or of a bare image) has to do before anything else: makes the root
/// one that `pivot_root` works from, mounts the kernel's file systems, connects the standard
/// streams to the console, and switches all cgroup controllers on for the containers to come.
///
/// # Errors
///
/// Fails at the first mount that cannot be made; the agent cannot work then.
pub fn set_up() -> Result<(), MountError> {
    if root_is_initramfs() {
        give_root_a_parent().map_err(MountError::Root)?;
    }
    EARLY.iter().try_for_each(mount_early)?;
    attach_console().map_err(MountError::Console)?;
    // Grace periods that somebody waits for (joining a cgroup, leaving a namespace) shall be short:
    // this machine has little else to do than to make and remove containers.
    let _ = std::fs::write("/sys/kernel/rcu_expedited", "1");
    delegate_controllers(Path::new(CGROUP_ROOT)).map_err(MountError::Cgroup)
}

/// Makes one of the early mounts, `target`, before the others. [`set_up`] leaves it as it is.
///
/// # Errors
///
/// Fails when it cannot be made.
pub(crate) fn set_up_one(target: &str) -> Result<(), MountError> {
    EARLY.iter().filter(|early| early.target == target).try_for_each(mount_early)
}

fn mount_early(early: &Early) -> Result<(), MountError> {
    let Early { fstype, target, .. } = *early;
    try_mount(early).map_err(|source| MountError::Mount { fstype, target, source })
}

fn try_mount(early: &Early) -> io::Result<()> {
    std::fs::create_dir_all(early.target)?;
    let data = CString::new(early.data).expect("constants have no NUL");
    match mount(early.fstype, early.target, early.fstype, early.flags, data.as_c_str()) {
        // The kernel may have mounted devtmpfs itself (CONFIG_DEVTMPFS_MOUNT).
        Ok(()) | Err(rustix::io::Errno::BUSY) => Ok(()),
        // An older kernel that does not know the option, which only makes things faster.
        Err(rustix::io::Errno::INVAL) if !data.is_empty() => {
            Ok(mount(early.fstype, early.target, early.fstype, early.flags, None)?)
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Whether the root is the initramfs, and not a disk. A disk's root has the initramfs below it as
/// its parent; only the initramfs itself has none.
#[must_use]
pub fn root_is_initramfs() -> bool {
    const RAMFS_MAGIC: i64 = 0x8584_58f6;
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    rustix::fs::statfs("/").is_ok_and(|fs| matches!(fs.f_type, RAMFS_MAGIC | TMPFS_MAGIC))
}

/// `pivot_root` refuses to work on the first mount of a namespace, which is what an initramfs is. A
/// bind mount of it, moved over it, has it as its parent.
fn give_root_a_parent() -> io::Result<()> {
    const STAGE: &str = "/.root";
    std::fs::create_dir_all(STAGE)?;
    mount_bind("/", STAGE)?;
    rustix::process::chdir(STAGE)?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")?;
    // Not empty in the eyes of nobody: the same directory, seen through the new root.
    let _ = std::fs::remove_dir(STAGE);
    Ok(())
}

/// The kernel gives PID 1 its console only if the initramfs has a node for it.
fn attach_console() -> io::Result<()> {
    let console = std::fs::OpenOptions::new().read(true).write(true).open("/dev/console");
    let console = match console {
        Ok(console) => console,
        // A machine without any console.
        Err(_) => std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?,
    };
    nix::unistd::dup2_stdin(&console)?;
    nix::unistd::dup2_stdout(&console)?;
    nix::unistd::dup2_stderr(&console)?;
    Ok(())
}

/// Lets child groups of `root` use every controller that the kernel has. One by one, since one
/// refusal (a real-time group, say) would refuse them all.
///
/// # Errors
///
/// Fails when `root` is no cgroup of version 2.
pub fn delegate_controllers(root: &Path) -> io::Result<()> {
    let controllers = std::fs::read_to_string(root.join("cgroup.controllers"))?;
    let subtree_control = root.join("cgroup.subtree_control");
    for controller in controllers.split_ascii_whitespace() {
        if let Err(error) = std::fs::write(&subtree_control, format!("+{controller}")) {
            tracing::warn!(controller, %error, "cgroup controller cannot be delegated");
        }
    }
    Ok(())
}
