//! Paths that the host names and a container may be able to change: they are resolved by the
//! kernel, component by component, without following a single link.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const STRICT: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// A place in the file system that cannot be moved from under its user.
#[derive(Debug)]
pub(crate) struct Place(OwnedFd);

impl Place {
    /// The directory `path`, which must be absolute and have no links in it.
    pub(crate) fn directory(path: &Path) -> io::Result<Self> {
        let root = rustix::fs::openat(CWD, "/", DIRECTORY, Mode::empty())?;
        open(&root, &relative(path)?, DIRECTORY)
    }

    /// The file or directory `path`, as [`Place::directory`].
    pub(crate) fn existing(path: &Path) -> io::Result<Self> {
        let root = rustix::fs::openat(CWD, "/", DIRECTORY, Mode::empty())?;
        open(&root, &relative(path)?, OFlags::PATH | OFlags::CLOEXEC)
    }

    /// The directory `path`, made with `mode` if it is missing, and those above it too.
    pub(crate) fn make_directory(path: &Path, mode: u32) -> io::Result<Self> {
        let root = Self(rustix::fs::openat(CWD, "/", DIRECTORY, Mode::empty())?);
        root.make_below(&relative(path)?, mode)
    }

    /// As [`Place::make_directory`], for a relative path below this directory; what was missing is
    /// made.
    pub(crate) fn make_below(&self, path: &Path, mode: u32) -> io::Result<Self> {
        let mut current = self.0.try_clone()?;
        for component in path.components() {
            let name = match component {
                Component::Normal(name) => name,
                Component::CurDir => continue,
                _ => return Err(io::ErrorKind::InvalidInput.into()),
            };
            match rustix::fs::mkdirat(&current, name, Mode::from_raw_mode(mode & 0o7777)) {
                Ok(()) | Err(Errno::EXIST) => {}
                // A read-only file system may have the directory all the same.
                Err(Errno::ROFS) => {}
                Err(errno) => return Err(errno.into()),
            }
            current = rustix::fs::openat2(&current, name, DIRECTORY, Mode::empty(), STRICT)?;
        }
        Ok(Self(current))
    }

    /// The directory at a relative path below this one; the empty one is this one itself.
    pub(crate) fn find_below(&self, path: &Path) -> io::Result<Self> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        open(&self.0, path, DIRECTORY)
    }

    /// A path to this place for system calls that take nothing else. It means this place for as
    /// long as this value lives.
    pub(crate) fn link(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

impl AsFd for Place {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn open(root: &OwnedFd, path: &Path, flags: OFlags) -> io::Result<Place> {
    Ok(Place(rustix::fs::openat2(root, path, flags, Mode::empty(), STRICT)?))
}

/// Without the leading slash; `.` for the root itself.
fn relative(path: &Path) -> io::Result<PathBuf> {
    let mut relative = PathBuf::new();
    if !path.is_absolute() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for component in path.components() {
        match component {
            Component::RootDir => {}
            Component::Normal(name) => relative.push(name),
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        }
    }
    if relative.as_os_str().is_empty() {
        relative.push(".");
    }
    Ok(relative)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn make_directory_makes_what_is_missing() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().canonicalize().unwrap().join("a/b");
        Place::make_directory(&path, 0o755).unwrap();
        assert!(path.is_dir());
        assert_eq!(Place::directory(&path).unwrap().link().canonicalize().unwrap(), path);
    }

    #[test]
    fn links_are_never_followed() {
        let base = tempfile::tempdir().unwrap();
        let root = base.path().canonicalize().unwrap();
        symlink("/tmp", root.join("link")).unwrap();
        assert!(Place::directory(&root.join("link")).is_err());
        assert!(Place::make_directory(&root.join("link/x"), 0o755).is_err());
        assert!(Place::existing(&root.join("link/..")).is_err());
        assert!(Place::existing(Path::new("relative")).is_err());
    }
}
