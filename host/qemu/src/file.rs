//! Files that QEMU opens. It gets them as descriptors, for its user may enter few of the host's
//! directories and write to none of its files.
//!
//! ```text
//!   -blockdev, -object   /dev/fdset/N        the descriptor itself, whatever its user may do
//!   -kernel, -initrd     /proc/self/fd/N     opened once more, so its user must be allowed to read it
//! ```

use std::fs::File;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use kata_linux::process::Spawn;
use rustix::fs::{MemfdFlags, Mode, fchmod, memfd_create};

use crate::device::Argument;
use crate::option::OptionValue;

/// The right of everybody to read a file (inode(7)), and the rights to a file that all may read and
/// nobody may write to.
const READABLE_BY_ALL: u32 = 0o004;
const READ_ONLY: Mode = Mode::RUSR.union(Mode::RGRP).union(Mode::ROTH);

/// A descriptor that QEMU hands to those of its parts that open a file of this name: a set of
/// descriptors with one in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FdSet(pub(crate) RawFd);

impl FdSet {
    /// Opens `path`, for writing too if so asked, and passes it on.
    pub(crate) fn of(spawn: &mut Spawn, path: &Path, writable: bool) -> io::Result<Self> {
        let file = File::options().read(true).write(writable).open(path);
        Ok(Self(spawn.pass_fd(file.map_err(|error| named(path, &error))?)))
    }

    /// What makes the set. Its number is the descriptor's.
    pub(crate) fn argument(self) -> Argument {
        let Self(number) = self;
        ("-add-fd", OptionValue::new(format_args!("fd={number}")).with("set", number).into())
    }

    /// The name that the file has for QEMU.
    pub(crate) fn path(self) -> String {
        format!("/dev/fdset/{}", self.0)
    }
}

/// A file that QEMU can open by the path that is returned, to read it once. `root` says that QEMU
/// runs as root; else a file that not everybody may read is given to it as a copy in memory.
pub(crate) fn readable(spawn: &mut Spawn, path: &Path, root: bool) -> io::Result<PathBuf> {
    let open = || {
        let file = File::open(path)?;
        let secret = file.metadata()?.permissions().mode() & READABLE_BY_ALL == 0;
        if secret && !root { copy(file) } else { Ok(file.into()) }
    };
    let fd: OwnedFd = open().map_err(|error| named(path, &error))?;
    Ok(PathBuf::from(format!("/proc/self/fd/{}", spawn.pass_fd(fd))))
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn copy(mut file: File) -> io::Result<OwnedFd> {
    let mut copy = File::from(memfd_create(c"copy", MemfdFlags::CLOEXEC)?);
    io::copy(&mut file, &mut copy)?;
    fchmod(&copy, READ_ONLY)?;
    Ok(copy.into())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn set_has_the_descriptors_number() {
        let (option, value) = FdSet(7).argument();
        assert_eq!(format!("{option} {value}"), "-add-fd fd=7,set=7");
        assert_eq!(FdSet(7).path(), "/dev/fdset/7");
    }

    #[test]
    fn copy_holds_the_same_and_is_for_reading() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, "a kernel").unwrap();
        let copy = File::from(copy(file.reopen().unwrap()).unwrap());
        assert_eq!(copy.metadata().unwrap().permissions().mode() & 0o777, 0o444);
        let name = format!("/proc/self/fd/{}", copy.as_raw_fd());
        assert_eq!(fs::read_to_string(name).unwrap(), "a kernel");
    }

    #[test]
    fn file_that_is_missing_is_named() {
        let mut spawn = Spawn::new("true");
        for root in [false, true] {
            let error = readable(&mut spawn, Path::new("/no/such/kernel"), root).unwrap_err();
            assert!(error.to_string().starts_with("/no/such/kernel: "), "{error}");
        }
        let error = FdSet::of(&mut spawn, Path::new("/no/such/disk"), true).unwrap_err();
        assert!(error.to_string().starts_with("/no/such/disk: "), "{error}");
    }
}
