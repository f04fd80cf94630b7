//! Files of the host that a guest gets as copies, because no directory can be shared with it, or
//! because it is to be told of their changes.
//!
//! Copies are what they were when the container was made: nobody's changes are seen on the other
//! side, except for those that are followed (`follow.rs`). They are kept in the guest's memory, and
//! therefore small.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use crate::tree::{Found, Tree};
use crate::{HostBind, StorageError};

/// Most that is copied for all mounts of a container, in bytes and in files.
pub const MAX_COPIED_BYTES: u64 = 16 << 20;
/// As [`MAX_COPIED_BYTES`].
pub const MAX_COPIED_FILES: usize = 4096;

/// Where the guest has copies for single containers: not in [`crate::GUEST_SHARE`], in which it can
/// make nothing where a directory is shared with it. Only this project's agent knows it.
pub const GUEST_COPIES: &str = "/run/kata-containers/shared/copies";

/// What may still be copied for a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyBudget {
    bytes: u64,
    files: usize,
}

impl Default for CopyBudget {
    fn default() -> Self {
        Self { bytes: MAX_COPIED_BYTES, files: MAX_COPIED_FILES }
    }
}

/// A copy of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopiedFile {
    /// Where it is below the mount's source; empty for the source itself. The protocol carries text
    /// only.
    pub path: String,
    /// The low twelve bits of its mode.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// What it is.
    pub content: CopiedContent,
}

/// What a copied file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopiedContent {
    /// A directory, whose files follow.
    Directory,
    /// A regular file of these bytes.
    Regular(Vec<u8>),
    /// A symbolic link with this target.
    Symlink(Vec<u8>),
}

impl CopyBudget {
    /// Reads a bind mount's source with all that is in it, a directory before its files, and takes
    /// that off the budget. File systems that are mounted below it come along if the mount says so.
    ///
    /// # Errors
    /// [`StorageError::Unsupported`] when it is too much, or when there is something that has no
    /// copy: a socket, a fifo, a device.
    pub fn read(&mut self, bind: &HostBind) -> Result<Vec<CopiedFile>, StorageError> {
        let mut copies = Vec::new();
        let tree = Tree::at_resolved(&bind.source).map_err(failed(&bind.source))?;
        let top = self.copy(bind, &tree, Path::new(""), &mut copies)?;
        let mut directories: Vec<PathBuf> = top.is_some().then(PathBuf::new).into_iter().collect();
        while let Some(directory) = directories.pop() {
            let listed = tree.find(&directory).and_then(|found| found.names());
            for name in listed.map_err(failed(&tree.path(&directory)))? {
                let below = directory.join(name);
                let device = self.copy(bind, &tree, &below, &mut copies)?;
                if device.is_some() && (bind.recursive || device == top) {
                    directories.push(below);
                }
            }
        }
        Ok(copies)
    }

    /// Takes one file. Returns the file system of a directory, and `None` for everything else.
    fn copy(
        &mut self,
        bind: &HostBind,
        tree: &Tree,
        below: &Path,
        copies: &mut Vec<CopiedFile>,
    ) -> Result<Option<u64>, StorageError> {
        let path = tree.path(below);
        let found = tree.find(below).map_err(failed(&path))?;
        let refused = |reason: String| StorageError::Unsupported {
            destination: bind.destination.clone(),
            reason,
        };
        let content = match found.kind() {
            FileType::Directory => CopiedContent::Directory,
            FileType::Symlink => CopiedContent::Symlink(found.target().map_err(failed(&path))?),
            FileType::RegularFile => {
                let content = read_at_most(&found, self.bytes).map_err(failed(&path))?;
                CopiedContent::Regular(content.ok_or_else(|| refused(self.too_much(bind)))?)
            }
            _ => {
                return Err(refused(format!(
                    "{} is a socket, fifo or device, and this hypervisor has no shared file system, only copies; choose another with \
                     `hypervisor_name` in the section runtime",
                    path.display()
                )));
            }
        };
        if let CopiedContent::Regular(bytes) = &content {
            self.bytes -= bytes.len() as u64;
        }
        self.files = self.files.checked_sub(1).ok_or_else(|| refused(self.too_much(bind)))?;
        let name = below.to_str().ok_or_else(|| {
            refused(format!(
                "{} is no UTF-8 text, in which alone a copy has its name",
                path.display()
            ))
        })?;
        let stat = found.stat();
        copies.push(CopiedFile {
            path: name.to_owned(),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            content,
        });
        Ok((found.kind() == FileType::Directory).then_some(stat.st_dev))
    }

    fn too_much(&self, bind: &HostBind) -> String {
        format!(
            "with its source {} more than {} MiB or {MAX_COPIED_FILES} files would have to be copied into the guest, for this hypervisor has \
             no shared file system; choose another with `hypervisor_name` in the section runtime",
            bind.source.display(),
            MAX_COPIED_BYTES >> 20
        )
    }
}

/// The file's content; `None` if it is longer than `most`.
fn read_at_most(found: &Found, most: u64) -> io::Result<Option<Vec<u8>>> {
    let mut content = Vec::new();
    let length = found.open()?.take(most + 1).read_to_end(&mut content)? as u64;
    Ok((length <= most).then_some(content))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> StorageError + use<> {
    let path = path.to_owned();
    move |source| StorageError::Io { action: "copy into the guest", path, source }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A mount of `source` as any other.
    pub(crate) fn bind(source: &Path) -> HostBind {
        HostBind {
            index: 0,
            source: source.to_owned(),
            destination: "/data".into(),
            readonly: false,
            recursive: true,
            follows_host: false,
        }
    }

    #[test]
    fn directory_is_copied_with_all_that_is_in_it() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("sub")).unwrap();
        fs::write(directory.path().join("sub/file"), "text").unwrap();
        fs::set_permissions(directory.path().join("sub/file"), PermissionsExt::from_mode(0o4711))
            .unwrap();
        symlink("/somewhere/else", directory.path().join("link")).unwrap();
        let mut copies = CopyBudget::default().read(&bind(directory.path())).unwrap();
        assert_eq!((copies[0].path.as_str(), &copies[0].content), ("", &CopiedContent::Directory));
        copies.sort_by(|one, other| one.path.cmp(&other.path));
        let found: Vec<_> = copies.iter().map(|copy| (copy.path.as_str(), &copy.content)).collect();
        assert_eq!(found[1], ("link", &CopiedContent::Symlink(b"/somewhere/else".to_vec())));
        assert_eq!(found[2], ("sub", &CopiedContent::Directory));
        assert_eq!(found[3], ("sub/file", &CopiedContent::Regular(b"text".to_vec())));
        assert_eq!(copies[3].mode, 0o4711);
    }

    #[test]
    fn way_to_the_source_that_became_a_link_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("real")).unwrap();
        fs::write(directory.path().join("real/file"), "text").unwrap();
        symlink("real", directory.path().join("way")).unwrap();
        let error = CopyBudget::default().read(&bind(&directory.path().join("way/file")));
        assert!(error.unwrap_err().to_string().contains("way/file"));
    }

    #[test]
    fn budget_is_for_all_mounts_together() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, vec![0; 10 << 20]).unwrap();
        let mut budget = CopyBudget::default();
        assert_eq!(budget.read(&bind(&file)).unwrap().len(), 1);
        let error = budget.read(&bind(&file)).unwrap_err().to_string();
        assert!(error.contains("more than 16 MiB") && error.contains("/data"), "{error}");
        fs::write(&file, "").unwrap();
        let mut budget = CopyBudget { files: 1, ..CopyBudget::default() };
        budget.read(&bind(&file)).unwrap();
        assert!(budget.read(&bind(&file)).is_err());
    }

    #[test]
    fn socket_has_no_copy() {
        let directory = tempfile::tempdir().unwrap();
        let _socket = UnixListener::bind(directory.path().join("socket")).unwrap();
        let error = CopyBudget::default().read(&bind(directory.path())).unwrap_err().to_string();
        assert!(error.contains("socket, fifo or device"), "{error}");
    }
}
