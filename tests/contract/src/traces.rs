//! What a VM leaves behind, if it does.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tokio::time::timeout;

use crate::bench::SOON;

/// What there was before a VM was booted.
#[derive(Debug)]
pub(crate) struct Traces {
    sandbox: String,
    directory: PathBuf,
    descriptors: BTreeSet<String>,
}

impl Traces {
    /// Before the VM of this sandbox, all of whose files are in `directory`.
    pub(crate) fn before(sandbox: &str, directory: &Path) -> Result<Self> {
        let directory = directory.to_owned();
        Ok(Self { sandbox: sandbox.to_owned(), directory, descriptors: descriptors()? })
    }

    /// Waits until nothing more than before is there: no process of the VM's, no descriptor of this
    /// process's, and nothing mounted for it.
    pub(crate) async fn vanish(&self) -> Result<()> {
        let gone = async {
            // Whoever reaps the VMM closes descriptors in threads of its own, and nothing tells of
            // one that is closed.
            while !self.left()?.is_empty() {
                tokio::task::yield_now().await;
            }
            anyhow::Ok(())
        };
        match timeout(SOON, gone).await {
            Ok(gone) => gone,
            Err(_) => bail!("left behind: {:?}", self.left()?),
        }
    }

    fn left(&self) -> Result<Vec<String>> {
        let mut left: Vec<String> = descriptors()?.difference(&self.descriptors).cloned().collect();
        left.extend(processes_of(&self.sandbox)?);
        let mounts =
            fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
        let directory = self.directory.display().to_string();
        left.extend(mounts.lines().filter(|mount| mount.contains(&directory)).map(str::to_owned));
        Ok(left)
    }
}

/// The processes whose command line names the sandbox, which every driver's does.
pub(crate) fn processes_of(sandbox: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("cannot read /proc")? {
        let directory = entry.context("cannot read /proc")?.path();
        // What is gone by now is no trace.
        let command_line = fs::read(directory.join("cmdline")).unwrap_or_default();
        let command_line = String::from_utf8_lossy(&command_line).replace('\0', " ");
        if command_line.contains(sandbox) {
            found.push(format!("{}: {command_line}", directory.display()));
        }
    }
    Ok(found)
}

/// Whether the process is gone.
pub(crate) fn is_gone(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

/// What this process's descriptors lead to, but for those of the other tests' event loops.
fn descriptors() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc/self/fd").context("cannot read /proc/self/fd")? {
        let path = entry.context("cannot read /proc/self/fd")?.path();
        let number: Option<RawFd> =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        let Ok(target) = fs::read_link(&path) else { continue };
        let target = target.display().to_string();
        let of_event_loop =
            target.starts_with("anon_inode:[event") || target.ends_with("/fd") || number.is_none();
        if !of_event_loop {
            found.insert(target);
        }
    }
    Ok(found)
}
