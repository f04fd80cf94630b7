//! Directories, sockets and open files that carry a fixture's mark.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::containerd::Containerd;
use crate::image::hex;
use crate::mark::Mark;
use crate::netns::Netns;
use crate::process::open_paths;
use crate::runtime::Runtime;

/// Where sandboxes and their shims keep files of the moment. Looked through to a depth of two. What
/// carries no mark is no sandbox's, like the images that are kept for the next container.
const PLACES: &[&str] = &[
    "/run/kata",
    "/run/kata-containers",
    "/run/kata-containers/shared",
    "/run/kata-containers/shared/sandboxes",
    "/run/vc",
    "/run/containerd",
    "/run/containerd/s",
    "/run/containerd/fifo",
    "/run/netns",
    "/dev/shm",
    "/tmp",
    "/var/tmp",
    "/var/lib/kata-containers",
];

/// Directories of the fixture's own daemon in which every container has a place while it is there.
fn of_daemon(containerd: &Containerd) -> Vec<PathBuf> {
    let tasks = Path::new("io.containerd.runtime.v2.task").join(containerd.namespace());
    ["state", "root"].map(|top| containerd.directory().join(top).join(&tasks)).into()
}

/// Directories in which a removal is an event.
pub(super) fn directories(containerd: &Containerd) -> Vec<PathBuf> {
    let mut directories = of_daemon(containerd);
    directories.extend(PLACES.iter().map(PathBuf::from));
    directories
}

/// What is left of the fixture's containers.
pub(super) fn left(containerd: &Containerd) -> Vec<String> {
    let mut left = Vec::new();
    for directory in of_daemon(containerd) {
        left.extend(entries(&directory).iter().map(|path| format!("bundle: {}", path.display())));
    }
    left.extend(marked(containerd).iter().map(|path| format!("file: {}", path.display())));
    left.extend(sockets(containerd));
    // runc's shim leaves its socket when it is killed.
    if Runtime::under_test() == Runtime::Kata {
        left.extend(shim_sockets(containerd));
    }
    left.extend(open_in_daemon(containerd));
    left
}

/// Listening and connected sockets by name, as /proc/net/unix lists them: the daemon's own apart.
fn sockets(containerd: &Containerd) -> Vec<String> {
    let mark = containerd.mark();
    let own = containerd.address().display().to_string();
    let names = socket_names().into_iter();
    let left = names.filter(|name| mark.is_in(name.as_bytes()) && !name.starts_with(&own));
    left.map(|name| format!("socket: {name}")).collect()
}

fn socket_names() -> Vec<String> {
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let names = table.lines().filter_map(|line| line.split_whitespace().nth(7));
    names.map(str::to_owned).collect()
}

/// The sockets of shims, whose names are digests that carry no mark.
fn shim_sockets(containerd: &Containerd) -> Vec<String> {
    let left = shim_socket_paths(containerd).into_iter().filter(|path| path.exists());
    left.map(|path| format!("shim socket: {}", path.display())).collect()
}

/// Where the shim of each container of the fixture has its socket, as all shims agree.
fn shim_socket_paths(containerd: &Containerd) -> Vec<PathBuf> {
    let key = containerd.address().join(containerd.namespace());
    let name = |id: String| hex(&Sha256::digest(key.join(id).as_os_str().as_bytes()));
    let names = containerd.ids().into_iter().map(name);
    names.map(|name| Path::new("/run/containerd/s").join(name)).collect()
}

/// What carries the mark in the places of all sandboxes, outside of the fixture's own directory.
fn marked(containerd: &Containerd) -> Vec<PathBuf> {
    let marks = containerd.marks();
    marks.iter().flat_map(|mark| marked_outside(containerd.directory(), mark)).collect()
}

/// As [`marked`], of any fixture with this directory and this mark.
pub(super) fn marked_outside(directory: &Path, mark: &Mark) -> Vec<PathBuf> {
    let paths = PLACES.iter().flat_map(|place| entries(Path::new(place)));
    let marked = paths.filter(|path| mark.is_in(path.as_os_str().as_bytes()));
    marked.filter(|path| !path.starts_with(directory) && !Netns::is_one(path)).collect()
}

/// Places in which a removal is an event.
pub(super) fn places() -> impl Iterator<Item = &'static Path> {
    PLACES.iter().map(Path::new)
}

/// What is left of containers that were made by hand, outside of the test's own directory and in
/// the runtime's of sandboxes.
pub(super) fn left_by_hand(mark: &Mark, directory: &Path, sandboxes: &Path) -> Vec<String> {
    let files = marked_outside(directory, mark).into_iter().chain(entries(sandboxes));
    let mut left: Vec<String> = files.map(|path| format!("file: {}", path.display())).collect();
    let own = directory.display().to_string();
    // What a test has bound in its own directory goes with it.
    let is_tests = |name: &str| name.starts_with(&own) && !Path::new(name).starts_with(sandboxes);
    let names = socket_names().into_iter().filter(|name| mark.is_in(name.as_bytes()));
    left.extend(names.filter(|name| !is_tests(name)).map(|name| format!("socket: {name}")));
    left
}

/// Removes those of [`left_by_hand`] that are files.
pub(super) fn remove_by_hand(mark: &Mark, directory: &Path) {
    for path in marked_outside(directory, mark) {
        let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
    }
}

/// Removes the files of sandboxes and the sockets of shims.
pub(crate) fn remove(containerd: &Containerd) {
    for path in shim_socket_paths(containerd).into_iter().chain(marked(containerd)) {
        let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
    }
}

/// What the daemon holds open of containers that it has deleted.
fn open_in_daemon(containerd: &Containerd) -> Vec<String> {
    let bundles = of_daemon(containerd);
    let of_container =
        |path: &str| bundles.iter().any(|bundle| Path::new(path).starts_with(bundle));
    let open = open_paths(containerd.pid(), of_container);
    open.into_iter().map(|path| format!("open in containerd: {path}")).collect()
}

pub(super) fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}
