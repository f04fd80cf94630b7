//! Freezing, and hearing of the out-of-memory killer: the kernel tells of both by changing a file.

use std::mem::MaybeUninit;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use super::{Cgroup, CgroupError};
use crate::descriptor::Descriptor;

/// Watches one file for changes.
#[derive(Debug)]
struct Watch {
    file: PathBuf,
    inotify: Descriptor,
}

impl Watch {
    fn new(file: PathBuf) -> Result<Self, CgroupError> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .and_then(|fd| {
                inotify::add_watch(&fd, &file, WatchFlags::MODIFY)?;
                Ok(fd)
            })
            .map_err(std::io::Error::from)
            .and_then(Descriptor::new);
        match inotify {
            Ok(inotify) => Ok(Self { file, inotify }),
            Err(source) => Err(CgroupError::Watch { file, source }),
        }
    }

    /// Returns when the file has changed. Of its removal only newer kernels tell.
    async fn changed(&self) -> Result<(), CgroupError> {
        // What the events say does not matter: there is one file, and it is read anew.
        let drain = |fd: std::os::fd::BorrowedFd<'_>| {
            let mut buffer = [MaybeUninit::uninit(); 1024];
            Ok(inotify::Reader::new(fd, &mut buffer).next().map(drop)?)
        };
        self.inotify
            .read_with(drain)
            .await
            .map_err(|source| CgroupError::Watch { file: self.file.clone(), source })
    }
}

/// Hears of processes that the kernel killed because the group's memory limit was reached.
#[derive(Debug)]
pub struct OomWatch {
    cgroup: Cgroup,
    watch: Watch,
    killed: u64,
}

impl OomWatch {
    /// Returns when another process has been killed. An error is the end: the group is gone, which
    /// may go unnoticed.
    ///
    /// # Errors
    ///
    /// Fails when the group has been removed.
    pub async fn killed(&mut self) -> Result<(), CgroupError> {
        loop {
            let killed = self.cgroup.oom_kills()?;
            if killed > self.killed {
                self.killed = killed;
                return Ok(());
            }
            self.watch.changed().await?;
        }
    }
}

/// How long the processes of a group may take to stop: less than the host waits for an answer.
const FREEZING: Duration = Duration::from_secs(10);

impl Cgroup {
    /// Begins to watch for the out-of-memory killer; what it did before does not count.
    ///
    /// # Errors
    ///
    /// Fails when the group has no memory controller.
    pub fn watch_oom(&self) -> Result<OomWatch, CgroupError> {
        let watch = Watch::new(self.file("memory.events"))?;
        Ok(OomWatch { cgroup: self.clone(), watch, killed: self.oom_kills()? })
    }

    /// How many processes of the group and of those below it the kernel has killed because a memory
    /// limit was reached.
    ///
    /// # Errors
    ///
    /// Fails when the group is gone, or has no memory controller.
    pub fn oom_kills(&self) -> Result<u64, CgroupError> {
        Ok(value_of(&self.read("memory.events")?, "oom_kill").unwrap_or(0))
    }

    /// Freezes or thaws all processes of the group, and returns once they are. What cannot be
    /// frozen within ten seconds is thawed again.
    ///
    /// # Errors
    ///
    /// Fails when the group is gone, and when a process waits for a device and so cannot be
    /// stopped.
    pub async fn freeze(&self, frozen: bool) -> Result<(), CgroupError> {
        let wanted = u64::from(frozen);
        let watch = Watch::new(self.file("cgroup.events"))?;
        self.set("cgroup.freeze", if frozen { "1" } else { "0" })?;
        let settled = async {
            while value_of(&self.read("cgroup.events")?, "frozen") != Some(wanted) {
                watch.changed().await?;
            }
            Ok(())
        };
        if let Ok(settled) = tokio::time::timeout(FREEZING, settled).await {
            return settled;
        }
        self.set("cgroup.freeze", "0")?;
        Err(CgroupError::Unstoppable { after: FREEZING })
    }

    /// Returns when no process is left in the group, at once if it is gone.
    ///
    /// # Errors
    ///
    /// Fails when the group cannot be watched.
    pub async fn emptied(&self) -> Result<(), CgroupError> {
        // Mostly it is empty already, and a watch is dear to give up: the kernel waits for a grace
        // period then.
        if self.is_empty() || !self.directory().exists() {
            return Ok(());
        }
        let watch = Watch::new(self.file("cgroup.events"))?;
        while !self.is_empty() && self.directory().exists() {
            watch.changed().await?;
        }
        Ok(())
    }
}

/// The number after `key` in a file of `key number` lines.
pub(super) fn value_of(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_of_matches_whole_keys() {
        let text = "oom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(value_of(text, "oom_kill"), Some(2));
        assert_eq!(value_of(text, "kill"), None);
    }
}
