//! What a sandbox leaves on the host while it lives, written down so that it can be swept away when its owner was killed.
//!
//! A sandbox's mounts live in its owner's own mount namespace and its processes die with their parent, so that little is left to
//! record: the directory `/run/kata/<id>`, the cgroup, and, against processes that are slow to die, their ids.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kata_linux::cgroup::{CgroupError, HostCgroup, Membership};
use kata_linux::identity::ProcessIdentity;
use kata_linux::mount;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The record's name in the sandbox's directory.
const RECORD: &str = "footprint.json";

/// How long a sweep waits for a killed process to be gone.
const DEATH: Duration = Duration::from_secs(2);

/// Why the sandbox's traces could not be made or removed.
#[derive(Debug, Error)]
pub enum FootprintError {
    /// The id belongs to a sandbox that lives.
    #[error(
        "the sandbox {id} is already running (pid {pid}); delete it first, or choose another id"
    )]
    InUse {
        /// The sandbox's id.
        id: String,
        /// Its owner's process id.
        pid: u32,
    },
    /// A file or directory refused.
    #[error("cannot {action} {path}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The cgroup refused.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// What is mounted in the sandbox's directory could not be unmounted.
    #[error(transparent)]
    Mount(#[from] mount::MountError),
}

/// The record on disk.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    /// The owner first, then its children.
    processes: Vec<ProcessIdentity>,
    cgroups: Vec<PathBuf>,
}

/// The traces of a living sandbox, held by its owner.
#[derive(Debug)]
pub struct Footprint {
    dir: PathBuf,
    cgroup: HostCgroup,
    before: Membership,
}

impl Footprint {
    /// Makes the sandbox's directory (mode 0700) and cgroup, and moves the calling process into the cgroup, so that its
    /// children are born there. Traces of a dead sandbox with the same id are swept away first; a living one is an error.
    pub fn make(id: &str, dir: &Path, cgroup: &str) -> Result<Self, FootprintError> {
        if let Some(record) = read(dir)
            && let Some(owner) = record.processes.first().filter(|owner| owner.is_alive())
        {
            return Err(FootprintError::InUse { id: id.to_owned(), pid: owner.pid });
        }
        sweep(dir)?;
        let failed = |source| FootprintError::Io { action: "create", path: dir.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        let before = Membership::of_this_process()?;
        let cgroup = HostCgroup::create(cgroup)?;
        let footprint = Self { dir: dir.to_owned(), cgroup, before };
        let entered = footprint.record(&[]).and_then(|()| Ok(footprint.cgroup.enter()?));
        if let Err(error) = entered {
            // What was made so far goes too; the first error is the one to tell.
            let _ = footprint.remove();
            return Err(error);
        }
        Ok(footprint)
    }

    /// Writes down the children, besides the calling process itself.
    pub fn record(&self, children: &[u32]) -> Result<(), FootprintError> {
        let processes = [std::process::id()]
            .iter()
            .chain(children)
            .filter_map(|&pid| ProcessIdentity::of(pid))
            .collect();
        let record = Record { processes, cgroups: self.cgroup.dirs().to_vec() };
        let text = serde_json::to_vec(&record).expect("plain numbers and paths are always JSON");
        let path = self.dir.join(RECORD);
        let fresh = self.dir.join("footprint.new");
        fs::write(&fresh, text)
            .and_then(|()| fs::rename(&fresh, &path))
            .map_err(|source| FootprintError::Io { action: "write", path, source })
    }

    /// Moves the calling process back to where it was, and removes cgroup and directory. The children must be gone.
    pub fn remove(&self) -> Result<(), FootprintError> {
        self.before.restore()?;
        self.cgroup.remove()?;
        remove_dir(&self.dir)
    }
}

/// Removes what a dead sandbox left at `dir`: kills the processes that it recorded and that still are the same ones, waits for
/// their end, removes its cgroup and the directory. Nothing there is fine. May be repeated.
pub fn sweep(dir: &Path) -> Result<(), FootprintError> {
    let Some(record) = read(dir) else { return remove_dir(dir) };
    let cgroup = HostCgroup::from_dirs(record.cgroups);
    let inside = cgroup.processes().into_iter().filter_map(ProcessIdentity::of);
    for identity in record.processes.into_iter().chain(inside) {
        if identity.pid != std::process::id() && !identity.kill_and_wait(DEATH) {
            tracing::warn!("process {} of the dead sandbox does not die", identity.pid);
        }
    }
    cgroup.remove()?;
    remove_dir(dir)
}

fn read(dir: &Path) -> Option<Record> {
    serde_json::from_slice(&fs::read(dir.join(RECORD)).ok()?).ok()
}

/// Whatever is mounted below goes first: removing files must never reach through a mount into what belongs to somebody else.
fn remove_dir(dir: &Path) -> Result<(), FootprintError> {
    mount::unmount_tree(dir)?;
    match fs::remove_dir_all(dir) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(FootprintError::Io { action: "remove", path: dir.to_owned(), source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweeping_nothing_is_fine() {
        sweep(Path::new("/run/kata-test-that-never-was")).unwrap();
    }

    #[test]
    fn directory_without_record_is_swept() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("sandbox");
        fs::create_dir_all(dir.join("below")).unwrap();
        sweep(&dir).unwrap();
        assert!(!dir.exists());
    }

    #[test]
    fn living_sandbox_keeps_its_id() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("sandbox");
        let cgroup = format!("/kata-test-footprint-{}", std::process::id());
        let footprint = Footprint::make("s", &dir, &cgroup).unwrap();
        let error = Footprint::make("s", &dir, &cgroup).unwrap_err();
        assert!(matches!(error, FootprintError::InUse { .. }), "{error}");
        footprint.remove().unwrap();
        assert!(!dir.exists());
    }
}
