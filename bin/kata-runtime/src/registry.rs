//! What is known of containers without asking anybody: a directory each below the root, with a
//! small file of JSON.
//!
//! ```text
//!   <root>/<id>/state.json        the container; written whole or not at all
//!   <root>/<id>/forgotten.json    the same, while it is being removed
//!   <root>/<id>/cgroup            the cgroup that it is about to have, before the rest is known
//!   <root>/<id>/exec-<id>.json    the stand-in of a process that was added to it
//!   <root>/.sandboxes/<id>/       the sandbox whose first container has this id: socket and log of its proxy
//! ```
//!
//! Whoever changes a container holds a lock on its directory, and whoever removes a sandbox one on
//! that. Whoever only looks does not, and is quick. An id is taken as long as its directory exists,
//! which is what goes last: who takes it next finds nothing of the one before.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use kata_linux::identifier;
use kata_linux::identity::ProcessIdentity;
use oci_spec::runtime::Hook;
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, fstat, openat};
use serde::{Deserialize, Serialize};

/// A container's file.
const STATE: &str = "state.json";

/// The same of one that is being removed.
const FORGOTTEN: &str = "forgotten.json";

/// The file in a container's directory that has the cgroup it is about to have.
const CGROUP: &str = "cgroup";

/// Where sandboxes are; no container's id begins with a dot.
const SANDBOXES: &str = ".sandboxes";

/// What runc says of one that is not there; engines look for it.
pub(crate) const UNKNOWN: &str = "container does not exist";

/// How far a container has come by our doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stage {
    Creating,
    Created,
    Started,
}

/// How a container stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    /// The word of the runtime specification.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// A container as it is on disk, maybe written by another version of this program: only without
/// what says which process is meant there is nothing to do with it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Container {
    pub(crate) id: String,
    #[serde(default)]
    pub(crate) oci_version: String,
    #[serde(default)]
    pub(crate) bundle: PathBuf,
    #[serde(default)]
    pub(crate) rootfs: PathBuf,
    /// RFC 3339.
    #[serde(default)]
    pub(crate) created: String,
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
    /// The id of the sandbox's first container.
    pub(crate) sandbox: String,
    pub(crate) stand_in: ProcessIdentity,
    #[serde(default)]
    pub(crate) cgroups: Vec<PathBuf>,
    #[serde(default)]
    pub(crate) cgroup: String,
    pub(crate) stage: Stage,
    #[serde(default)]
    pub(crate) paused: bool,
    #[serde(default)]
    pub(crate) poststart: Vec<Hook>,
    #[serde(default)]
    pub(crate) poststop: Vec<Hook>,
}

impl Container {
    pub(crate) fn status(&self) -> Status {
        match self.stage {
            _ if !self.stand_in.is_alive() => Status::Stopped,
            Stage::Creating => Status::Creating,
            Stage::Created | Stage::Started if self.paused => Status::Paused,
            Stage::Created => Status::Created,
            Stage::Started => Status::Running,
        }
    }

    /// The pid to show: none of a process that has ended.
    pub(crate) fn pid(&self) -> u32 {
        if self.status() == Status::Stopped { 0 } else { self.stand_in.pid }
    }
}

/// All containers below one root.
#[derive(Debug, Clone)]
pub(crate) struct Registry {
    root: PathBuf,
}

/// What is below one root.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// In the order of their ids.
    pub(crate) containers: Vec<Container>,
    /// Why there may be more, an error for each. The others need not suffer for it.
    pub(crate) unreadable: Vec<anyhow::Error>,
}

/// A container's directory, or a sandbox's, held so that nobody else changes it.
#[derive(Debug)]
pub(crate) struct Locked {
    dir: PathBuf,
    _lock: OwnedFd,
}

impl Registry {
    pub(crate) fn new(root: &Path) -> Result<Self> {
        let root = std::path::absolute(root).context("cannot tell what --root means")?;
        Ok(Self { root })
    }

    /// A container's directory, whether it exists or not.
    pub(crate) fn dir(&self, id: &str) -> Result<PathBuf> {
        // runc's words, which engines look for.
        if id.is_empty() {
            bail!("container id cannot be empty");
        }
        identifier::check("id", id).context("invalid container ID format")?;
        Ok(self.root.join(id))
    }

    /// A sandbox's directory, whether it exists or not.
    pub(crate) fn sandbox_dir(&self, id: &str) -> Result<PathBuf> {
        identifier::check("sandbox id", id)?;
        Ok(self.root.join(SANDBOXES).join(id))
    }

    /// Whether there is a sandbox with this id, or its first container is being made.
    pub(crate) fn has_heard_of(&self, sandbox: &str) -> Result<bool> {
        Ok(self.sandbox_dir(sandbox)?.exists() || self.dir(sandbox)?.exists())
    }

    /// Takes an id for a new container, and its lock.
    pub(crate) fn reserve(&self, id: &str) -> Result<Locked> {
        let dir = self.dir(id)?;
        let failed = || format!("cannot create {}", dir.display());
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.root)
            .with_context(failed)?;
        match fs::DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                bail!("container with given ID already exists")
            }
            made => made.with_context(failed)?,
        }
        lock(&dir)?.with_context(|| format!("{} was removed a moment ago", dir.display()))
    }

    /// A container as it is now.
    pub(crate) fn load(&self, id: &str) -> Result<Container> {
        self.find(id)?.context(UNKNOWN)
    }

    /// A container as it is now; `None` if there is none.
    pub(crate) fn find(&self, id: &str) -> Result<Option<Container>> {
        read(&self.dir(id)?.join(STATE))
    }

    /// Locks a container, and reads it after that. `None` if there is none.
    pub(crate) fn lock(&self, id: &str) -> Result<Option<Locked>> {
        lock(&self.dir(id)?)
    }

    /// Locks a sandbox's directory. `None` if there is none. Who locks a container, too, does that
    /// first.
    pub(crate) fn lock_sandbox(&self, id: &str) -> Result<Option<Locked>> {
        lock(&self.sandbox_dir(id)?)
    }

    /// All containers.
    pub(crate) fn list(&self) -> Result<Known> {
        let mut known = Known::default();
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(known),
            entries => entries.with_context(|| format!("cannot list {}", self.root.display()))?,
        };
        for entry in entries.flatten() {
            match read::<Container>(&entry.path().join(STATE)) {
                Ok(found) => known.containers.extend(found),
                Err(error) => known.unreadable.push(error),
            }
        }
        known.containers.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(known)
    }
}

impl Locked {
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn load(&self) -> Result<Option<Container>> {
        read(&self.dir.join(STATE))
    }

    pub(crate) fn save(&self, container: &Container) -> Result<()> {
        write_whole(&self.dir.join(STATE), &serde_json::to_vec(container)?)
    }

    /// Notes the cgroup that a container is about to have, for whoever removes it if its creation
    /// is killed before it is saved.
    pub(crate) fn announce_cgroup(&self, cgroup: &str) -> Result<()> {
        write_whole(&self.dir.join(CGROUP), cgroup.as_bytes())
    }

    /// The cgroup that was announced; `None` where none was.
    pub(crate) fn announced_cgroup(&self) -> Option<String> {
        fs::read_to_string(self.dir.join(CGROUP)).ok()
    }

    /// From now on there is no such container for anybody, and its id stays taken. Does nothing for
    /// one of which nothing is known.
    pub(crate) fn forget(&self) -> Result<()> {
        match fs::rename(self.dir.join(STATE), self.dir.join(FORGOTTEN)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error)
                .with_context(|| format!("cannot rename {STATE} of {}", self.dir.display())),
            _ => Ok(()),
        }
    }

    /// The container whose removal did not come to its end.
    pub(crate) fn forgotten(&self) -> Result<Option<Container>> {
        read(&self.dir.join(FORGOTTEN))
    }

    /// Forgets the container, and gives back its id.
    pub(crate) fn remove(self) -> Result<()> {
        fs::remove_dir_all(&self.dir)
            .with_context(|| format!("cannot remove {}", self.dir.display()))
    }
}

/// The file that says who stands for the process `exec`, which was added to the container in `dir`.
pub(crate) fn exec_record_path(dir: &Path, exec: &str) -> PathBuf {
    dir.join(format!("exec-{exec}.json"))
}

/// Those who stand for the processes that were added to the container in `dir`, as far as they
/// live.
pub(crate) fn execs(dir: &Path) -> Vec<ProcessIdentity> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let records = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("exec-"));
    records
        .filter_map(|entry| read::<ProcessIdentity>(&entry.path()).ok().flatten())
        .filter(ProcessIdentity::is_alive)
        .collect()
}

/// Writes a file so that a reader sees all of it or what was there before.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    let fresh = path.with_file_name(name);
    fs::write(&fresh, bytes)
        .and_then(|()| fs::rename(&fresh, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Option<T>> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .with_context(|| format!("cannot understand {}", path.display())),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Locks a directory; `None` if it does not exist, or does no more by the time it is locked.
fn lock(dir: &Path) -> Result<Option<Locked>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = match openat(CWD, dir, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        opened => opened.with_context(|| format!("cannot open {}", dir.display()))?,
    };
    rustix::io::retry_on_intr(|| flock(&opened, FlockOperation::LockExclusive))
        .with_context(|| format!("cannot lock {}", dir.display()))?;
    let held = fstat(&opened).context("cannot look at what is locked")?;
    let is_there =
        fs::metadata(dir).is_ok_and(|now| now.ino() == held.st_ino && now.dev() == held.st_dev);
    Ok(is_there.then(|| Locked { dir: dir.to_owned(), _lock: opened }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(id: &str) -> Container {
        Container {
            id: id.to_owned(),
            oci_version: "1.0.2".to_owned(),
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            created: kata_log::now(),
            annotations: BTreeMap::new(),
            sandbox: id.to_owned(),
            stand_in: ProcessIdentity::of(std::process::id()).unwrap(),
            cgroups: Vec::new(),
            cgroup: String::new(),
            stage: Stage::Created,
            paused: false,
            poststart: Vec::new(),
            poststop: Vec::new(),
        }
    }

    #[test]
    fn a_container_is_reserved_once_saved_listed_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let registry = Registry::new(root.path()).unwrap();
        assert!(registry.list().unwrap().containers.is_empty());
        let locked = registry.reserve("c1").unwrap();
        let taken = registry.reserve("c1").unwrap_err();
        assert_eq!(taken.to_string(), "container with given ID already exists");
        assert!(registry.find("c1").unwrap().is_none(), "nothing is known yet");
        locked.save(&container("c1")).unwrap();
        assert_eq!(registry.load("c1").unwrap().status(), Status::Created);
        fs::create_dir_all(registry.sandbox_dir("c1").unwrap()).unwrap();
        assert_eq!(registry.list().unwrap().containers.len(), 1);
        locked.forget().unwrap();
        assert!(registry.find("c1").unwrap().is_none());
        assert_eq!(locked.forgotten().unwrap().unwrap().id, "c1");
        assert!(registry.reserve("c1").is_err(), "its id is free");
        locked.remove().unwrap();
        assert!(registry.lock("c1").unwrap().is_none());
        assert_eq!(registry.load("c1").unwrap_err().to_string(), UNKNOWN);
    }

    #[test]
    fn a_container_that_cannot_be_read_is_told_and_hides_no_other() {
        let root = tempfile::tempdir().unwrap();
        let registry = Registry::new(root.path()).unwrap();
        for id in ["c1", "c3"] {
            registry.reserve(id).unwrap().save(&container(id)).unwrap();
        }
        let bad = registry.reserve("c2").unwrap();
        fs::write(bad.dir().join(STATE), "").unwrap();
        let known = registry.list().unwrap();
        let ids: Vec<&str> = known.containers.iter().map(|one| one.id.as_str()).collect();
        assert_eq!(ids, ["c1", "c3"]);
        let errors: Vec<String> = known.unreadable.iter().map(ToString::to_string).collect();
        let path = bad.dir().join(STATE);
        assert_eq!(errors, [format!("cannot understand {}", path.display())]);
    }

    /// A field that is added needs a default, since containers outlive an update of this program.
    #[test]
    fn a_container_of_another_version_is_read() {
        let text = r#"{"id":"c1","sandbox":"c1","stand_in":{"pid":7,"start_time":9},
            "stage":"started","of_a_later_version":true}"#;
        let read: Container = serde_json::from_str(text).unwrap();
        assert_eq!((read.stand_in.pid, read.stage), (7, Stage::Started));
    }

    #[test]
    fn a_container_whose_stand_in_is_dead_has_stopped() {
        let mut stopped = container("c1");
        stopped.stage = Stage::Started;
        assert_eq!(stopped.status(), Status::Running);
        stopped.paused = true;
        assert_eq!(stopped.status(), Status::Paused);
        let mut child = std::process::Command::new("true").spawn().unwrap();
        stopped.stand_in = ProcessIdentity::of(child.id()).unwrap();
        child.wait().unwrap();
        assert_eq!((stopped.status(), stopped.pid()), (Status::Stopped, 0));
    }

    #[test]
    fn ids_that_are_no_plain_names_are_refused() {
        let registry = Registry::new(Path::new("/nonexistent")).unwrap();
        let empty = registry.find("").unwrap_err().to_string();
        assert_eq!(empty, "container id cannot be empty");
        for id in [".", "..", ".sandboxes", "/etc", "a/b", "a b", "ü"] {
            let error = registry.find(id).unwrap_err().to_string();
            assert!(error.starts_with("invalid container ID format"), "{id}: {error}");
            assert!(registry.sandbox_dir(id).is_err(), "{id}");
        }
        assert!(registry.find("a_b.c+d-e").unwrap().is_none());
    }
}
