//! Mount points in a root file system that the guest gets read-only.
//!
//! A runtime makes the mount points that an image lacks before it makes the root file system
//! read-only. Here read-only is the host's doing, so that the guest cannot make them any more, and
//! the host does, before the guest sees anything of it. Every step is taken by the kernel inside of
//! the root (openat2(2), RESOLVE_IN_ROOT): a link in an image leads nowhere else.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Spec;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, readlinkat};
use rustix::io::Errno;

use crate::{GuestMounts, StorageError};

/// As many links in a row as the kernel follows (path_resolution(7)).
const LINKS: u32 = 40;

/// Makes what `rootfs` lacks: directories for all mounts, empty files for mounts of files, and the
/// working directory. What lies below another mount is left to the guest, which makes that mount.
pub fn make_mount_points(
    rootfs: &Path,
    spec: &Spec,
    mounts: &GuestMounts,
) -> Result<(), StorageError> {
    let failed = |path: &Path, errno: Errno| StorageError::Io {
        action: "make the mount point",
        path: rootfs.join(relative(path)),
        source: io::Error::from(errno),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root =
        openat(CWD, rootfs, flags, Mode::empty()).map_err(|errno| failed(Path::new(""), errno))?;
    let mut covered: Vec<PathBuf> = Vec::new();
    for (index, mount) in mounts.spec_mounts.iter().enumerate() {
        let destination = mount.destination();
        if !covered.iter().any(|above| destination.starts_with(above)) {
            let is_file =
                mounts.host_binds.iter().any(|bind| bind.index == index && bind.source.is_file());
            make(&root, destination, is_file, LINKS).map_err(|errno| failed(destination, errno))?;
            covered.push(destination.clone());
        }
    }
    let cwd = spec.process().as_ref().map(|process| process.cwd().clone()).unwrap_or_default();
    if covered.iter().any(|above| cwd.starts_with(above)) {
        return Ok(());
    }
    make(&root, &cwd, false, LINKS).map_err(|errno| failed(&cwd, errno))
}

/// Refuses what no kernel mounts: a file on a directory, or a directory on a file. Said here, it
/// names both.
pub fn check_mount_points(rootfs: &Path, mounts: &GuestMounts) -> Result<(), StorageError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(root) = openat(CWD, rootfs, flags, Mode::empty()) else { return Ok(()) };
    for bind in &mounts.host_binds {
        let mut earlier = mounts.spec_mounts.iter().take(bind.index);
        if earlier.any(|mount| bind.destination.starts_with(mount.destination())) {
            continue;
        }
        // What is not there will be made, and what cannot be looked at is for the guest to complain
        // about.
        let Ok(target) = open(&root, &bind.destination).and_then(rustix::fs::fstat) else {
            continue;
        };
        let target_is_directory = FileType::from_raw_mode(target.st_mode) == FileType::Directory;
        if target_is_directory != bind.source.is_dir() {
            return Err(StorageError::Kinds {
                source_path: bind.source.clone(),
                destination: bind.destination.clone(),
            });
        }
    }
    Ok(())
}

/// Where a link leads to, from the root.
fn target_of(root: &OwnedFd, path: &Path) -> rustix::io::Result<PathBuf> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let link = openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
    let target = readlinkat(&link, "", Vec::new())?.into_bytes();
    let from = Path::new("/").join(path.parent().unwrap_or(Path::new("")));
    let mut found = PathBuf::from("/");
    for part in from.join(Path::new(OsStr::from_bytes(&target))).components() {
        match part {
            Component::Normal(name) => found.push(name),
            Component::ParentDir => drop(found.pop()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    Ok(found)
}

/// Makes one path below the root, unless it is there; a file also behind that many links.
fn make(root: &OwnedFd, path: &Path, is_file: bool, links: u32) -> rustix::io::Result<()> {
    if open(root, path).is_ok() {
        return Ok(());
    }
    let components: Vec<&OsStr> = relative(path)
        .components()
        .filter_map(|part| if let Component::Normal(name) = part { Some(name) } else { None })
        .collect();
    let mut done = PathBuf::new();
    let mut parent = open(root, Path::new("/"))?;
    for (position, name) in components.iter().enumerate() {
        let is_last = position + 1 == components.len();
        done.push(name);
        if is_last && is_file {
            let flags =
                OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            return match openat(&parent, *name, flags, Mode::from_raw_mode(0o644)) {
                Ok(_) => Ok(()),
                // A link that leads nowhere.
                Err(Errno::EXIST) if links > 0 => {
                    make(root, &target_of(root, path)?, true, links - 1)
                }
                Err(errno) => Err(errno),
            };
        }
        match mkdirat(&parent, *name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => match open(root, &done) {
                Ok(next) => parent = next,
                // A link that leads nowhere: the guest finds the same, and says so.
                Err(Errno::NOENT) => return Ok(()),
                Err(errno) => return Err(errno),
            },
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn open(root: impl AsFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT)
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn made(spec: &str) -> tempfile::TempDir {
        let rootfs = tempfile::tempdir().unwrap();
        // A link out of the image, as a hostile one might have it.
        symlink("/etc", rootfs.path().join("link")).unwrap();
        let spec: Spec = serde_json::from_str(spec).unwrap();
        let spec_mounts = spec.mounts().clone().unwrap_or_default();
        let mounts = GuestMounts { spec_mounts, ..GuestMounts::default() };
        make_mount_points(rootfs.path(), &spec, &mounts).unwrap();
        rootfs
    }

    #[test]
    fn file_is_made_where_a_link_leads_that_leads_nowhere() {
        let rootfs = tempfile::tempdir().unwrap();
        fs::create_dir(rootfs.path().join("etc")).unwrap();
        symlink("../run/resolve/stub", rootfs.path().join("etc/resolv.conf")).unwrap();
        symlink("loop", rootfs.path().join("etc/loop")).unwrap();
        let source = tempfile::NamedTempFile::new().unwrap();
        let made = |destination: &str| {
            let spec: Spec = serde_json::from_value(serde_json::json!({"ociVersion": "1.0.2",
                "mounts": [{"destination": destination, "type": "bind"}]}))
            .unwrap();
            let bind = crate::HostBind {
                index: 0,
                source: source.path().to_owned(),
                destination: destination.into(),
                readonly: false,
                recursive: true,
                follows_host: false,
            };
            let spec_mounts = spec.mounts().clone().unwrap();
            let mounts =
                GuestMounts { spec_mounts, host_binds: vec![bind], ..GuestMounts::default() };
            make_mount_points(rootfs.path(), &spec, &mounts)
        };
        made("/etc/resolv.conf").unwrap();
        assert!(rootfs.path().join("run/resolve/stub").is_file());
        assert!(made("/etc/loop").is_err());
    }

    #[test]
    fn missing_directories_are_made_and_those_below_mounts_are_not() {
        let rootfs = made(
            r#"{"ociVersion":"1.0.2","process":{"cwd":"/app/here","user":{"uid":0,"gid":0}},"mounts":[
                {"destination":"/proc","type":"proc"},{"destination":"/dev","type":"tmpfs"},
                {"destination":"/dev/shm","type":"tmpfs"},{"destination":"/a/b","type":"tmpfs"}]}"#,
        );
        for there in ["proc", "dev", "a/b", "app/here"] {
            assert!(rootfs.path().join(there).is_dir(), "{there}");
        }
        assert!(!rootfs.path().join("dev/shm").exists());
    }

    #[test]
    fn links_lead_nowhere_outside() {
        let rootfs = made(
            r#"{"ociVersion":"1.0.2","mounts":[{"destination":"/link/kata-mount-point-test","type":"tmpfs"}]}"#,
        );
        assert!(!Path::new("/etc/kata-mount-point-test").exists());
        assert!(fs::symlink_metadata(rootfs.path().join("link")).unwrap().is_symlink());
    }
}
