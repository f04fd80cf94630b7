//! Files below the share's own directories, reached by descriptor and by checked names only.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use kata_linux::identifier;
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, ResolveFlags, openat, openat2, unlinkat};
use rustix::io::{Errno, Result};

use crate::StorageError;

/// Upstream's name, which guest hooks and images rely on. No container can have it as its id.
pub(super) const SANDBOX_MOUNTS: &str = "sandbox-mounts";

/// Accepts `id` if a container can have it: ids become names of the guest's directories in the
/// share's place, and one of them is taken.
pub fn check_container_id(id: &str) -> std::result::Result<(), StorageError> {
    identifier::check("container id", id)?;
    if id == SANDBOX_MOUNTS { Err(StorageError::TakenId(id.to_owned())) } else { Ok(()) }
}

/// Opens a bind mount's source, resolving it for the last time.
pub(super) fn open_source(path: &Path) -> Result<OwnedFd> {
    openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// Opens a directory for listing it and for making things in it.
pub(super) fn open_directory(parent: impl AsFd, name: impl rustix::path::Arg) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

/// Opens a mount point of the share without crossing into what is mounted elsewhere.
pub(super) fn open_beneath(face: &OwnedFd, relative: &Path, flags: OFlags) -> Result<OwnedFd> {
    let flags = flags | OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    openat2(face, relative, flags, Mode::empty(), resolve)
}

/// Removes a file, or a directory with nothing in it.
pub(super) fn remove_empty(parent: &OwnedFd, name: &str) -> Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => unlinkat(parent, name, AtFlags::REMOVEDIR),
        result => result,
    }
}

/// The names in a directory of ours; anything that is not UTF-8 was not made here.
pub(super) fn entries(directory: &OwnedFd) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_safe_file_names_and_none_is_the_directory_of_the_sandbox() {
        assert!(check_container_id("my_container-1.2+x").is_ok());
        for id in ["", "..", "a/b", ".x", SANDBOX_MOUNTS] {
            assert!(check_container_id(id).is_err(), "{id}");
        }
    }
}
