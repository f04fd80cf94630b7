//! A writer of EROFS images (Linux, Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h): uncompressed, every file in
//! blocks of its own, times at the epoch.
//!
//! ```text
//!   block 0            1 …                    …
//!   │ superblock │ inodes, 32 bytes each │ directories and files, each from a block's beginning │
//! ```

use std::collections::BTreeMap;
use std::io;

use crate::tree::{Kind, Node, Tree};

const BLOCK: usize = 4096;
const BLOCK_BITS: u8 = 12;

const SUPERBLOCK: usize = 1024;
const MAGIC: u32 = 0xE0F5_E1E2;
/// The block at which inodes begin; their numbers count slots from there.
const META_BLOCK: u32 = 1;
/// A compact inode is one slot.
const SLOT: usize = 32;
/// A compact inode (bit 0 clear) whose data is in whole blocks (layout 0).
const FORMAT: u16 = 0;

const DIRENT: usize = 12;

/// How each kind is marked: in the mode, and in a directory.
fn marks(kind: &Kind) -> (u16, u8) {
    match kind {
        Kind::File(_) => (0o100_000, 1),
        Kind::Directory => (0o040_000, 2),
        Kind::CharDevice(..) => (0o020_000, 3),
        Kind::Symlink(_) => (0o120_000, 7),
    }
}

/// An inode in the making.
struct Inode<'a> {
    node: &'a Node,
    /// Names in it with their inode's number and mark; only for directories, and with `.` and `..`.
    entries: BTreeMap<&'a [u8], (u64, u8)>,
    links: u16,
}

/// The image of a tree whose root directory belongs to root with mode 0755.
///
/// # Errors
/// When a file is larger than 4 GiB, or belongs to a user or group beyond 65535.
pub(crate) fn image(tree: &Tree) -> io::Result<Vec<u8>> {
    let root = Node::new(0o755, Kind::Directory);
    let inodes = inodes(tree, &root)?;
    let meta_blocks = (inodes.len() * SLOT).div_ceil(BLOCK);
    let mut data: Vec<u8> = Vec::new();
    let mut table = Vec::with_capacity(meta_blocks * BLOCK);
    for (number, inode) in inodes.iter().enumerate() {
        let first = META_BLOCK as usize + meta_blocks + data.len() / BLOCK;
        let size = match &inode.node.kind {
            Kind::File(content) => append(&mut data, content),
            Kind::Symlink(target) => append(&mut data, target.as_bytes()),
            Kind::Directory => append(&mut data, &directory(&inode.entries)),
            Kind::CharDevice(..) => 0,
        };
        let place = match inode.node.kind {
            // As the kernel encodes a device's number (new_encode_dev).
            Kind::CharDevice(major, minor) => {
                (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
            }
            _ => u32::try_from(first).map_err(io::Error::other)?,
        };
        table.extend(inode_bytes(number, inode, size, place)?);
    }
    table.resize(meta_blocks * BLOCK, 0);
    let blocks = META_BLOCK as usize + meta_blocks + data.len() / BLOCK;
    let mut image = vec![0; BLOCK];
    image[SUPERBLOCK..][..128].copy_from_slice(&superblock(inodes.len(), blocks)?);
    image.extend(table);
    image.extend(data);
    Ok(image)
}

/// The root first, then the tree's own, numbered in order.
fn inodes<'a>(tree: &'a Tree, root: &'a Node) -> io::Result<Vec<Inode<'a>>> {
    let mut inodes = vec![Inode { node: root, entries: BTreeMap::new(), links: 2 }];
    let mut numbers: BTreeMap<&str, usize> = BTreeMap::from([("", 0)]);
    let directory_mark = marks(&Kind::Directory).1;
    inodes[0].entries.extend([(&b"."[..], (0, directory_mark)), (&b".."[..], (0, directory_mark))]);
    for (path, node) in tree.iter() {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = numbers[parent];
        let number = inodes.len();
        let mut inode = Inode { node, entries: BTreeMap::new(), links: 1 };
        if node.kind == Kind::Directory {
            numbers.insert(path, number);
            inode.links = 2;
            inode.entries.insert(b".", (number as u64, directory_mark));
            inode.entries.insert(b"..", (parent as u64, directory_mark));
            let links = &mut inodes[parent].links;
            *links = links.checked_add(1).ok_or_else(|| too_much("directories in", path))?;
        }
        inodes[parent].entries.insert(name.as_bytes(), (number as u64, marks(&node.kind).1));
        inodes.push(inode);
    }
    Ok(inodes)
}

/// Appends content in whole blocks and gives its length.
fn append(data: &mut Vec<u8>, content: &[u8]) -> usize {
    data.extend_from_slice(content);
    data.resize(data.len().next_multiple_of(BLOCK), 0);
    content.len()
}

/// A directory's blocks: in each, entries sorted by name, then their names. The last is not filled up.
fn directory(entries: &BTreeMap<&[u8], (u64, u8)>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut block: Vec<(&[u8], u64, u8)> = Vec::new();
    let mut used = 0;
    for (&name, &(number, mark)) in entries {
        if used + DIRENT + name.len() > BLOCK {
            append_dirents(&mut bytes, &block);
            bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
            block.clear();
            used = 0;
        }
        used += DIRENT + name.len();
        block.push((name, number, mark));
    }
    append_dirents(&mut bytes, &block);
    bytes
}

fn append_dirents(bytes: &mut Vec<u8>, block: &[(&[u8], u64, u8)]) {
    let mut name_at = block.len() * DIRENT;
    for (name, number, mark) in block {
        bytes.extend(number.to_le_bytes());
        bytes.extend(u16::try_from(name_at).expect("a block is 4096 bytes").to_le_bytes());
        bytes.extend([*mark, 0]);
        name_at += name.len();
    }
    for (name, ..) in block {
        bytes.extend_from_slice(name);
    }
}

fn inode_bytes(
    number: usize,
    inode: &Inode<'_>,
    size: usize,
    place: u32,
) -> io::Result<[u8; SLOT]> {
    let node = inode.node;
    let id = |id: u32| u16::try_from(id).map_err(|_| too_much("the owner of", "a file"));
    let mut bytes = [0; SLOT];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, &FORMAT.to_le_bytes());
    put(4, &(marks(&node.kind).0 | node.mode).to_le_bytes());
    put(6, &inode.links.to_le_bytes());
    put(8, &u32::try_from(size).map_err(|_| too_much("the size of", "a file"))?.to_le_bytes());
    put(16, &place.to_le_bytes());
    put(20, &u32::try_from(number + 1).map_err(io::Error::other)?.to_le_bytes());
    put(24, &id(node.uid)?.to_le_bytes());
    put(26, &id(node.gid)?.to_le_bytes());
    Ok(bytes)
}

fn superblock(inodes: usize, blocks: usize) -> io::Result<[u8; 128]> {
    let mut bytes = [0; 128];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, &MAGIC.to_le_bytes());
    put(12, &[BLOCK_BITS]);
    put(16, &(inodes as u64).to_le_bytes());
    put(36, &u32::try_from(blocks).map_err(io::Error::other)?.to_le_bytes());
    put(40, &META_BLOCK.to_le_bytes());
    put(64, b"kata-containers");
    Ok(bytes)
}

fn too_much(what: &str, whose: &str) -> io::Error {
    io::Error::other(format!("{what} {whose} does not fit into an EROFS image"))
}
