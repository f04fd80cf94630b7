//! The files of an image, in memory, before a file system is made of them.

use std::collections::BTreeMap;
use std::io::{self, Read};

use kata_initrd::package_contents;

/// Longest chain of links that is followed, as the kernel's own limit.
const MAX_LINKS: usize = 40;

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    /// A regular file's bytes.
    File(Vec<u8>),
    /// A symbolic link's target.
    Symlink(String),
    /// A character device's major and minor number.
    CharDevice(u32, u32),
}

/// A file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// The low twelve bits of the mode.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) kind: Kind,
}

impl Node {
    /// A file of root's.
    pub(crate) fn new(mode: u16, kind: Kind) -> Self {
        Self { mode, uid: 0, gid: 0, kind }
    }
}

/// Files by path, without a leading slash. Every path's directory is there too; the root itself is
/// not listed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tree {
    nodes: BTreeMap<String, Node>,
}

impl Tree {
    /// Adds or replaces a file. Directories on the way are made where they are missing, links on
    /// the way are followed.
    pub(crate) fn add(&mut self, path: &str, node: Node) -> io::Result<()> {
        let path = self.place(path)?;
        if path.is_empty() {
            return Ok(());
        }
        // A directory that is there as a link (`/bin`) stays one.
        let is_directory = node.kind == Kind::Directory;
        match self.nodes.get(&path).map(|old| &old.kind) {
            Some(Kind::Symlink(_)) if is_directory => {}
            Some(Kind::Directory) if !is_directory => {
                return Err(io::Error::other(format!("{path} is a directory already")));
            }
            _ => {
                self.nodes.insert(path, node);
            }
        }
        Ok(())
    }

    /// All files, a directory before what is in it.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), node))
    }

    /// Whether a regular file is at this very path.
    pub(crate) fn has_file(&self, path: &str) -> bool {
        matches!(self.nodes.get(path), Some(Node { kind: Kind::File(_), .. }))
    }

    /// Unpacks a Debian package. Its own scripts are not run.
    pub(crate) fn add_package(&mut self, deb: &[u8]) -> io::Result<()> {
        let mut files = tar::Archive::new(package_contents(deb)?);
        for entry in files.entries()? {
            let mut entry = entry?;
            let path = utf8(&entry.path_bytes())?;
            let link = entry.link_name_bytes().map(|name| utf8(&name)).transpose()?;
            let header = entry.header();
            let mode = u16::try_from(header.mode()? & 0o7777).expect("twelve bits");
            let id = |id: u64| u32::try_from(id).map_err(io::Error::other);
            let (uid, gid) = (id(header.uid()?)?, id(header.gid()?)?);
            let kind = match header.entry_type() {
                tar::EntryType::Directory => Kind::Directory,
                tar::EntryType::Symlink => Kind::Symlink(link.unwrap_or_default()),
                tar::EntryType::Link => self.linked(&link.unwrap_or_default())?,
                tar::EntryType::Regular => {
                    let mut content = Vec::new();
                    entry.read_to_end(&mut content)?;
                    Kind::File(content)
                }
                // Packages ship no devices, and an image needs none of them.
                _ => continue,
            };
            self.add(&path, Node { mode, uid, gid, kind })?;
        }
        Ok(())
    }

    /// A second name of a file becomes a second file: the image is read-only, nobody can tell.
    fn linked(&mut self, target: &str) -> io::Result<Kind> {
        let place = self.place(target)?;
        let node = self.nodes.get(&place);
        node.map(|node| node.kind.clone())
            .ok_or_else(|| io::Error::other(format!("hard link to {target}, which is not there")))
    }

    /// Where a path is once links of its directories are followed; makes the directories.
    fn place(&mut self, path: &str) -> io::Result<String> {
        let mut rest: Vec<String> = parts(path).rev().map(str::to_owned).collect();
        let mut place = String::new();
        let mut links = 0;
        while let Some(part) = rest.pop() {
            if part == ".." {
                place.truncate(place.rfind('/').unwrap_or(0));
                continue;
            }
            let next = if place.is_empty() { part } else { format!("{place}/{part}") };
            if rest.is_empty() {
                return Ok(next);
            }
            match self.nodes.get(&next).map(|node| &node.kind) {
                Some(Kind::Symlink(target)) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(io::Error::other(format!(
                            "too many links on the way to {path}"
                        )));
                    }
                    if target.starts_with('/') {
                        place.clear();
                    }
                    rest.extend(parts(target).rev().map(str::to_owned));
                }
                Some(Kind::Directory) => place = next,
                Some(_) => return Err(io::Error::other(format!("{next} is no directory"))),
                None => {
                    self.nodes.insert(next.clone(), Node::new(0o755, Kind::Directory));
                    place = next;
                }
            }
        }
        Ok(place)
    }
}

fn parts(path: &str) -> impl DoubleEndedIterator<Item = &str> {
    path.split('/').filter(|part| !part.is_empty() && *part != ".")
}

fn utf8(bytes: &[u8]) -> io::Result<String> {
    String::from_utf8(bytes.to_vec()).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file() -> Node {
        Node::new(0o644, Kind::File(b"x".to_vec()))
    }

    fn paths(tree: &Tree) -> Vec<&str> {
        tree.iter().map(|(path, _)| path).collect()
    }

    #[test]
    fn files_land_behind_links_of_directories() {
        let mut tree = Tree::default();
        tree.add("usr/bin", Node::new(0o755, Kind::Directory)).unwrap();
        tree.add("bin", Node::new(0o777, Kind::Symlink("usr/bin".into()))).unwrap();
        tree.add("./bin/", Node::new(0o755, Kind::Directory)).unwrap();
        tree.add("./bin/sh", file()).unwrap();
        assert_eq!(paths(&tree), ["bin", "usr", "usr/bin", "usr/bin/sh"]);
    }

    #[test]
    fn link_that_leads_up_or_round_ends() {
        let mut tree = Tree::default();
        tree.add("a/up", Node::new(0o777, Kind::Symlink("../../..".into()))).unwrap();
        tree.add("a/up/b", file()).unwrap();
        assert!(paths(&tree).contains(&"b"));
        tree.add("loop", Node::new(0o777, Kind::Symlink("loop".into()))).unwrap();
        assert!(tree.add("loop/c", file()).is_err());
    }

    proptest! {
        /// Whatever the paths, a directory comes before what is in it.
        #[test]
        fn every_file_has_its_directory_before_it(names in prop::collection::vec("[ab./]{1,8}", 0..12)) {
            let mut tree = Tree::default();
            for name in &names {
                let _ = tree.add(name, file());
            }
            let seen = paths(&tree);
            for (at, path) in seen.iter().enumerate() {
                if let Some((parent, _)) = path.rsplit_once('/') {
                    prop_assert!(seen[..at].contains(&parent), "{parent} of {path}");
                }
            }
        }
    }
}
