//! A root file system as one read-only image, for guests that no directory can be shared with.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use kata_erofs::{Attribute, Image, Kind, Node, NodeId};
use rustix::buffer::spare_capacity;
use rustix::fs::{OFlags, lgetxattr, llistxattr, major, minor};
use rustix::io::Errno;

use crate::StorageError;

/// Attributes of an overlay that mean something to its own layers only.
const OF_OVERLAYS: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// The longest list of attributes, and the longest value of one, in bytes (xattr(7)).
const XATTR_SIZE_MAX: usize = 65536;

/// The file system of the images, for mount(2).
pub const IMAGE_TYPE: &str = "erofs";

/// Writes all that is in the directory `root` to a new file `image`, which only root can write to, and everybody can read who gets to it.
/// Returns its size in bytes. It holds the files as they are: owners, times, attributes, hard links, device nodes.
///
/// Blocks for as long as it takes to read everything. On error no file is left.
pub fn pack(root: &Path, image: &Path) -> Result<u64, StorageError> {
    let failed = |path: &Path, source| StorageError::Io {
        action: "pack into an image",
        path: path.to_owned(),
        source,
    };
    let metadata = fs::symlink_metadata(root).map_err(|error| failed(root, error))?;
    let top = node(root, &metadata).map_err(|error| failed(root, error))?;
    let mut packed = Packed { image: Image::new(top), files: HashMap::new(), seen: HashMap::new() };
    let mut directories = vec![(root.to_owned(), Image::ROOT)];
    while let Some((directory, id)) = directories.pop() {
        packed
            .add_directory(&directory, id, &mut directories)
            .map_err(|(path, error)| failed(&path, error))?;
    }
    let written = File::options()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(image)
        .and_then(|mut file| packed.image.write(&mut file, |id| packed.open(id)));
    written.map_err(|error| {
        let _ = fs::remove_file(image);
        failed(root, error)
    })
}

/// An image in the making.
struct Packed {
    image: Image,
    /// Where regular files come from.
    files: HashMap<NodeId, PathBuf>,
    /// Files with several names, by device and inode.
    seen: HashMap<(u64, u64), NodeId>,
}

type Failure = (PathBuf, io::Error);

impl Packed {
    /// Adds all that is in a directory, and the directories in it to those that are still to be looked into.
    fn add_directory(
        &mut self,
        directory: &Path,
        id: NodeId,
        directories: &mut Vec<(PathBuf, NodeId)>,
    ) -> Result<(), Failure> {
        let listed = fs::read_dir(directory).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut entries = listed.map_err(|error| (directory.to_owned(), error))?;
        // For the same tree the same image.
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let added = self.add(&path, entry.file_name().as_bytes(), id);
            if let Some(below) = added.map_err(|error| (path.clone(), error))? {
                directories.push((path, below));
            }
        }
        Ok(())
    }

    /// Adds a file; its number, if it is a directory.
    fn add(&mut self, path: &Path, name: &[u8], parent: NodeId) -> io::Result<Option<NodeId>> {
        let metadata = fs::symlink_metadata(path)?;
        let key = (metadata.dev(), metadata.ino());
        let has_names = metadata.nlink() > 1 && !metadata.is_dir();
        if let Some(&first) = self.seen.get(&key).filter(|_| has_names) {
            self.image.link(parent, name, first)?;
            return Ok(None);
        }
        let id = self.image.add(parent, name, node(path, &metadata)?)?;
        if has_names {
            self.seen.insert(key, id);
        }
        if metadata.is_file() {
            self.files.insert(id, path.to_owned());
        }
        Ok(metadata.is_dir().then_some(id))
    }

    fn open(&self, id: NodeId) -> io::Result<File> {
        let no_follow = OFlags::NOFOLLOW.bits().cast_signed();
        File::options().read(true).custom_flags(no_follow).open(&self.files[&id])
    }
}

fn node(path: &Path, metadata: &Metadata) -> io::Result<Node> {
    let kind = metadata.file_type();
    let device = (major(metadata.rdev()), minor(metadata.rdev()));
    let kind = if kind.is_dir() {
        Kind::Directory
    } else if kind.is_symlink() {
        Kind::Symlink(fs::read_link(path)?.as_os_str().as_bytes().to_vec())
    } else if kind.is_char_device() {
        Kind::CharDevice(device.0, device.1)
    } else if kind.is_block_device() {
        Kind::BlockDevice(device.0, device.1)
    } else if kind.is_fifo() {
        Kind::Fifo
    } else if kind.is_socket() {
        Kind::Socket
    } else {
        Kind::File(metadata.len())
    };
    Ok(Node {
        mode: u16::try_from(metadata.mode() & 0o7777).expect("twelve bits"),
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: metadata.mtime(),
        kind,
        attributes: attributes(path)?,
    })
}

/// The extended attributes that mean something in a guest, too.
fn attributes(path: &Path) -> io::Result<Vec<Attribute>> {
    let mut names = Vec::with_capacity(XATTR_SIZE_MAX);
    match llistxattr(path, spare_capacity(&mut names)) {
        Ok(_) => {}
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        Err(errno) => return Err(errno.into()),
    }
    let mut attributes = Vec::new();
    for name in names.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        if OF_OVERLAYS.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        let mut value = Vec::with_capacity(XATTR_SIZE_MAX);
        lgetxattr(path, name, spare_capacity(&mut value))?;
        value.shrink_to_fit();
        attributes.extend(Attribute::new(name, value));
    }
    Ok(attributes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use super::*;

    #[test]
    fn tree_comes_out_of_its_image_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        fs::create_dir_all(root.join("usr/bin")).unwrap();
        fs::write(root.join("usr/bin/tool"), vec![7; 9000]).unwrap();
        fs::hard_link(root.join("usr/bin/tool"), root.join("usr/bin/twin")).unwrap();
        symlink("/etc/passwd", root.join("link")).unwrap();
        fs::write(root.join("empty"), "").unwrap();
        let (image, again) = (directory.path().join("image"), directory.path().join("again"));
        let size = pack(&root, &image).unwrap();
        assert_eq!((fs::metadata(&image).unwrap().len(), size % 512), (size, 0));
        pack(&root, &again).unwrap();
        assert!(fs::read(&image).unwrap() == fs::read(&again).unwrap(), "another image");

        let out = directory.path().join("out");
        let extract = format!("--extract={}", out.display());
        let fsck = Command::new("fsck.erofs").arg(extract).arg(&image).output().unwrap();
        assert!(fsck.status.success(), "{}", String::from_utf8_lossy(&fsck.stderr));
        assert_eq!(fs::read(out.join("usr/bin/twin")).unwrap(), vec![7; 9000]);
        assert_eq!(fs::read_link(out.join("link")).unwrap(), Path::new("/etc/passwd"));
        assert_eq!(fs::metadata(out.join("empty")).unwrap().len(), 0);
    }

    #[test]
    fn image_is_never_put_in_place_of_a_file_and_none_is_left_of_what_fails() {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        fs::write(&image, "mine").unwrap();
        assert!(pack(directory.path(), &image).is_err());
        assert!(pack(&directory.path().join("missing"), &directory.path().join("new")).is_err());
        assert!(!directory.path().join("new").exists());
    }

    #[test]
    fn attributes_are_kept_but_for_those_of_overlays() {
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        let set = |name: &str| {
            rustix::fs::setxattr(&file, name, b"value", rustix::fs::XattrFlags::empty())
        };
        if set("user.kept") == Err(Errno::NOTSUP) {
            eprintln!("left out: /var/tmp has no extended attributes");
            return;
        }
        set("user.overlay.origin").unwrap();
        let kept = Attribute::new(b"user.kept", b"value".to_vec()).unwrap();
        assert_eq!(attributes(&file).unwrap(), [kept]);
    }
}
