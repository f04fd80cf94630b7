//! Root file systems that are on a device of their own, as containerd's devicemapper and blockfile
//! snapshotters give them.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use crate::{RootfsMount, StorageError};

/// The file system that every guest's kernel mounts from a disk. Others are mounted on the host.
const FILE_SYSTEM: &str = "ext4";

/// Asks for a loop device, so that a file can be mounted.
const LOOP: &str = "loop";

/// A root file system on a block device, or in a file that is the image of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockRoot {
    /// The device or file, its links resolved.
    pub source: PathBuf,
    /// The file system's type.
    pub fstype: String,
    /// Mount options, without those for the host alone.
    pub options: Vec<String>,
    /// Whether it must not be written to.
    pub readonly: bool,
}

impl BlockRoot {
    /// The root file system that `mounts` make up, if it is one on a block device, or in a file
    /// that is to be mounted like one. `None` for all others. Only a source that itself is a
    /// device, or is said to be an image by the option `loop`, becomes a disk.
    pub fn of(mounts: &[RootfsMount]) -> Result<Option<Self>, StorageError> {
        let [mount] = mounts else { return Ok(None) };
        let is_root = mount.target.is_empty() || mount.target == "/";
        if !is_root || mount.fstype != FILE_SYSTEM {
            return Ok(None);
        }
        let failed = |source| StorageError::Io {
            action: "look at",
            path: PathBuf::from(&mount.source),
            source,
        };
        let source = fs::canonicalize(&mount.source).map_err(failed)?;
        let kind = fs::metadata(&source).map_err(failed)?.file_type();
        let has = |option: &str| mount.options.iter().any(|one| one == option);
        let is_disk = kind.is_block_device() || (kind.is_file() && has(LOOP));
        if !is_disk {
            return Ok(None);
        }
        let options = mount.options.iter().filter(|option| *option != LOOP).cloned().collect();
        let readonly = has("ro");
        Ok(Some(Self { source, fstype: mount.fstype.clone(), options, readonly }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(source: &std::path::Path, options: &[&str]) -> RootfsMount {
        RootfsMount {
            fstype: "ext4".into(),
            source: source.display().to_string(),
            target: String::new(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
        }
    }

    #[test]
    fn only_what_is_said_to_be_an_image_is_one() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().canonicalize().unwrap().join("file");
        fs::write(&file, "").unwrap();
        let root = BlockRoot::of(&[mount(&file, &["loop", "ro", "noatime"])]).unwrap().unwrap();
        assert_eq!((&root.source, root.readonly), (&file, true));
        assert_eq!(root.options, ["ro", "noatime"]);
        assert_eq!(BlockRoot::of(&[mount(&file, &[])]).unwrap(), None);
        assert_eq!(BlockRoot::of(&[mount(directory.path(), &["loop"])]).unwrap(), None);
        let other = RootfsMount { fstype: "bind".into(), ..mount(&file, &["loop"]) };
        assert_eq!(BlockRoot::of(&[other]).unwrap(), None);
        let below = RootfsMount { target: "/usr".into(), ..mount(&file, &["loop"]) };
        assert_eq!(BlockRoot::of(&[below]).unwrap(), None);
        let two = [mount(&file, &["loop"]), mount(&file, &["loop"])];
        assert_eq!(BlockRoot::of(&two).unwrap(), None);
        assert!(BlockRoot::of(&[mount(&directory.path().join("missing"), &[])]).is_err());
    }
}
