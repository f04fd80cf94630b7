//! Places of the machine where an engine's containers leave names that carry no mark, but random
//! numbers.
//!
//! ```text
//!   Machine::now() ─▶ … the test … ─▶ since(before) ─▶ wait until none of them is left
//!     others' names                     candidates        others' come and go meanwhile, and are no candidates
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::netns::Netns;

/// Where containers, sandboxes and their networks have names while they are there.
const PLACES: &[&str] = &[
    "/run/kata",
    "/run/kata-containers",
    "/run/kata-containers/.sandboxes",
    "/run/kata-containers/shared/sandboxes",
    "/run/netns",
    "/sys/class/net",
    // Podman's parent of all containers' cgroups: unified, and one of the hierarchies of cgroup v1.
    "/sys/fs/cgroup/libpod_parent",
    "/sys/fs/cgroup/memory/libpod_parent",
    "/sys/fs/cgroup/pids/libpod_parent",
];

/// Names that stay for good once a sandbox was there, and are no container's.
const LASTING: &[&str] = &[".boots", ".sandboxes", "shared", "conmon"];

/// What is there at one moment.
#[derive(Debug)]
pub(crate) struct Machine(BTreeSet<PathBuf>);

impl Machine {
    pub(crate) fn now() -> Self {
        let entries = PLACES.iter().flat_map(|place| fs::read_dir(place).into_iter().flatten());
        let paths = entries.flatten().map(|entry| entry.path());
        let counts =
            |path: &PathBuf| !is_lasting(path) && !is_control(path) && !Netns::is_one(path);
        Self(paths.filter(counts).collect())
    }

    /// What has come since `before` and is there now.
    pub(crate) fn since(before: &Self) -> Self {
        Self(Self::now().0.difference(&before.0).cloned().collect())
    }

    /// What of it is still there.
    pub(crate) fn left(&self) -> Vec<String> {
        let left = self.0.iter().filter(|path| path.symlink_metadata().is_ok());
        left.map(|path| format!("file: {}", path.display())).collect()
    }

    /// Directories in which a removal is an event.
    pub(crate) fn places() -> impl Iterator<Item = &'static Path> {
        PLACES.iter().map(Path::new)
    }
}

fn is_lasting(path: &Path) -> bool {
    LASTING.iter().any(|name| path.ends_with(name))
}

/// The files of a cgroup come and go with it, which may be a parent that stays.
fn is_control(path: &Path) -> bool {
    path.starts_with("/sys/fs/cgroup") && !path.is_dir()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_came_is_looked_for() {
        let before = Machine::now();
        let since = Machine::since(&Machine(BTreeSet::new()));
        let lo = Path::new("/sys/class/net/lo");
        assert!(before.0.contains(lo) && since.0.contains(lo));
        assert!(!Machine::since(&before).0.contains(lo));
        assert!(since.left().contains(&"file: /sys/class/net/lo".to_owned()));
    }
}
