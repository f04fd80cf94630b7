//! Cgroups that carry a fixture's mark, in every hierarchy.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::mark::Mark;

/// Where the hierarchies are mounted.
const ROOT: &str = "/sys/fs/cgroup";

/// How deep a fixture's cgroups are below a hierarchy's root, slices of a service manager included.
const DEPTH: usize = 6;

/// The cgroups of containers and sandboxes. A cgroup that is named like the engine's namespace is
/// the engine's own (runc leaves it, too), and goes with the fixture.
pub(crate) fn left(mark: &Mark) -> Vec<String> {
    let own = format!("ns-{mark}");
    let left = find(mark).into_iter().filter(|path| !path.ends_with(&own));
    left.map(|path| format!("cgroup: {}", path.display())).collect()
}

/// Their parents: a removal is an event there.
pub(super) fn parents(mark: &Mark) -> Vec<PathBuf> {
    find(mark).iter().filter_map(|path| path.parent()).map(Path::to_owned).collect()
}

/// Removes all of them, as far as they are empty.
pub(crate) fn remove(mark: &Mark) {
    for path in find(mark).iter().rev() {
        let _ = fs::remove_dir(path);
    }
}

/// All cgroups that carry the mark, parents before their children.
fn find(mark: &Mark) -> Vec<PathBuf> {
    let mut found = Vec::new();
    walk(Path::new(ROOT), DEPTH + 1, mark, &mut found);
    found
}

fn walk(directory: &Path, depth: usize, mark: &Mark, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        // Links lead to the same hierarchies again.
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        if mark.is_in(path.as_os_str().as_bytes()) {
            found.push(path.clone());
        }
        if depth > 1 {
            walk(&path, depth - 1, mark, found);
        }
    }
}
