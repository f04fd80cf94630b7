//! Reading a directory tree of the host while somebody may change it.
//!
//! What is read ends in a guest, and whoever runs there may be who changes the tree on the host. So
//! no name in it is followed to somewhere else, and what is read is what was looked at: a file is
//! opened once, without being used, and everything is asked of that descriptor.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat, openat2};

/// A directory with all below it, or one file.
#[derive(Debug)]
pub(crate) struct Tree {
    top: OwnedFd,
    path: PathBuf,
}

/// A file of a tree, of whatever kind. It stays the same file whatever its name leads to by now.
#[derive(Debug)]
pub(crate) struct Found {
    file: OwnedFd,
    stat: Stat,
}

impl Tree {
    /// The tree at a path that was resolved before: a symbolic link anywhere in it has come later,
    /// and is an error.
    pub(crate) fn at_resolved(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let top = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
        Ok(Self { top, path: path.to_owned() })
    }

    /// The directory at a path of the administrator's or engine's, whose links are followed for the
    /// last time.
    pub(crate) fn of_directory(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { top: openat(CWD, path, flags, Mode::empty())?, path: path.to_owned() })
    }

    /// Where a file of it is, for people.
    pub(crate) fn path(&self, below: &Path) -> PathBuf {
        // Joining nothing would add a slash.
        if below.as_os_str().is_empty() { self.path.clone() } else { self.path.join(below) }
    }

    /// The file at a path below its top; the empty one is the top itself.
    pub(crate) fn find(&self, below: &Path) -> io::Result<Found> {
        let file = if below.as_os_str().is_empty() {
            self.top.try_clone()?
        } else {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            openat2(&self.top, below, flags, Mode::empty(), resolve)?
        };
        let stat = fstat(&file)?;
        Ok(Found { file, stat })
    }
}

impl Found {
    pub(crate) fn stat(&self) -> &Stat {
        &self.stat
    }

    pub(crate) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// What no other file of this host has at the same time: its file system, and its number in it.
    pub(crate) fn identity(&self) -> (u64, u64) {
        (self.stat.st_dev, self.stat.st_ino)
    }

    /// Where a symbolic link leads.
    pub(crate) fn target(&self) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(&self.file, "", Vec::new())?.into_bytes())
    }

    /// The names in a directory, in no order.
    pub(crate) fn names(&self) -> io::Result<Vec<OsString>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut names = Vec::new();
        for entry in Dir::new(openat(&self.file, ".", flags, Mode::empty())?)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name));
            }
        }
        Ok(names)
    }

    /// A regular file for reading. Any other kind is an error: opening it might wait, or do
    /// something.
    pub(crate) fn open(&self) -> io::Result<File> {
        if self.kind() != FileType::RegularFile {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it is no regular file any more",
            ));
        }
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        File::options().read(true).custom_flags(flags).open(self.own_path())
    }

    /// A path for this process that leads to this very file, a symbolic link included, as long as
    /// this value lives.
    pub(crate) fn own_path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    /// A tree with `sub/file`, beside a directory that has a `file`, too.
    fn tree_beside_a_secret() -> (tempfile::TempDir, Tree) {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in [("tree/sub", "mine"), ("outside", "secret")] {
            let at = directory.path().join(name);
            fs::create_dir_all(&at).unwrap();
            fs::write(at.join("file"), text).unwrap();
        }
        let tree = Tree::at_resolved(&directory.path().canonicalize().unwrap().join("tree"));
        (directory, tree.unwrap())
    }

    fn replace_by_link(directory: &Path, name: &str, target: &Path) {
        fs::rename(directory.join(name), directory.join("moved")).unwrap();
        symlink(target, directory.join(name)).unwrap();
    }

    #[test]
    fn directory_that_became_a_link_is_not_followed() {
        let (directory, tree) = tree_beside_a_secret();
        let below = Path::new("sub/file");
        let found = tree.find(below).unwrap();
        replace_by_link(&directory.path().join("tree"), "sub", &directory.path().join("outside"));
        assert!(tree.find(below).is_err());
        let link = tree.find(Path::new("sub")).unwrap();
        assert_eq!(link.kind(), FileType::Symlink);
        assert!(link.target().unwrap().ends_with(b"/outside"));
        assert!(link.names().is_err() && link.open().is_err());

        let mut text = String::new();
        found.open().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "mine", "what was looked at is what is read");
    }

    #[test]
    fn file_that_became_a_link_is_not_followed_and_no_way_leads_up() {
        let (directory, tree) = tree_beside_a_secret();
        let sub = directory.path().join("tree/sub");
        replace_by_link(&sub, "file", &directory.path().join("outside/file"));
        assert_eq!(tree.find(Path::new("sub/file")).unwrap().kind(), FileType::Symlink);
        assert!(tree.find(Path::new("../outside/file")).is_err());
        assert!(tree.find(&directory.path().join("outside/file")).is_err());
    }

    #[test]
    fn way_to_a_resolved_top_that_became_a_link_is_an_error() {
        let (directory, _) = tree_beside_a_secret();
        let base = directory.path().canonicalize().unwrap();
        symlink(base.join("tree"), base.join("link")).unwrap();
        assert!(Tree::at_resolved(&base.join("link/sub")).is_err());
        assert!(Tree::of_directory(&base.join("link/sub")).is_ok());
    }
}
