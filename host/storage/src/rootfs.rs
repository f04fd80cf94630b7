//! containerd's root file system mounts.

use std::path::Path;

use kata_linux::mount::mount;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use crate::StorageError;

/// One entry of `rootfs` in containerd's Create request (`containerd.types.Mount`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RootfsMount {
    /// The file system's type, or `bind`.
    pub fstype: String,
    /// The device or directory.
    pub source: String,
    /// Where below the root file system, empty for its root.
    pub target: String,
    /// Flags, propagation, and what the file system itself understands.
    pub options: Vec<String>,
}

/// Mounts a root file system on `target`, in the order given. No mounts at all is fine: the engine
/// has put the files there already.
///
/// The mounts are made in the caller's mount namespace. On error those that were made stay, for
/// whoever removes the container or ends the namespace.
pub fn mount_rootfs(mounts: &[RootfsMount], target: &Path) -> Result<(), StorageError> {
    if !mounts.is_empty() {
        std::fs::create_dir_all(target).map_err(|source| StorageError::Io {
            action: "create",
            path: target.to_owned(),
            source,
        })?;
    }
    for one in mounts {
        check(one)?;
        if one.target.is_empty() || one.target == "/" {
            mount(&one.source, target, &one.fstype, &one.options)?;
        } else {
            mount_below(one, target)?;
        }
    }
    Ok(())
}

fn check(one: &RootfsMount) -> Result<(), StorageError> {
    // containerd's extensions of mount types, which ask for a helper program or a preparation.
    if one.fstype.starts_with("fuse") || one.fstype.contains('/') {
        return Err(StorageError::Rootfs(format!(
            "mount type `{}` is not supported; use another snapshotter, such as overlayfs",
            one.fstype
        )));
    }
    if one.options.iter().any(|option| option == "loop") {
        return Err(StorageError::Rootfs(format!(
            "{} asks for a loop device, which is not supported; use another snapshotter, such as overlayfs",
            one.source
        )));
    }
    Ok(())
}

/// Mounts on a directory of the root file system, which is found without ever leaving it: links in
/// it are an image's.
fn mount_below(one: &RootfsMount, root: &Path) -> Result<(), StorageError> {
    let failed = |errno: rustix::io::Errno| StorageError::Io {
        action: "open",
        path: root.join(one.target.trim_start_matches('/')),
        source: errno.into(),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root_fd = rustix::fs::openat(CWD, root, flags, Mode::empty()).map_err(failed)?;
    let target =
        rustix::fs::openat2(&root_fd, &one.target, flags, Mode::empty(), ResolveFlags::IN_ROOT)
            .map_err(failed)?;
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&target));
    Ok(mount(&one.source, Path::new(&path), &one.fstype, &one.options)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_that_need_helpers_are_refused_by_name() {
        for (fstype, options) in [
            ("fuse3.fuse-overlayfs", vec![]),
            ("mkfs/ext4", vec![]),
            ("ext4", vec!["loop".to_owned()]),
        ] {
            let one = RootfsMount {
                fstype: fstype.to_owned(),
                source: "/x".to_owned(),
                options,
                ..Default::default()
            };
            assert!(check(&one).unwrap_err().to_string().contains("overlayfs"), "{fstype}");
        }
    }
}
