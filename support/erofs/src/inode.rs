//! Inodes, in the extended form: 64 bytes, with room for any owner, size and time.

use std::io;

/// Inodes begin at multiples of this.
pub(crate) const SLOT: usize = 32;

const INODE: usize = 64;
/// An extended inode (bit 0 set) whose data is in whole blocks (layout 0).
const FORMAT: u16 = 1;

/// Before the attributes of an inode.
const ATTRIBUTES_HEAD: usize = 12;
/// Before each attribute.
const ATTRIBUTE_HEAD: usize = 4;

/// Prefixes of attributes' names, with the numbers that stand for them.
const PREFIXES: [(&str, u8); 5] = [
    ("user.", 1),
    ("system.posix_acl_access", 2),
    ("system.posix_acl_default", 3),
    ("trusted.", 4),
    ("security.", 6),
];

/// A file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The low twelve bits of the mode.
    pub mode: u16,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// When it was changed, in seconds since the epoch.
    pub mtime: i64,
    /// What it is.
    pub kind: Kind,
    /// Its extended attributes.
    pub attributes: Vec<Attribute>,
}

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file of this size in bytes.
    File(u64),
    /// A symbolic link with this target, which is not empty.
    Symlink(Vec<u8>),
    /// A character device with major and minor number.
    CharDevice(u32, u32),
    /// A block device with major and minor number.
    BlockDevice(u32, u32),
    /// A fifo.
    Fifo,
    /// A socket, to which nobody listens.
    Socket,
}

/// An extended attribute (xattr(7)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribute {
    number: u8,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Attribute {
    /// The attribute `name`, with its prefix; `None` for one of a kind that EROFS does not have.
    #[must_use]
    pub fn new(name: &[u8], value: Vec<u8>) -> Option<Self> {
        let known = |(prefix, number): &(&str, u8)| {
            Some((*number, name.strip_prefix(prefix.as_bytes())?.to_vec()))
        };
        let (number, name) = PREFIXES.iter().find_map(known)?;
        Some(Self { number, name, value })
    }

    fn length(&self) -> usize {
        (ATTRIBUTE_HEAD + self.name.len() + self.value.len()).next_multiple_of(4)
    }
}

impl Kind {
    /// How a directory marks it.
    pub(crate) fn mark(&self) -> u8 {
        match self {
            Self::File(_) => 1,
            Self::Directory => 2,
            Self::CharDevice(..) => 3,
            Self::BlockDevice(..) => 4,
            Self::Fifo => 5,
            Self::Socket => 6,
            Self::Symlink(_) => 7,
        }
    }

    /// How the mode marks it (inode(7)).
    fn mode(&self) -> u16 {
        match self {
            Self::Fifo => 0o010_000,
            Self::CharDevice(..) => 0o020_000,
            Self::Directory => 0o040_000,
            Self::BlockDevice(..) => 0o060_000,
            Self::File(_) => 0o100_000,
            Self::Symlink(_) => 0o120_000,
            Self::Socket => 0o140_000,
        }
    }
}

/// Where an inode's data is, and what else is known only when the image is laid out.
pub(crate) struct Place {
    pub(crate) shown: u32,
    pub(crate) size: u64,
    pub(crate) block: u32,
    pub(crate) links: u32,
}

impl Node {
    /// A file of root's without anything special, changed at the epoch.
    #[must_use]
    pub fn plain(mode: u16, kind: Kind) -> Self {
        Self { mode, uid: 0, gid: 0, mtime: 0, kind, attributes: Vec::new() }
    }

    pub(crate) fn check(&self) -> io::Result<()> {
        let fits = |attribute: &Attribute| {
            attribute.name.len() <= usize::from(u8::MAX)
                && attribute.value.len() <= usize::from(u16::MAX)
        };
        // The count of words is a u16.
        if !self.attributes.iter().all(fits) || self.attributes_length() / 4 > 0xffff {
            return Err(io::Error::other("its extended attributes do not fit into an EROFS image"));
        }
        match &self.kind {
            Kind::Symlink(target) if target.is_empty() || target.len() >= crate::BLOCK => {
                Err(io::Error::other("a symbolic link's target has 1 to 4095 bytes"))
            }
            _ => Ok(()),
        }
    }

    /// With their head; 0 if there are none.
    fn attributes_length(&self) -> usize {
        match self.attributes.as_slice() {
            [] => 0,
            all => ATTRIBUTES_HEAD + all.iter().map(Attribute::length).sum::<usize>(),
        }
    }

    /// How many slots it takes.
    pub(crate) fn slots(&self) -> u64 {
        (INODE + self.attributes_length()).div_ceil(SLOT) as u64
    }

    /// Appends the inode, in whole slots.
    pub(crate) fn write(&self, table: &mut Vec<u8>, place: &Place) {
        let end = table.len() + usize::try_from(self.slots()).expect("it is a few words") * SLOT;
        let words = match self.attributes_length() {
            0 => 0,
            length => 1 + (length - ATTRIBUTES_HEAD) / 4,
        };
        let words = u16::try_from(words).expect("it was checked when the file was added");
        let data = match self.kind {
            Kind::CharDevice(major, minor) | Kind::BlockDevice(major, minor) => {
                // As the kernel encodes a device's number (new_encode_dev).
                (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
            }
            _ => place.block,
        };
        table.extend(FORMAT.to_le_bytes());
        table.extend(words.to_le_bytes());
        table.extend((self.kind.mode() | (self.mode & 0o7777)).to_le_bytes());
        table.extend([0; 2]);
        table.extend(place.size.to_le_bytes());
        table.extend(data.to_le_bytes());
        table.extend(place.shown.to_le_bytes());
        table.extend(self.uid.to_le_bytes());
        table.extend(self.gid.to_le_bytes());
        table.extend(self.mtime.to_le_bytes());
        table.extend([0; 4]);
        table.extend(place.links.to_le_bytes());
        table.extend([0; 16]);
        if !self.attributes.is_empty() {
            table.extend([0; ATTRIBUTES_HEAD]);
        }
        for attribute in &self.attributes {
            let Attribute { number, name, value } = attribute;
            let before = table.len();
            table.extend([u8::try_from(name.len()).unwrap_or(u8::MAX), *number]);
            table.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_le_bytes());
            table.extend(name);
            table.extend(value);
            table.resize(before + attribute.length(), 0);
        }
        table.resize(end, 0);
    }
}
