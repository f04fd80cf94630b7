//! The image as ext4, for kernels that have nothing else built in.

use std::collections::BTreeMap;
use std::io;

use mkext4::sink::VecSink;
use mkext4::{FsBuilder, Meta, Options, ROOT, SpecialKind};

use crate::tree::{Kind, Tree};

/// A fixed name of the file system: it decides the order of large directories.
const UUID: [u8; 16] = *b"kata-containers\0";
/// What the file system's own tables and its journal take, beside the files.
const OVERHEAD: u64 = 6 << 20;
/// The smallest in which the journal has its place.
const SMALLEST: u64 = 16 << 20;
const BLOCK: u64 = 4096;
const JOURNAL_BLOCKS: u32 = 1024;

/// The image of a tree, with times at the epoch.
pub(crate) fn image(tree: &Tree) -> io::Result<Vec<u8>> {
    let content: u64 = tree
        .iter()
        .map(|(_, node)| match &node.kind {
            Kind::File(content) => (content.len() as u64).next_multiple_of(BLOCK) + BLOCK,
            _ => BLOCK,
        })
        .sum();
    let size = (content + content / 8 + OVERHEAD).max(SMALLEST).next_multiple_of(1 << 20);
    let mut options = Options::new(size, UUID, 0);
    options.label = Some("kata-containers".to_owned());
    options.reserved_percent = 0;
    // Nobody writes to it, so that the smallest journal does.
    options.journal_blocks = Some(JOURNAL_BLOCKS);
    let mut builder = FsBuilder::new(options).map_err(io::Error::other)?;
    let mut directories = BTreeMap::from([("", ROOT)]);
    let mut files = Vec::new();
    for (path, node) in tree.iter() {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = directories[parent];
        let meta = Meta::new(node.mode, node.uid, node.gid, (0, 0));
        let made = match &node.kind {
            Kind::Directory => builder.mkdir(parent, name, meta).inspect(|&handle| {
                directories.insert(path, handle);
            }),
            Kind::File(content) => {
                builder.file(parent, name, meta, content.len() as u64).inspect(|&handle| {
                    files.push((handle, content));
                })
            }
            Kind::Symlink(target) => builder.symlink(parent, name, target, meta),
            Kind::CharDevice(major, minor) => {
                let kind = SpecialKind::Char { major: *major, minor: *minor };
                builder.mknod(parent, name, meta, kind)
            }
        };
        made.map_err(io::Error::other)?;
    }
    let layout = builder.seal().map_err(io::Error::other)?;
    let mut sink = VecSink::default();
    let mut writer = layout.writer(&mut sink).map_err(io::Error::other)?;
    // A file without bytes has no place on the disk.
    for (handle, content) in files.into_iter().filter(|(_, content)| !content.is_empty()) {
        writer.fill(handle, &mut &content[..]).map_err(io::Error::other)?;
    }
    writer.finish().map_err(io::Error::other)?;
    Ok(sink.buf)
}
