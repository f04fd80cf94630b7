//! A disk with files of this machine, for the host VM.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::image::make_disk;

/// Enough for the programs under test and their tests' binaries. The file takes only what is used.
const SIZE: u64 = 2 << 30;

/// Where the machine mounts it.
pub(crate) const MOUNT: &str = "/project";

/// Files and directories that the machine has at the same places, read-only, so that configurations
/// which name them fit. Goes with this value.
#[derive(Debug)]
pub struct Disk {
    directory: TempDir,
    paths: BTreeSet<PathBuf>,
}

impl Disk {
    /// A disk of these absolute paths as they are now.
    pub fn of(paths: impl IntoIterator<Item = PathBuf>) -> Result<Self> {
        let paths: BTreeSet<PathBuf> = paths.into_iter().collect();
        let directory = tempfile::tempdir().context("cannot make a directory for a disk")?;
        let tree = directory.path().join("tree");
        for path in &paths {
            copy(path, &tree.join(below_root(path)?))?;
        }
        make_disk(&tree, &directory.path().join("disk.img"), SIZE)?;
        fs::remove_dir_all(&tree).context("cannot remove what was copied")?;
        Ok(Self { directory, paths })
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.directory.path().join("disk.img")
    }

    /// The commands that put everything to its place.
    pub(crate) fn mount_commands(&self) -> String {
        let mut commands = format!("mkdir -p {MOUNT} && mount -o ro /dev/vdb {MOUNT}");
        for path in &self.paths {
            let quoted = quote(&path.display().to_string());
            let make = if path.is_dir() { "mkdir -p" } else { "install -D /dev/null" };
            commands += &format!(" && {make} {quoted} && mount --bind {MOUNT}{quoted} {quoted}");
        }
        commands
    }
}

fn below_root(path: &Path) -> Result<&Path> {
    path.strip_prefix("/").with_context(|| format!("{} is not absolute", path.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().context("the root is no part of a disk")?)?;
    let mut cp = Command::new("cp");
    cp.arg("--archive").arg(from).arg(to);
    let status = cp.status().context("cannot run cp")?;
    ensure!(status.success(), "cannot copy {}", from.display());
    Ok(())
}

/// A word for a shell that means itself.
pub(crate) fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_the_shell() {
        assert_eq!(quote("/a b/it's"), r"'/a b/it'\''s'");
    }
}
