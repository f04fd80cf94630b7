//! The check that nothing of ours is left.
//!
//! ```text
//!   Traces::before() ─▶ of(containerd) ─▶ … the test … ─▶ vanish() ─▶ daemon stops ─▶ vanish_with_daemon()
//!     network devices     mark, paths                      all but the daemon           not one process or mount
//! ```
//!
//! What has to go may take its time to go: the check looks again whenever something changes, until
//! its deadline.

mod cgroups;
mod engine;
mod files;
mod machine;
mod network;

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::containerd::Containerd;
use crate::deadline::Deadline;
use crate::mark::Mark;
use crate::netns::Netns;
use crate::process::{self, Process};
use crate::watch::Watch;

pub(crate) use cgroups::remove as remove_cgroups;
pub(crate) use engine::EngineTraces;
pub(crate) use files::remove as remove_files;
pub(crate) use machine::Machine;

/// How long things may take to go after the engine has said that they are gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was there before a fixture, and belongs to others.
#[derive(Debug)]
pub(crate) struct Before {
    network: BTreeSet<String>,
}

/// Where one fixture may leave traces.
#[derive(Debug)]
pub(crate) struct Traces<'a> {
    containerd: &'a Containerd,
    before: Before,
}

impl Traces<'_> {
    /// Takes note of what is there.
    pub(crate) fn before() -> Result<Before> {
        Ok(Before { network: network::names()? })
    }
}

impl Before {
    /// What comes from now on is the fixture's.
    pub(crate) fn of(self, containerd: &Containerd) -> Traces<'_> {
        Traces { containerd, before: self }
    }
}

impl Before {
    /// Waits until nothing is left of containers that were made by hand. `directory` is the test's
    /// own, `sandboxes` where the runtime keeps them.
    pub(crate) fn vanish_by_hand(
        &self,
        mark: &Mark,
        directory: &Path,
        sandboxes: &Path,
    ) -> Result<()> {
        let mut directories: Vec<PathBuf> = files::places().map(Path::to_owned).collect();
        directories.push(sandboxes.to_owned());
        directories.extend(cgroups::parents(mark));
        wait_until_none(&directories, PATIENCE, || {
            let mut left = Left { processes: process::marked(mark)?, others: mounts(mark)? };
            left.others.extend(cgroups::left(mark));
            left.others.extend(files::left_by_hand(mark, directory, sandboxes));
            left.others.extend(network::left_by_hand(&self.network, mark)?);
            Ok(left)
        })
    }
}

/// Removes mounts and files that carry the mark, outside of the test's own directory.
pub(crate) fn remove_by_hand(mark: &Mark, directory: &Path) {
    for mount in mounts(mark).unwrap_or_default().iter().rev() {
        let point = mount.split(' ').nth(5).unwrap_or_default();
        // One in another's namespace, or gone with its parent, is not to be found here.
        let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
    }
    files::remove_by_hand(mark, directory);
}

impl Traces<'_> {
    /// Waits until nothing is left but the daemon and its directories.
    pub(crate) fn vanish(&self) -> Result<()> {
        self.wait_until_none(|| self.left())
    }

    /// Waits until nothing is left at all, for the daemon has ended.
    pub(crate) fn vanish_with_daemon(&self) -> Result<()> {
        self.wait_until_none(|| self.processes_and_mounts())
    }

    fn processes_and_mounts(&self) -> Result<Left> {
        let mut left = Left { processes: Vec::new(), others: Vec::new() };
        for mark in self.containerd.marks() {
            left.processes.extend(process::marked(&mark)?);
            left.others.extend(mounts(&mark)?);
        }
        Ok(left)
    }

    fn wait_until_none(&self, find: impl Fn() -> Result<Left>) -> Result<()> {
        wait_until_none(&self.directories(), PATIENCE, find)
    }

    /// Directories in which the disappearance of something is an event.
    fn directories(&self) -> Vec<PathBuf> {
        let mut directories = files::directories(self.containerd);
        for mark in self.containerd.marks() {
            directories.extend(cgroups::parents(&mark));
        }
        directories
    }

    fn left(&self) -> Result<Left> {
        let daemon = self.containerd.pid();
        let mut left = self.processes_and_mounts()?;
        left.processes.retain(|process| process.pid != daemon);
        let marks = self.containerd.marks();
        left.others.extend(marks.iter().flat_map(cgroups::left));
        left.others.extend(files::left(self.containerd));
        left.others.extend(network::left(&self.before.network, &marks)?);
        Ok(left)
    }
}

/// Waits until `find` finds nothing, and looks again whenever something changes in the directories,
/// or a process of it ends.
fn wait_until_none(
    directories: &[PathBuf],
    patience: Duration,
    find: impl Fn() -> Result<Left>,
) -> Result<()> {
    let deadline = Deadline::after(patience);
    let watch = Watch::new()?;
    for directory in directories {
        watch.names_in(directory)?;
    }
    let links = network::changes()?;
    loop {
        let left = find()?;
        if left.is_nothing() {
            return Ok(());
        }
        let mut events = vec![links.as_fd()];
        events.extend(left.processes.iter().map(|process| process.pidfd().as_fd()));
        if !watch.wait(&events, deadline)? {
            bail!("left behind after {:.0?}:\n{}", deadline.elapsed(), left.describe());
        }
        network::drain(&links);
    }
}

struct Left {
    processes: Vec<Process>,
    others: Vec<String>,
}

impl Left {
    fn is_nothing(&self) -> bool {
        self.processes.is_empty() && self.others.is_empty()
    }

    fn describe(&self) -> String {
        let processes = self.processes.iter().map(Process::describe);
        processes.chain(self.others.iter().cloned()).collect::<Vec<_>>().join("\n")
    }
}

/// The mounts that carry `mark`, but for the network that stands for the engine's host.
fn mounts(mark: &Mark) -> Result<Vec<String>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
    let is_host = |line: &str| line.split(' ').nth(4).is_some_and(|at| Netns::is_one(at.as_ref()));
    let left = table.lines().filter(|line| mark.is_in(line.as_bytes()) && !is_host(line));
    Ok(left.map(|line| format!("mount: {line}")).collect())
}
