//! The working directory of a container's init, which is made if it is missing.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Mount;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Makes `cwd` below `rootfs`, or below the source of the bind mount that will cover it, which a
/// tmpfs in the image has become one of. No link in
/// there leads out of it. What cannot be made (on a read-only file system, or below a file system
/// that is yet to be mounted) is left: changing into it will say what is wrong.
pub(crate) fn prepare(rootfs: &Path, mounts: &[Mount], cwd: &Path) -> io::Result<()> {
    let covering = covering(mounts, cwd);
    let cwd = normalized(cwd);
    let (base, relative) = match covering {
        None => (rootfs.to_owned(), cwd),
        Some(mount) if is_bind(mount) => {
            let inside = cwd.strip_prefix(normalized(mount.destination())).unwrap_or(Path::new(""));
            let Some(source) = mount.source() else { return Ok(()) };
            (source.clone(), inside.to_owned())
        }
        Some(_) => return Ok(()),
    };
    match make(&base, &relative) {
        Err(Errno::ROFS | Errno::NOTDIR | Errno::ACCESS) | Ok(()) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// The mount that `cwd` will be in, if it is one.
pub(crate) fn covering<'a>(mounts: &'a [Mount], cwd: &Path) -> Option<&'a Mount> {
    let cwd = normalized(cwd);
    mounts
        .iter()
        .filter(|mount| cwd.starts_with(normalized(mount.destination())))
        .max_by_key(|mount| normalized(mount.destination()).components().count())
}

/// Whether these are the same place.
pub(crate) fn is_same(one: &Path, other: &Path) -> bool {
    normalized(one) == normalized(other)
}

/// Whether `cwd` is below `directory`, and not the same.
pub(crate) fn is_below(cwd: &Path, directory: &Path) -> bool {
    let (cwd, directory) = (normalized(cwd), normalized(directory));
    cwd != directory && cwd.starts_with(directory)
}

pub(crate) fn is_bind(mount: &Mount) -> bool {
    let options = mount.options().iter().flatten();
    mount.typ().as_deref() == Some("bind")
        || options.into_iter().any(|option| option == "bind" || option == "rbind")
}

/// Without `.` and `..`, from the root: `/../a/./b` is `/a/b`.
pub(crate) fn normalized(path: &Path) -> PathBuf {
    let mut result = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => result.push(name),
            Component::ParentDir => drop(result.pop()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    result
}

/// Makes the directories of `relative` below `base` that are missing. No link leads out of `base`.
pub(crate) fn make(base: &Path, relative: &Path) -> rustix::io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, base, flags, Mode::empty())?;
    let open = |path: &Path| -> rustix::io::Result<OwnedFd> {
        rustix::fs::openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)
    };
    let mut parent = open(Path::new("."))?;
    let mut reached = PathBuf::from(".");
    for name in relative.components().filter_map(normal) {
        reached.push(name);
        parent = match open(&reached) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => {
                match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => open(&reached)?,
                    Err(errno) => return Err(errno),
                }
            }
            Err(errno) => return Err(errno),
        };
    }
    Ok(())
}

fn normal(component: Component<'_>) -> Option<&OsStr> {
    match component {
        Component::Normal(name) => Some(name),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn mount(json: serde_json::Value) -> Mount {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn prepare_makes_missing_directories() {
        let rootfs = tempfile::tempdir().unwrap();
        prepare(rootfs.path(), &[], Path::new("/a/../b/c")).unwrap();
        assert!(rootfs.path().join("b/c").is_dir());
    }

    #[test]
    fn prepare_follows_links_inside_of_the_root_only() {
        let outside = tempfile::tempdir().unwrap();
        let rootfs = tempfile::tempdir().unwrap();
        symlink(outside.path(), rootfs.path().join("link")).unwrap();
        // The link's target does not exist below the root, which is where it leads to.
        let _ = prepare(rootfs.path(), &[], Path::new("/link/made"));
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn prepare_below_bind_mount_works_on_its_source() {
        let (rootfs, source) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let bind = mount(serde_json::json!({
            "destination": "/data", "type": "bind", "source": source.path(), "options": ["rbind"]
        }));
        prepare(rootfs.path(), &[bind], Path::new("/data/x")).unwrap();
        assert!(source.path().join("x").is_dir());
        assert!(!rootfs.path().join("data").exists());
    }

    #[test]
    fn prepare_below_other_mounts_is_left_alone() {
        let rootfs = tempfile::tempdir().unwrap();
        let tmpfs = mount(serde_json::json!({"destination": "/tmp", "type": "tmpfs"}));
        prepare(rootfs.path(), &[tmpfs], Path::new("/tmp/x")).unwrap();
        assert!(!rootfs.path().join("tmp").exists());
    }
}
