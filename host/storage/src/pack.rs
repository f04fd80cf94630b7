//! A root file system as one read-only image, for guests that no directory can be shared with.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use kata_erofs::{Attribute, Image, Kind, Node, NodeId};
use rustix::buffer::spare_capacity;
use rustix::fs::{FileType, getxattr, listxattr, major, minor};
use rustix::io::Errno;

use crate::StorageError;
use crate::tree::{Found, Tree};

/// Attributes of an overlay that mean something to its own layers only.
const OF_OVERLAYS: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// The longest list of attributes, and the longest value of one, in bytes (xattr(7)).
const XATTR_SIZE_MAX: usize = 65536;

/// The file system of the images, for mount(2).
pub const IMAGE_TYPE: &str = "erofs";

/// Writes all that is in the directory `root` to a new file `image`, which only root can write to,
/// and everybody can read who gets to it. Returns the file, for its name may lead to another one
/// soon. It holds the files as they are: owners, times, attributes, hard links, device nodes.
///
/// Blocks for as long as it takes to read everything. On error no file is left but one that was
/// there before.
pub fn pack(root: &Path, image: &Path) -> Result<File, StorageError> {
    let failed = |path: &Path, source| StorageError::Io {
        action: "pack into an image",
        path: path.to_owned(),
        source,
    };
    let tree = Tree::of_directory(root).map_err(|error| failed(root, error))?;
    let top = tree.find(Path::new("")).and_then(|found| node(&found));
    let top = top.map_err(|error| failed(root, error))?;
    let (files, seen) = (HashMap::new(), HashMap::new());
    let mut packed = Packed { tree, image: Image::new(top), files, seen };
    let mut directories = vec![(PathBuf::new(), Image::ROOT)];
    while let Some((directory, id)) = directories.pop() {
        let added = packed.add_directory(&directory, id, &mut directories);
        added.map_err(|(below, error)| failed(&packed.tree.path(&below), error))?;
    }
    let new = File::options().write(true).create_new(true).mode(0o644).open(image);
    let mut file = new.map_err(|error| failed(image, error))?;
    if let Err(error) = packed.image.write(&mut file, |id| packed.open(id)) {
        let _ = fs::remove_file(image);
        return Err(failed(root, error));
    }
    Ok(file)
}

/// An image in the making.
struct Packed {
    tree: Tree,
    image: Image,
    /// Where regular files come from, and which they are.
    files: HashMap<NodeId, (PathBuf, (u64, u64))>,
    /// Files with several names, by their identity.
    seen: HashMap<(u64, u64), NodeId>,
}

/// Where in the tree, and why.
type Failure = (PathBuf, io::Error);

impl Packed {
    /// Adds all that is in a directory, and the directories in it to those that are still to be
    /// looked into.
    fn add_directory(
        &mut self,
        directory: &Path,
        id: NodeId,
        directories: &mut Vec<(PathBuf, NodeId)>,
    ) -> Result<(), Failure> {
        let listed = self.tree.find(directory).and_then(|found| found.names());
        let mut names = listed.map_err(|error| (directory.to_owned(), error))?;
        // For the same tree the same image.
        names.sort();
        for name in names {
            let below = directory.join(&name);
            let added = self.add(&below, name.as_bytes(), id);
            if let Some(directory) = added.map_err(|error| (below.clone(), error))? {
                directories.push((below, directory));
            }
        }
        Ok(())
    }

    /// Adds a file; its number, if it is a directory.
    fn add(&mut self, below: &Path, name: &[u8], parent: NodeId) -> io::Result<Option<NodeId>> {
        let found = self.tree.find(below)?;
        let is_directory = found.kind() == FileType::Directory;
        let has_names = found.stat().st_nlink > 1 && !is_directory;
        if let Some(&first) = self.seen.get(&found.identity()).filter(|_| has_names) {
            self.image.link(parent, name, first)?;
            return Ok(None);
        }
        let id = self.image.add(parent, name, node(&found)?)?;
        if has_names {
            self.seen.insert(found.identity(), id);
        }
        if found.kind() == FileType::RegularFile {
            self.files.insert(id, (below.to_owned(), found.identity()));
        }
        Ok(is_directory.then_some(id))
    }

    fn open(&self, id: NodeId) -> io::Result<File> {
        let (below, identity) = &self.files[&id];
        let found = self.tree.find(below)?;
        if found.identity() != *identity {
            let what = format!("{} was replaced meanwhile", self.tree.path(below).display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        found.open()
    }
}

fn node(found: &Found) -> io::Result<Node> {
    let stat = found.stat();
    let device = (major(stat.st_rdev), minor(stat.st_rdev));
    let kind = match found.kind() {
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink(found.target()?),
        FileType::CharacterDevice => Kind::CharDevice(device.0, device.1),
        FileType::BlockDevice => Kind::BlockDevice(device.0, device.1),
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        _ => Kind::File(stat.st_size.cast_unsigned()),
    };
    Ok(Node {
        mode: u16::try_from(stat.st_mode & 0o7777).expect("twelve bits"),
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: stat.st_mtime,
        kind,
        attributes: attributes(&found.own_path())?,
    })
}

/// The extended attributes that mean something in a guest, too. The path leads to the file itself,
/// also where that is a symbolic link.
pub(crate) fn attributes(path: &Path) -> io::Result<Vec<Attribute>> {
    let mut names = Vec::with_capacity(XATTR_SIZE_MAX);
    match listxattr(path, spare_capacity(&mut names)) {
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
        getxattr(path, name, spare_capacity(&mut value))?;
        value.shrink_to_fit();
        attributes.extend(Attribute::new(name, value));
    }
    Ok(attributes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};
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
        let packed = pack(&root, &image).unwrap().metadata().unwrap();
        assert_eq!(packed.ino(), fs::metadata(&image).unwrap().ino());
        assert_eq!(packed.len() % 512, 0);
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
    fn file_that_was_replaced_while_it_was_packed_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("file"), "mine").unwrap();
        fs::write(directory.path().join("other"), "other").unwrap();
        let tree = Tree::of_directory(directory.path()).unwrap();
        let top = node(&tree.find(Path::new("")).unwrap()).unwrap();
        let (files, seen) = (HashMap::new(), HashMap::new());
        let mut packed = Packed { tree, image: Image::new(top), files, seen };
        packed.add(Path::new("file"), b"file", Image::ROOT).unwrap();
        let id = *packed.files.keys().next().unwrap();
        packed.open(id).unwrap();
        fs::rename(directory.path().join("other"), directory.path().join("file")).unwrap();
        assert!(packed.open(id).unwrap_err().to_string().contains("was replaced"));
        fs::remove_file(directory.path().join("file")).unwrap();
        symlink("/etc/passwd", directory.path().join("file")).unwrap();
        assert!(packed.open(id).is_err());
    }

    #[test]
    fn image_is_never_put_in_place_of_a_file_and_none_is_left_of_what_fails() {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        fs::write(&image, "mine").unwrap();
        assert!(pack(directory.path(), &image).is_err());
        assert_eq!(fs::read(&image).unwrap(), b"mine");
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
