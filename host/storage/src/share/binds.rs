//! Which of the host's directories and files are bound into the share, and for whom.
//!
//! What several containers of a sandbox mount is bound once. The file server tells inodes apart by
//! their mounts, so that a file by two of them would be two files to the guest: a socket that one
//! container listens on would be deaf in the other one, and locks of one would not hold for it.

use std::collections::BTreeSet;
use std::path::PathBuf;

use kata_linux::mount::{MountEntry, mounts_below};
use rustix::fs::{FileType, Stat};

use super::BindKind;
use crate::{HostBind, StorageError, empty_dir};

/// What makes two mounts the same.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// Others may be mounted below one path than below the other; not so with an emptyDir, which
    /// has many (`subPath`): `None`.
    path: Option<PathBuf>,
    device: u64,
    inode: u64,
    kind: BindKind,
}

impl Key {
    /// That of a mount whose source is what `stat` is of; `None` if it is no other's: it has what
    /// is mounted below its source now, and who comes later may find something else there.
    ///
    /// # Errors
    ///
    /// When it cannot be told what is mounted below the source.
    pub(super) fn of(bind: &HostBind, stat: &Stat) -> Result<Option<Self>, StorageError> {
        let path = (!empty_dir::is_of_one(&bind.source)).then(|| bind.source.clone());
        let kind = BindKind::of(bind);
        // Nothing is below a file, which most of a pod's mounts are.
        let is_dir = FileType::from_raw_mode(stat.st_mode).is_dir();
        let is_snapshot = is_dir && kind.recursive && !kind.follows_host;
        let is_below = |entry: &MountEntry| entry.mount_point != bind.source;
        if is_snapshot && mounts_below(&bind.source)?.iter().any(is_below) {
            return Ok(None);
        }
        Ok(Some(Self { path, device: stat.st_dev, inode: stat.st_ino, kind }))
    }
}

/// One of them.
#[derive(Debug)]
struct Bind {
    /// `None` for one that is a single container's.
    key: Option<Key>,
    /// Its name in the share.
    number: u64,
    containers: BTreeSet<String>,
}

/// All of one share.
#[derive(Debug, Default)]
pub(super) struct Binds {
    all: Vec<Bind>,
    next: u64,
}

impl Binds {
    /// The name of the bind with this key, which is the container's from now on, too; `None` if
    /// there is none yet.
    pub(super) fn join(&mut self, key: &Key, container: &str) -> Option<String> {
        let bind = self.all.iter_mut().find(|bind| bind.key.as_ref() == Some(key))?;
        bind.containers.insert(container.to_owned());
        Some(bind.number.to_string())
    }

    /// A name that no bind has had.
    pub(super) fn next_name(&mut self) -> String {
        self.next += 1;
        self.next.to_string()
    }

    /// Takes note of a bind under the name that was given last. Without a key no other container
    /// joins it.
    pub(super) fn add(&mut self, key: Option<Key>, container: &str) {
        let containers = BTreeSet::from([container.to_owned()]);
        self.all.push(Bind { key, number: self.next, containers });
    }

    /// Forgets a container. Returns the names of the binds that nobody has any more.
    pub(super) fn leave(&mut self, container: &str) -> Vec<String> {
        for bind in &mut self.all {
            bind.containers.remove(container);
        }
        let gone = self.all.extract_if(.., |bind| bind.containers.is_empty());
        gone.map(|bind| bind.number.to_string()).collect()
    }
}
