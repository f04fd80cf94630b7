//! What is written down of a sandbox, and by whom it may be read.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use kata_linux::identity::ProcessIdentity;
use kata_network::NamespaceId;
use serde::{Deserialize, Serialize};

use super::FootprintError;

/// The record's name in the sandbox's directory.
pub(super) const RECORD: &str = "footprint.json";

/// The record on disk.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Record {
    /// The owner first, then its children.
    pub(super) processes: Vec<ProcessIdentity>,
    /// The number of the pid namespace in which these are; `None` in the records of earlier
    /// versions.
    #[serde(default)]
    pub(super) pid_namespace: Option<u64>,
    /// Directories of the cgroup, in which there is nobody but the sandbox.
    pub(super) cgroups: Vec<PathBuf>,
    /// Directories of the cgroup in which that one is, where others may be, too.
    #[serde(default)]
    pub(super) cgroups_around: Vec<PathBuf>,
    /// The engine's network namespace, if the sandbox has one.
    pub(super) network: Option<NetworkRecord>,
    /// The directory with images of root file systems, if there is one.
    #[serde(default)]
    pub(super) images: Option<PathBuf>,
}

/// A network namespace that a sandbox uses.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct NetworkRecord {
    pub(super) path: PathBuf,
    pub(super) id: NamespaceId,
    /// The numbers of the interfaces that were, or were about to be, joined to the VM.
    pub(super) interfaces: Vec<u32>,
}

impl Record {
    /// That of a sandbox of this process, which has nothing yet.
    pub(super) fn of_this_process() -> Self {
        let processes = ProcessIdentity::of(std::process::id()).into_iter().collect();
        Self { processes, pid_namespace: pid_namespace(), ..Self::default() }
    }

    /// The sandbox's owner, if it lives.
    pub(super) fn living_owner(&self) -> Option<ProcessIdentity> {
        self.processes.first().filter(|owner| owner.is_alive()).copied()
    }

    /// Whether the owner is surely dead: one in another pid namespace cannot be seen from here.
    pub(super) fn is_abandoned(&self) -> bool {
        let here = pid_namespace();
        here.is_some() && self.pid_namespace == here && self.living_owner().is_none()
    }

    /// `None` where there is none that can be read.
    pub(super) fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(dir.join(RECORD)).ok()?).ok()
    }

    /// Replaces the record at `dir` as a whole.
    pub(super) fn write(&self, dir: &Path) -> Result<(), FootprintError> {
        let text = serde_json::to_vec(self).expect("plain numbers and paths are always JSON");
        let path = dir.join(RECORD);
        let fresh = dir.join("footprint.new");
        fs::write(&fresh, text)
            .and_then(|()| fs::rename(&fresh, &path))
            .map_err(|source| FootprintError::Io { action: "write", path, source })
    }
}

fn pid_namespace() -> Option<u64> {
    fs::metadata("/proc/self/ns/pid").ok().map(|namespace| namespace.ino())
}

/// The right to sweep a directory, which one process at a time has. It does not keep the
/// directory's owner from anything: that lives, and then nobody sweeps.
#[derive(Debug)]
pub(super) struct Broom {
    _locked: File,
}

impl Broom {
    /// Waits for it; `None` when there is no directory (any more).
    pub(super) fn take(dir: &Path) -> io::Result<Option<Self>> {
        loop {
            let Some(directory) = open(dir)? else { return Ok(None) };
            directory.lock()?;
            if is_at(&directory, dir) {
                return Ok(Some(Self { _locked: directory }));
            }
        }
    }

    /// Does not wait; `None` also when somebody else has it.
    pub(super) fn try_take(dir: &Path) -> io::Result<Option<Self>> {
        let Some(directory) = open(dir)? else { return Ok(None) };
        match directory.try_lock() {
            Ok(()) => Ok(is_at(&directory, dir).then_some(Self { _locked: directory })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

fn open(dir: &Path) -> io::Result<Option<File>> {
    match File::open(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

/// Whether the directory is still that at `path`: whoever had the lock before may have removed it,
/// and its next owner have made another.
fn is_at(directory: &File, path: &Path) -> bool {
    let number = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    match (directory.metadata(), fs::metadata(path)) {
        (Ok(held), Ok(there)) => number(held) == number(there),
        _ => false,
    }
}
