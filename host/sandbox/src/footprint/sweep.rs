//! Taking away what is left of sandboxes whose owner is dead.
//!
//! Every step is tried, whatever became of the others. What could not be done stays in the record,
//! for the next sweep: that of the same sandbox, or of any that is made on this host
//! ([`sweep_abandoned`]).

use std::fs::{self, DirEntry};
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use kata_linux::cgroup::{EMPTIED, HostCgroup};
use kata_linux::identity::ProcessIdentity;
use kata_linux::mount;
use kata_network::{Namespace, NamespaceId};
use rustix::time::{ClockId, clock_gettime};

use super::FootprintError;
use super::record::{Broom, NetworkRecord, RECORD, Record};

/// How long a sweep waits for all killed processes to be gone.
const DEATH: Duration = Duration::from_millis(1500);

/// The longest that [`sweep`] waits, for the processes and then for their cgroup, unless somebody
/// else sweeps the same sandbox.
pub const LONGEST_SWEEP: Duration = DEATH.saturating_add(EMPTIED);

/// Removes what a dead sandbox left at `dir`: kills the processes that it recorded and that still
/// are the same ones, waits for their end, removes its images, its cgroup and the directory.
/// Nothing there is fine. May be repeated.
///
/// # Errors
///
/// The first one; all else has been removed.
pub fn sweep(dir: &Path) -> Result<(), FootprintError> {
    let broom = Broom::take(dir).map_err(in_locking(dir))?;
    let Some(_broom) = broom else { return Ok(()) };
    sweep_held(dir, DEATH)
}

/// As [`sweep`], if the sandbox belonged to `owner`; whatever else is at `dir` is left alone.
pub fn sweep_of(dir: &Path, owner: ProcessIdentity) -> Result<(), FootprintError> {
    match Record::read(dir) {
        Some(record) if record.processes.first() == Some(&owner) => sweep(dir),
        _ => Ok(()),
    }
}

/// Sweeps sandboxes beside `dir` whose owner is dead, without waiting for anything: what an
/// interrupted sweep has left, or a process that did not die in its time, is seldom still busy.
/// What does not go now is left to the next one.
pub(super) fn sweep_abandoned(dir: &Path) {
    let Some(entries) = dir.parent().and_then(|parent| fs::read_dir(parent).ok()) else { return };
    let others = entries.flatten().map(|entry| entry.path()).filter(|other| other != dir);
    for other in others.filter(|other| is_abandoned(other)) {
        // Whoever sweeps it already needs no help.
        let Ok(Some(_broom)) = Broom::try_take(&other) else { continue };
        // Its next owner may have come meanwhile.
        if !is_abandoned(&other) {
            continue;
        }
        match sweep_held(&other, Duration::ZERO) {
            Ok(()) => tracing::info!("removed what was left at {}", other.display()),
            Err(error) => tracing::warn!("at {} something is left: {error}", other.display()),
        }
    }
}

/// Sweeps the images in `all` of sandboxes that have ended with the host: unlike their records in
/// `sandboxes`, their images outlive a crash. None was touched since the host has booted.
pub(super) fn sweep_images(all: &Path, sandboxes: &Path) {
    let Ok(entries) = fs::read_dir(all) else { return };
    let uptime = clock_gettime(ClockId::Boottime);
    let uptime = Duration::try_from(uptime).unwrap_or(Duration::MAX);
    let Some(boot) = SystemTime::now().checked_sub(uptime) else { return };
    let is_old = |entry: &DirEntry| {
        let touched = entry.metadata().and_then(|metadata| metadata.modified());
        touched.is_ok_and(|touched| touched < boot)
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        // What begins with a dot is no sandbox's.
        let is_sandboxes = !name.as_encoded_bytes().starts_with(b".");
        if is_sandboxes && !sandboxes.join(&name).exists() && is_old(&entry) {
            match remove_dir(&entry.path()) {
                Ok(()) => tracing::info!("removed the images at {}", entry.path().display()),
                Err(error) => tracing::warn!("images of another boot are left: {error}"),
            }
        }
    }
}

fn is_abandoned(dir: &Path) -> bool {
    Record::read(dir).is_some_and(|record| record.is_abandoned())
}

/// Sweeps a directory whose broom the caller holds.
fn sweep_held(dir: &Path, patience: Duration) -> Result<(), FootprintError> {
    let Some(record) = Record::read(dir) else { return remove_dir(dir) };
    let cgroup = HostCgroup::from_dirs(record.cgroups.clone());
    let inside = cgroup.processes().into_iter().filter_map(ProcessIdentity::of);
    let all = record.processes.iter().copied().chain(inside);
    let all: Vec<_> = all.filter(|process| process.pid != std::process::id()).collect();
    for left in ProcessIdentity::kill_all_and_wait(&all, patience) {
        tracing::warn!("process {} of the dead sandbox does not die", left.pid);
    }
    take_away(dir, record)
}

/// Takes away all that a record names but processes, and the record at last.
pub(super) fn take_away(dir: &Path, mut record: Record) -> Result<(), FootprintError> {
    let network = record.network.as_ref().map_or(Ok(()), |network| clean(dir, network));
    if network.is_ok() {
        record.network = None;
    }
    let images = record.images.as_deref().map_or(Ok(()), remove_dir);
    if images.is_ok() {
        record.images = None;
    }
    let files = empty_but_record(dir);
    // After the files, for a process that does not die keeps it.
    let cgroup = HostCgroup::from_dirs(record.cgroups.clone()).remove();
    for around in &record.cgroups_around {
        // Whoever is the last one in it: the engine does not remove the cgroup of a container that
        // it deleted while another was in there.
        let _ = fs::remove_dir(around);
    }
    let all = network.and(images).and(files).and(cgroup.map_err(FootprintError::from));
    if all.is_ok() {
        return remove_dir(dir);
    }
    let written = record.write(dir);
    all.and(written)
}

/// Takes away what a dead sandbox left in the engine's network namespace. A namespace that is gone
/// took it along, and one that another sandbox has meanwhile is that one's.
fn clean(dir: &Path, network: &NetworkRecord) -> Result<(), FootprintError> {
    if network.interfaces.is_empty() || other_user(dir, network.id).is_some() {
        return Ok(());
    }
    match Namespace::reopen(&network.path) {
        Ok(namespace) if namespace.id() == network.id => {
            Ok(kata_network::leave_blocking(&namespace, &network.interfaces)?)
        }
        _ => Ok(()),
    }
}

/// Another sandbox beside `dir` that lives and uses the namespace: its id and its owner.
pub(super) fn other_user(dir: &Path, namespace: NamespaceId) -> Option<(String, u32)> {
    for entry in fs::read_dir(dir.parent()?).ok()?.flatten() {
        let other = entry.path();
        if other == dir {
            continue;
        }
        let Some(record) = Record::read(&other) else { continue };
        let uses = record.network.as_ref().is_some_and(|network| network.id == namespace);
        if let Some(owner) = record.living_owner().filter(|_| uses) {
            return Some((entry.file_name().to_string_lossy().into_owned(), owner.pid));
        }
    }
    None
}

/// Whatever is mounted below goes first: removing files must never reach through a mount into what
/// belongs to somebody else.
pub(super) fn remove_dir(dir: &Path) -> Result<(), FootprintError> {
    unmount_all(dir)?;
    unless_gone(dir, fs::remove_dir_all(dir))
}

/// As [`remove_dir`] for everything in the sandbox's directory but its record.
fn empty_but_record(dir: &Path) -> Result<(), FootprintError> {
    unmount_all(dir)?;
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => return unless_gone(dir, Err(error)),
    };
    let mut result = Ok(());
    for entry in entries.flatten().filter(|entry| entry.file_name() != RECORD) {
        let path = entry.path();
        let removed = match entry.file_type() {
            Ok(kind) if kind.is_dir() => fs::remove_dir_all(&path),
            _ => fs::remove_file(&path),
        };
        result = result.and(unless_gone(&path, removed));
    }
    result
}

/// Detaches what is mounted at `dir` and everywhere below it; an error means that something still
/// is, and nothing below may be removed.
fn unmount_all(dir: &Path) -> Result<(), FootprintError> {
    mount::unmount_tree(dir)?;
    for below in mount::mounts_below(dir)? {
        mount::unmount_tree(&below.mount_point)?;
    }
    match mount::mounts_below(dir)?.pop() {
        None => Ok(()),
        Some(left) => {
            let (path, source) = (left.mount_point, io::ErrorKind::ResourceBusy.into());
            Err(FootprintError::Io { action: "unmount", path, source })
        }
    }
}

fn unless_gone(path: &Path, removed: io::Result<()>) -> Result<(), FootprintError> {
    match removed {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(FootprintError::Io { action: "remove", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

pub(super) fn in_locking(dir: &Path) -> impl FnOnce(io::Error) -> FootprintError {
    let path = dir.to_owned();
    move |source| FootprintError::Io { action: "lock", path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_another_boot_go_and_no_others() {
        let place = tempfile::tempdir().unwrap();
        let (all, sandboxes) = (place.path().join("images"), place.path().join("run"));
        for (name, is_old) in [("dead", true), ("alive", true), ("new", false), (".cache", true)] {
            let images = all.join(name);
            fs::create_dir_all(&images).unwrap();
            fs::write(images.join("1"), "").unwrap();
            if is_old {
                let directory = fs::File::open(&images).unwrap();
                directory.set_modified(SystemTime::UNIX_EPOCH).unwrap();
            }
        }
        fs::create_dir_all(sandboxes.join("alive")).unwrap();
        sweep_images(&all, &sandboxes);
        let mut left: Vec<_> =
            fs::read_dir(&all).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".cache", "alive", "new"]);
    }
}
