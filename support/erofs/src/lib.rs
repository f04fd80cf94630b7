//! A writer of EROFS images (Linux, Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h):
//! uncompressed, every file in blocks of its own. The same tree gives the same bytes.
//!
//! ```text
//!   block 0            1 …                                     …
//!   │ superblock │ inodes, each with its extended attributes │ directories, links and files, each from a block's beginning │
//! ```
//!
//! Files' contents are asked for one after the other while the image is written, so that they need
//! not be in memory.

mod inode;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

pub use inode::{Attribute, Kind, Node};

const BLOCK: usize = 4096;
const BLOCK_BITS: u8 = 12;

const SUPERBLOCK: usize = 1024;
const MAGIC: u32 = 0xE0F5_E1E2;
/// The block at which inodes begin; their numbers count slots from there.
const META_BLOCK: u32 = 1;

const DIRENT: usize = 12;

/// The longest name of a file.
const MAX_NAME: usize = 255;

/// An image in the making.
#[derive(Debug)]
pub struct Image {
    inodes: Vec<Inode>,
}

/// A file of an image: 0 is its root, the others count up in the order in which they were added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(usize);

#[derive(Debug)]
struct Inode {
    node: Node,
    /// Names in it with their inodes; only for directories, and with `.` and `..`.
    entries: BTreeMap<Vec<u8>, NodeId>,
    links: u32,
}

/// Where things are.
struct Layout {
    /// What is written for each inode that is no regular file.
    contents: Vec<Vec<u8>>,
    /// The size of each inode's data in bytes.
    sizes: Vec<u64>,
    /// The block at which each inode's data begins.
    blocks: Vec<u32>,
    /// Blocks of inodes, and of everything.
    meta_blocks: usize,
    all_blocks: u32,
}

impl Image {
    /// An image whose root directory is `root`, of which the kind is not looked at.
    #[must_use]
    pub fn new(root: Node) -> Self {
        let node = Node { kind: Kind::Directory, ..root };
        let mut root = Inode { node, entries: BTreeMap::new(), links: 2 };
        root.entries.insert(b".".to_vec(), Self::ROOT);
        root.entries.insert(b"..".to_vec(), Self::ROOT);
        Self { inodes: vec![root] }
    }

    /// The root directory.
    pub const ROOT: NodeId = NodeId(0);

    /// Adds a file.
    ///
    /// # Errors
    /// When `parent` is no directory, the name cannot be one or is taken, or the file's extended
    /// attributes are too many.
    pub fn add(&mut self, parent: NodeId, name: &[u8], node: Node) -> io::Result<NodeId> {
        node.check()?;
        let id = NodeId(self.inodes.len());
        self.enter(parent, name, id)?;
        let mut inode = Inode { node, entries: BTreeMap::new(), links: 1 };
        if inode.node.kind == Kind::Directory {
            inode.links = 2;
            inode.entries.insert(b".".to_vec(), id);
            inode.entries.insert(b"..".to_vec(), parent);
            self.inodes[parent.0].links += 1;
        }
        self.inodes.push(inode);
        Ok(id)
    }

    /// Gives a file that is no directory one more name.
    ///
    /// # Errors
    /// As for [`Image::add`], and when it is a directory.
    pub fn link(&mut self, parent: NodeId, name: &[u8], file: NodeId) -> io::Result<()> {
        if self.inodes[file.0].node.kind == Kind::Directory {
            return Err(io::Error::other("a directory has one name only"));
        }
        self.enter(parent, name, file)?;
        self.inodes[file.0].links += 1;
        Ok(())
    }

    fn enter(&mut self, parent: NodeId, name: &[u8], id: NodeId) -> io::Result<()> {
        let shown = String::from_utf8_lossy(name);
        if name.is_empty() || name.len() > MAX_NAME || name.contains(&b'/') || name.contains(&0) {
            return Err(io::Error::other(format!("{shown:?} is no file's name")));
        }
        let parent = &mut self.inodes[parent.0];
        if parent.node.kind != Kind::Directory {
            return Err(io::Error::other(format!("the parent of {shown:?} is no directory")));
        }
        if parent.entries.contains_key(name) {
            return Err(io::Error::other(format!("there is a {shown:?} already")));
        }
        parent.entries.insert(name.to_vec(), id);
        Ok(())
    }

    /// Writes the image, whose size in bytes, a multiple of 4096, is returned. `content` is asked
    /// for the content of each regular file.
    ///
    /// # Errors
    /// When `content` fails, or gives less than the file's size; of more the rest is left out. When
    /// the image is larger than 16 TiB.
    pub fn write<R: Read>(
        &self,
        out: &mut impl Write,
        mut content: impl FnMut(NodeId) -> io::Result<R>,
    ) -> io::Result<u64> {
        let layout = self.layout()?;
        let mut first = vec![0; BLOCK];
        first[SUPERBLOCK..][..128].copy_from_slice(&self.superblock(&layout));
        out.write_all(&first)?;
        let mut table = Vec::with_capacity(layout.meta_blocks * BLOCK);
        for (number, inode) in self.inodes.iter().enumerate() {
            let (size, block) = (layout.sizes[number], layout.blocks[number]);
            // The number that stat(2) shows.
            let shown = u32::try_from(number + 1).map_err(io::Error::other)?;
            inode.node.write(&mut table, &inode::Place { shown, size, block, links: inode.links });
        }
        table.resize(layout.meta_blocks * BLOCK, 0);
        out.write_all(&table)?;
        for (number, inode) in self.inodes.iter().enumerate() {
            let size = layout.sizes[number];
            if let Kind::File(_) = inode.node.kind {
                let copied = io::copy(&mut content(NodeId(number))?.take(size), out)?;
                if copied < size {
                    return Err(io::Error::other("a file has become shorter while it was read"));
                }
            } else {
                out.write_all(&layout.contents[number])?;
            }
            let rest = size.next_multiple_of(BLOCK as u64) - size;
            io::copy(&mut io::repeat(0).take(rest), out)?;
        }
        Ok(u64::from(layout.all_blocks) * BLOCK as u64)
    }

    fn layout(&self) -> io::Result<Layout> {
        let mut slots = Vec::with_capacity(self.inodes.len());
        let mut next = 0;
        for inode in &self.inodes {
            slots.push(next);
            next += inode.node.slots();
        }
        let meta_bytes = usize::try_from(next).map_err(io::Error::other)? * inode::SLOT;
        let meta_blocks = meta_bytes.div_ceil(BLOCK);
        let contents: Vec<Vec<u8>> = self
            .inodes
            .iter()
            .map(|inode| match &inode.node.kind {
                Kind::Directory => self.directory(inode, &slots),
                Kind::Symlink(target) => target.clone(),
                _ => Vec::new(),
            })
            .collect();
        let size = |(inode, content): (&Inode, &Vec<u8>)| match inode.node.kind {
            Kind::File(size) => size,
            _ => content.len() as u64,
        };
        let sizes: Vec<u64> = self.inodes.iter().zip(&contents).map(size).collect();
        let too_large = |_| io::Error::other("an EROFS image holds 16 TiB at most");
        let mut block = u64::from(META_BLOCK) + meta_blocks as u64;
        let mut blocks = Vec::with_capacity(sizes.len());
        for size in &sizes {
            blocks.push(u32::try_from(block).map_err(too_large)?);
            block = block.saturating_add(size.div_ceil(BLOCK as u64));
        }
        let all_blocks = u32::try_from(block).map_err(too_large)?;
        Ok(Layout { contents, sizes, blocks, meta_blocks, all_blocks })
    }

    /// A directory's blocks: in each, entries sorted by name, then their names. The last is not
    /// filled up.
    fn directory(&self, inode: &Inode, slots: &[u64]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut block: Vec<(&[u8], u64, u8)> = Vec::new();
        let mut used = 0;
        for (name, id) in &inode.entries {
            if used + DIRENT + name.len() > BLOCK {
                append_dirents(&mut bytes, &block);
                bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
                block.clear();
                used = 0;
            }
            used += DIRENT + name.len();
            block.push((name, slots[id.0], self.inodes[id.0].node.kind.mark()));
        }
        append_dirents(&mut bytes, &block);
        bytes
    }

    fn superblock(&self, layout: &Layout) -> [u8; 128] {
        let mut bytes = [0; 128];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &MAGIC.to_le_bytes());
        put(12, &[BLOCK_BITS]);
        put(16, &(self.inodes.len() as u64).to_le_bytes());
        put(36, &layout.all_blocks.to_le_bytes());
        put(40, &META_BLOCK.to_le_bytes());
        put(64, b"kata-containers");
        bytes
    }
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
