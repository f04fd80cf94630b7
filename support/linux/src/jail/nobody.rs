//! A child's user without a name, and the devices that it may open all the same.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, chownat, mknodat};
use rustix::mount::{MountFlags, mount};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::{Failure, Step};

/// Somebody without rights that a child becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nobody {
    /// Its user and its only group ([`crate::user`]). It has no capability, whatever
    /// [`super::Jail::capabilities`] says.
    pub id: u32,
    /// All that is in its `/dev`, and belongs to it. Needs [`super::Mounts::ReadOnly`].
    pub devices: Vec<DeviceNode>,
}

/// A character device under its path in `/dev`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceNode {
    path: CString,
    number: u64,
}

impl DeviceNode {
    /// The device that the host has at `path`, which is right below `/dev`.
    pub fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        if !metadata.file_type().is_char_device() || path.parent() != Some(Path::new("/dev")) {
            return Err(io::Error::other("it is no character device in /dev"));
        }
        Ok(Self { path: CString::new(path.as_os_str().as_bytes())?, number: metadata.rdev() })
    }

    /// Whether this process may make such a node, for which one is made in `/run` and taken away:
    /// user namespaces, a service manager and the device rules of a cgroup may forbid it.
    #[must_use]
    pub fn can_be_made(&self) -> bool {
        let trial = format!("/run/kata-device-{}", std::process::id());
        let mode = Mode::RUSR | Mode::WUSR;
        let made = mknodat(CWD, &*trial, FileType::CharacterDevice, mode, self.number);
        made.is_ok() && fs::remove_file(&trial).is_ok()
    }
}

/// Between fork and exec: system calls only.
impl Nobody {
    /// A `/dev` with nothing in it but these devices: by the host's nodes only root could open
    /// them, and root's they need not be.
    pub(super) fn make_devices(&self) -> Result<(), Failure> {
        let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
        mount(c"tmpfs", c"/dev", c"tmpfs", flags, Some(c"mode=0755")).step("mount its own /dev")?;
        for DeviceNode { path, number } in &self.devices {
            let mode = Mode::RUSR | Mode::WUSR;
            mknodat(CWD, path.as_c_str(), FileType::CharacterDevice, mode, *number)
                .step("make its device nodes")?;
            let (owner, group) = (Uid::from_raw(self.id), Gid::from_raw(self.id));
            chownat(CWD, path.as_c_str(), Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW)
                .step("own its device nodes")?;
        }
        Ok(())
    }

    /// Becomes it for good. Groups first, for it takes root to leave them.
    pub(super) fn replace_root(&self) -> Result<(), Failure> {
        let (user, group) = (Uid::from_raw(self.id), Gid::from_raw(self.id));
        set_thread_groups(&[]).step("leave its groups")?;
        set_thread_res_gid(group, group, group).step("change its group")?;
        set_thread_res_uid(user, user, user).step("change its user")
    }
}
