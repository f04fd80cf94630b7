//! What Podman or Docker, and the runtime under them, may leave.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use super::machine::Machine;
use super::{Left, cgroups, files, mounts, wait_until_none};
use crate::engine::Engine;
use crate::mark::Mark;
use crate::process;

/// As long as what carries this test's names may stay.
const PATIENCE: Duration = Duration::from_secs(60);

/// As long as a name may stay that could be another test's, which has come after this one and goes
/// with it: there is a test whose container runs Docker.
const PATIENCE_WITH_OTHERS: Duration = Duration::from_secs(300);

/// Programs that are there as long as a daemon is.
const DAEMONS: &[&str] = &["dockerd", "containerd"];

/// Where containers of Docker have a directory while they are there, below the fixture's own.
const OF_CONTAINERS: &[&str] = &[
    "exec/runtime-runc/moby",
    "exec/runtime-runc/moby/.sandboxes",
    "exec/containerd/daemon/io.containerd.runtime.v2.task/moby",
    "data/containers",
];

/// Where one engine may leave traces.
#[derive(Debug)]
pub(crate) struct EngineTraces<'a> {
    engine: &'a Engine,
    before: Machine,
}

impl<'a> EngineTraces<'a> {
    /// `before` is the machine before the engine had started.
    pub(crate) fn of(engine: &'a Engine, before: Machine) -> Self {
        Self { engine, before }
    }

    /// Waits until nothing is left but the engine itself.
    pub(crate) fn vanish(&self) -> Result<()> {
        // What comes while this waits is another test's.
        let came = Machine::since(&self.before);
        let places: Vec<PathBuf> = Machine::places().map(Path::to_owned).collect();
        let mut directories = places.clone();
        directories.extend(self.of_containers());
        directories.extend(cgroups::parents(self.engine.mark()));
        wait_until_none(&directories, PATIENCE, || {
            let mut left = self.processes_and_mounts()?;
            let is_daemon = |program: &Path| DAEMONS.iter().any(|name| program.ends_with(name));
            left.processes.retain(|process| !is_daemon(&process.program));
            left.others.extend(cgroups::left(self.engine.mark()));
            left.others.extend(self.files());
            let marks = self.marks();
            let is_own = |name: &String| marks.iter().any(|mark| mark.is_in(name.as_bytes()));
            left.others.extend(came.left().into_iter().filter(is_own));
            Ok(left)
        })?;
        wait_until_none(&places, PATIENCE_WITH_OTHERS, || {
            Ok(Left { processes: Vec::new(), others: came.left() })
        })
    }

    /// Waits until the daemon has left nothing, for it has ended.
    pub(crate) fn vanish_with_daemon(&self) -> Result<()> {
        wait_until_none(&[], PATIENCE, || self.processes_and_mounts())
    }

    fn processes_and_mounts(&self) -> Result<Left> {
        let mut left = Left { processes: Vec::new(), others: Vec::new() };
        for mark in self.marks() {
            left.processes.extend(process::marked(&mark)?);
            left.others.extend(mounts(&mark)?.into_iter().filter(|line| !self.is_engines(line)));
        }
        Ok(left)
    }

    /// What this test's things have in their names: its mark, or the id of a container that it
    /// knows.
    fn marks(&self) -> Vec<Mark> {
        let ids = self.engine.ids();
        ids.iter().map(|id| Mark::of(id)).chain([self.engine.mark().clone()]).collect()
    }

    /// Mounts that are the engine's own: Podman's of its storage, Docker's of its data and network
    /// namespace, and the fixture's namespace.
    fn is_engines(&self, mount: &str) -> bool {
        let point = Path::new(mount.split(' ').nth(5).unwrap_or_default());
        let is_one = |own: &str| point == self.engine.directory().join(own);
        ["storage/overlay", "exec/netns/default", "data"].iter().any(|own| is_one(own))
    }

    fn of_containers(&self) -> impl Iterator<Item = PathBuf> {
        OF_CONTAINERS.iter().map(|place| self.engine.directory().join(place))
    }

    fn files(&self) -> Vec<String> {
        let marked = files::marked_outside(self.engine.directory(), self.engine.mark());
        let of_containers = self.of_containers().flat_map(|place| files::entries(&place));
        let left = marked.into_iter().chain(of_containers);
        let left = left.filter(|path| !path.ends_with(".sandboxes"));
        left.map(|path| format!("file: {}", path.display())).collect()
    }
}
