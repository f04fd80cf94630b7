//! What a sandbox leaves on the host while it lives, written down so that it can be swept away when
//! its owner was killed.
//!
//! A network namespace that the engine gave it belongs to it meanwhile, which the record says to
//! all other sandboxes.
//!
//! A sandbox's mounts live in its owner's own mount namespace and its processes die with their
//! parent, so that little is left to record: the directory `/run/kata/<id>`, the one with images of
//! root file systems, the cgroup, and, against processes that are slow to die, their ids.

mod record;
mod sweep;

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use kata_linux::cgroup::{CgroupError, HostCgroup, Membership};
use kata_linux::identity::ProcessIdentity;
use kata_linux::mount;
use kata_network::{Namespace, NetworkError};
use thiserror::Error;

use crate::Placement;
use record::{NetworkRecord, Record};

pub use sweep::{LONGEST_SWEEP, sweep, sweep_of};

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

/// The traces of a living sandbox, held by its owner.
#[derive(Debug)]
pub struct Footprint {
    dir: PathBuf,
    cgroup: HostCgroup,
    before: Membership,
    /// What is on disk; locked only while it is changed.
    record: Mutex<Record>,
}

/// A sandbox's cgroup, and what it is in.
#[derive(Debug)]
pub(crate) struct Cgroups {
    own: HostCgroup,
    around: Vec<PathBuf>,
}

impl Cgroups {
    /// Keeps everything that is in the cgroup to processors and memory nodes of the host; where
    /// that is within the one of the sandbox's first container, what is in there, too. On an error
    /// it is where it was.
    pub(crate) fn place(
        &self,
        Placement { processors, nodes }: &Placement,
    ) -> Result<(), CgroupError> {
        self.own.place(&self.around, processors.as_ref(), nodes.as_ref())
    }
}

impl Footprint {
    /// Makes the sandbox's directory (mode 0700) and a cgroup of its own, at `cgroup` or, where
    /// that exists, within it, and moves the calling process into the cgroup, so that its children
    /// are born there. Traces of a dead sandbox with the same id are swept away first, and must go;
    /// a living one with it is an error.
    pub fn make(id: &str, dir: &Path, cgroup: &str) -> Result<Self, FootprintError> {
        if let Some(owner) = Record::read(dir).and_then(|record| record.living_owner()) {
            return Err(FootprintError::InUse { id: id.to_owned(), pid: owner.pid });
        }
        sweep(dir)?;
        let failed = |source| FootprintError::Io { action: "create", path: dir.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        let before = Membership::of_this_process()?;
        let mut record = Record::of_this_process();
        let cgroup = match make_cgroup(id, dir, cgroup, &mut record) {
            Ok(cgroup) => cgroup,
            Err(error) => {
                // What was made so far goes too; the first error is the one to tell.
                let _ = sweep::take_away(dir, record);
                return Err(error);
            }
        };
        let footprint = Self { dir: dir.to_owned(), cgroup, before, record: Mutex::new(record) };
        if let Err(error) = footprint.cgroup.enter() {
            let _ = footprint.remove();
            return Err(error.into());
        }
        Ok(footprint)
    }

    /// Sweeps traces of other dead sandboxes away, in a thread of its own: they have waited long
    /// enough not to hold up a start.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn sweep_others(&self) {
        let dir = self.dir.clone();
        tokio::task::spawn_blocking(move || sweep::sweep_abandoned(&dir));
    }

    /// Where everything of it is among the host's cgroups.
    pub(crate) fn cgroups(&self) -> Cgroups {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        Cgroups { own: self.cgroup.clone(), around: record.cgroups_around.clone() }
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
        let free = Self::check_claim(&self.dir, namespace);
        if free.is_err() {
            self.write(|record| record.network = None)?;
        }
        free
    }

    /// Whether no other sandbox than the one in `dir` has the namespace.
    pub(crate) fn check_claim(dir: &Path, namespace: &Namespace) -> Result<(), FootprintError> {
        let Some((id, pid)) = sweep::other_user(dir, namespace.id()) else { return Ok(()) };
        Err(FootprintError::NetworkInUse { namespace: namespace.path().to_owned(), id, pid })
    }

    /// Makes a directory (mode 0700) for images of root file systems. One that is there is a dead
    /// sandbox's, and emptied. Those beside it go that a crash of the host has left.
    pub fn make_images(&self, dir: &Path) -> Result<(), FootprintError> {
        if let (Some(all), Some(sandboxes)) = (dir.parent(), self.dir.parent()) {
            sweep::sweep_images(all, sandboxes);
        }
        self.write(|record| record.images = Some(dir.to_owned()))?;
        sweep::remove_dir(dir)?;
        let failed = |source| FootprintError::Io { action: "create", path: dir.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)
    }

    /// Writes down which interfaces of the claimed namespace are about to be joined. Without a
    /// claim there is nothing to write: a fresh namespace goes with its sandbox.
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
        record.write(&self.dir)
    }

    /// Moves the calling process back to where it was, and removes images, cgroup and directory.
    /// The children must be gone. Every step is tried, and what fails stays written down for a
    /// sweep; the first error is told.
    pub fn remove(&self) -> Result<(), FootprintError> {
        let restored = self.before.restore();
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // It has left the network itself.
        record.network = None;
        let removed = sweep::take_away(&self.dir, record);
        restored.map_err(FootprintError::from).and(removed)
    }
}

/// Makes a cgroup in which there is nobody else, and writes it down before.
fn make_cgroup(
    id: &str,
    dir: &Path,
    path: &str,
    record: &mut Record,
) -> Result<HostCgroup, FootprintError> {
    loop {
        let plan = HostCgroup::plan(path, &format!("kata_{id}"))?;
        (record.cgroups, record.cgroups_around) = (plan.dirs(), plan.around());
        record.write(dir)?;
        // Another sandbox may have made it meanwhile, and then it is there for the next plan.
        if let Some(cgroup) = plan.make()? {
            return Ok(cgroup);
        }
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

    /// Removing files must not reach through a mount, wherever in the directory it is.
    #[test]
    fn what_is_mounted_below_is_not_emptied() {
        let parent = tempfile::tempdir().unwrap();
        let (dir, source) = (parent.path().join("sandbox"), parent.path().join("source"));
        fs::create_dir_all(dir.join("shared/.mounts/1")).unwrap();
        fs::create_dir(&source).unwrap();
        fs::write(source.join("file"), "").unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                mount::unshare_mount_namespace().unwrap();
                let at = dir.join("shared/.mounts/1");
                mount::mount(source.to_str().unwrap(), &at, "bind", &[]).unwrap();
                sweep(&dir).unwrap();
            });
        });
        assert!(!dir.exists() && source.join("file").exists());
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

    #[test]
    fn what_a_sweep_could_not_remove_is_left_to_another_sandboxs() {
        let _here = CGROUP.lock().unwrap_or_else(PoisonError::into_inner);
        let parent = tempfile::tempdir().unwrap();
        let (dir, images) = (parent.path().join("sandbox"), parent.path().join("images"));
        let cgroup = |name: &str| format!("/kata-test-{name}-{}", std::process::id());
        let footprint = Footprint::make("s", &dir, &cgroup("left")).unwrap();
        footprint.make_images(&images).unwrap();
        fs::write(dir.join("timeline.json"), "").unwrap();
        footprint.write(|record| record.processes.clear()).unwrap();
        // This process is still in the cgroup, like a VMM that does not die.
        let error = sweep(&dir).unwrap_err();
        assert!(matches!(error, FootprintError::Cgroup(_)), "{error}");
        assert!(!images.exists() && !dir.join("timeline.json").exists() && dir.exists());

        footprint.before.restore().unwrap();
        let other = Footprint::make("t", &parent.path().join("other"), &cgroup("other")).unwrap();
        sweep::sweep_abandoned(&other.dir);
        assert!(!dir.exists() && footprint.cgroup.dirs().iter().all(|dir| !dir.exists()));
        other.remove().unwrap();
    }

    #[test]
    fn what_may_be_anothers_is_not_swept() {
        let parent = tempfile::tempdir().unwrap();
        let (dir, other) = (parent.path().join("sandbox"), parent.path().join("other"));
        fs::create_dir(&other).unwrap();
        for namespace in [None, Some(1)] {
            let record = Record { pid_namespace: namespace, ..Record::default() };
            record.write(&other).unwrap();
            sweep::sweep_abandoned(&dir);
            assert!(other.exists(), "{namespace:?}");
        }
        Record::of_this_process().write(&other).unwrap();
        sweep::sweep_abandoned(&dir);
        assert!(other.exists(), "it lives");
        let dead = Record { processes: Vec::new(), ..Record::of_this_process() };
        dead.write(&other).unwrap();
        sweep::sweep_abandoned(&dir);
        assert!(!other.exists());
    }

    #[test]
    fn sweeping_one_of_two_in_the_same_cgroup_spares_the_other() {
        let _here = CGROUP.lock().unwrap_or_else(PoisonError::into_inner);
        let (parent, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let cgroup = format!("/kata-test-shared-{}", std::process::id());
        let first = Footprint::make("a", &parent.path().join("a"), &cgroup).unwrap();
        let second = Footprint::make("b", &other.path().join("b"), &cgroup).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();

        first.write(|record| record.processes.clear()).unwrap();
        sweep(&first.dir).unwrap();
        assert!(!first.dir.exists());
        assert!(child.try_wait().unwrap().is_none(), "a child of the other sandbox was killed");

        // The last one takes the cgroup around its own along.
        first.before.restore().unwrap();
        second.write(|record| record.processes.clear()).unwrap();
        sweep(&second.dir).unwrap();
        child.wait().unwrap();
        assert!(first.cgroup.dirs().iter().all(|dir| !dir.exists()));
    }
}
