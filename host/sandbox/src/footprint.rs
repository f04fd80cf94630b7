//! What a sandbox leaves on the host while it lives, written down so that it can be swept away when its owner was killed.
//!
//! A network namespace that the engine gave it belongs to it meanwhile, which the record says to all other sandboxes.
//!
//! A sandbox's mounts live in its owner's own mount namespace and its processes die with their parent, so that little is left to
//! record: the directory `/run/kata/<id>`, the one with images of root file systems, the cgroup, and, against processes that are slow to die,
//! their ids.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kata_linux::cgroup::{CgroupError, HostCgroup, Membership};
use kata_linux::identity::ProcessIdentity;
use kata_linux::mount;
use kata_network::{Namespace, NamespaceId, NetworkError};
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
    /// The network namespace belongs to a sandbox that lives.
    #[error(
        "the network namespace {namespace} belongs to the sandbox {id}, which is running (pid {pid}); \
         two VMs cannot share one, so give each its own"
    )]
    NetworkInUse {
        /// The namespace's path.
        namespace: PathBuf,
        /// The other sandbox's id.
        id: String,
        /// Its owner's process id.
        pid: u32,
    },
    /// The network namespace could not be cleaned.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The cgroup refused.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// What is mounted in the sandbox's directory could not be unmounted.
    #[error(transparent)]
    Mount(#[from] mount::MountError),
}

/// The record on disk.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    /// The owner first, then its children.
    processes: Vec<ProcessIdentity>,
    cgroups: Vec<PathBuf>,
    /// The engine's network namespace, if the sandbox has one.
    network: Option<NetworkRecord>,
    /// The directory with images of root file systems, if there is one.
    #[serde(default)]
    images: Option<PathBuf>,
}

/// A network namespace that a sandbox uses.
#[derive(Debug, Serialize, Deserialize)]
struct NetworkRecord {
    path: PathBuf,
    id: NamespaceId,
    /// The numbers of the interfaces that were, or were about to be, joined to the VM.
    interfaces: Vec<u32>,
}

/// The traces of a living sandbox, held by its owner.
#[derive(Debug)]
pub struct Footprint {
    dir: PathBuf,
    cgroup: HostCgroup,
    before: Membership,
    /// What is on disk; locked only while it is changed.
    record: Mutex<Record>,
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
        let record = Record { cgroups: cgroup.dirs().to_vec(), ..Record::default() };
        let footprint = Self { dir: dir.to_owned(), cgroup, before, record: Mutex::new(record) };
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
        let all = [std::process::id()];
        let all = all.iter().chain(children).filter_map(|&pid| ProcessIdentity::of(pid));
        self.write(|record| record.processes = all.collect())
    }

    /// Makes the namespace this sandbox's own, unless another one that lives has it.
    pub fn claim(&self, namespace: &Namespace) -> Result<(), FootprintError> {
        let claim = NetworkRecord {
            path: namespace.path().to_owned(),
            id: namespace.id(),
            interfaces: Vec::new(),
        };
        // First the claim, then the look: of two sandboxes at once none, or one, gets it.
        self.write(|record| record.network = Some(claim))?;
        let Some((id, pid)) = other_user(&self.dir, namespace.id()) else { return Ok(()) };
        self.write(|record| record.network = None)?;
        Err(FootprintError::NetworkInUse { namespace: namespace.path().to_owned(), id, pid })
    }

    /// Makes a directory (mode 0700) for images of root file systems. One that is there is a dead sandbox's, and emptied.
    pub fn make_images(&self, dir: &Path) -> Result<(), FootprintError> {
        self.write(|record| record.images = Some(dir.to_owned()))?;
        remove_dir(dir)?;
        let failed = |source| FootprintError::Io { action: "create", path: dir.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)
    }

    /// Writes down which interfaces of the claimed namespace are about to be joined. Without a claim there is nothing to write: a fresh
    /// namespace goes with its sandbox.
    pub fn record_interfaces(&self, interfaces: Vec<u32>) -> Result<(), FootprintError> {
        self.write(|record| {
            if let Some(network) = &mut record.network {
                network.interfaces = interfaces;
            }
        })
    }

    fn write(&self, change: impl FnOnce(&mut Record)) -> Result<(), FootprintError> {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut record);
        let text = serde_json::to_vec(&*record).expect("plain numbers and paths are always JSON");
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
        let images = self.record.lock().unwrap_or_else(PoisonError::into_inner).images.take();
        images.map_or(Ok(()), |images| remove_dir(&images))?;
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
    if let Some(network) = record.network {
        clean(&network)?;
    }
    if let Some(images) = record.images {
        remove_dir(&images)?;
    }
    remove_dir(dir)
}

/// Takes away what a dead sandbox left in the engine's network namespace. A namespace that is gone took it along.
fn clean(network: &NetworkRecord) -> Result<(), FootprintError> {
    if network.interfaces.is_empty() {
        return Ok(());
    }
    match Namespace::reopen(&network.path) {
        Ok(namespace) if namespace.id() == network.id => {
            Ok(kata_network::leave_blocking(&namespace, &network.interfaces)?)
        }
        _ => Ok(()),
    }
}

/// As [`sweep`], if the sandbox belonged to `owner`; whatever else is at `dir` is left alone.
pub fn sweep_of(dir: &Path, owner: ProcessIdentity) -> Result<(), FootprintError> {
    match read(dir) {
        Some(record) if record.processes.first() == Some(&owner) => sweep(dir),
        _ => Ok(()),
    }
}

/// Another sandbox beside `dir` that lives and uses the namespace: its id and its owner.
fn other_user(dir: &Path, namespace: NamespaceId) -> Option<(String, u32)> {
    for entry in fs::read_dir(dir.parent()?).ok()?.flatten() {
        let other = entry.path();
        if other == dir {
            continue;
        }
        let Some(record) = read(&other) else { continue };
        let uses = record.network.is_some_and(|network| network.id == namespace);
        let owner = record.processes.first().filter(|owner| uses && owner.is_alive());
        if let Some(owner) = owner {
            return Some((entry.file_name().to_string_lossy().into_owned(), owner.pid));
        }
    }
    None
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

    /// Held by tests that move this process from one cgroup to another.
    static CGROUP: Mutex<()> = Mutex::new(());

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
    fn images_go_with_the_sandbox_and_with_its_sweeping() {
        let _here = CGROUP.lock().unwrap_or_else(PoisonError::into_inner);
        let parent = tempfile::tempdir().unwrap();
        let (dir, images) = (parent.path().join("sandbox"), parent.path().join("images"));
        let cgroup = format!("/kata-test-images-{}", std::process::id());
        let make = || {
            let footprint = Footprint::make("s", &dir, &cgroup).unwrap();
            footprint.make_images(&images).unwrap();
            fs::write(images.join("1"), "").unwrap();
            footprint
        };
        make().remove().unwrap();
        assert!(!images.exists());
        let footprint = make();
        // As its owner's death leaves it.
        footprint.before.restore().unwrap();
        footprint.write(|record| record.processes.clear()).unwrap();
        sweep(&dir).unwrap();
        assert!(!images.exists() && !dir.exists());
    }

    #[test]
    fn living_sandbox_keeps_its_id() {
        let _here = CGROUP.lock().unwrap_or_else(PoisonError::into_inner);
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
