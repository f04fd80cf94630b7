//! The image as EROFS, with times at the epoch.

use std::collections::BTreeMap;
use std::io;

use kata_erofs::{Image, Kind as ErofsKind, Node as ErofsNode, NodeId};

use crate::tree::{Kind, Node, Tree};

/// The image of a tree whose root directory belongs to root with mode 0755.
pub(crate) fn image(tree: &Tree) -> io::Result<Vec<u8>> {
    let mut image = Image::new(ErofsNode::plain(0o755, ErofsKind::Directory));
    let mut directories = BTreeMap::from([("", Image::ROOT)]);
    let mut files: BTreeMap<NodeId, &[u8]> = BTreeMap::new();
    for (path, node) in tree.iter() {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let id = image.add(directories[parent], name.as_bytes(), erofs_node(node))?;
        match &node.kind {
            Kind::Directory => drop(directories.insert(path, id)),
            Kind::File(content) => drop(files.insert(id, content)),
            _ => {}
        }
    }
    let mut bytes = Vec::new();
    image.write(&mut bytes, |id| Ok(files[&id]))?;
    Ok(bytes)
}

fn erofs_node(node: &Node) -> ErofsNode {
    let kind = match &node.kind {
        Kind::Directory => ErofsKind::Directory,
        Kind::File(content) => ErofsKind::File(content.len() as u64),
        Kind::Symlink(target) => ErofsKind::Symlink(target.clone().into_bytes()),
        Kind::CharDevice(major, minor) => ErofsKind::CharDevice(*major, *minor),
    };
    ErofsNode { uid: node.uid, gid: node.gid, ..ErofsNode::plain(node.mode, kind) }
}
