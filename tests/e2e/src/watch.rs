//! Waiting for the world to change.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{Mode, OFlags, open};

use crate::deadline::Deadline;

/// Changes in directories, of the mount table and of processes, as one event. What happens after a
/// thing was added is not missed.
#[derive(Debug)]
pub(crate) struct Watch {
    directories: OwnedFd,
    mounts: OwnedFd,
}

impl Watch {
    pub(crate) fn new() -> Result<Self> {
        let directories = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .context("cannot watch directories")?;
        let mounts = open("/proc/self/mountinfo", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .context("cannot watch the mount table")?;
        Ok(Self { directories, mounts })
    }

    /// What is made, removed and moved in a directory. One that does not exist is not watched;
    /// watch its parent.
    pub(crate) fn names_in(&self, directory: &Path) -> Result<()> {
        let names =
            WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVE | WatchFlags::DELETE_SELF;
        self.add(directory, names)
    }

    /// Every use of a file, or of the files in a directory; also the execution of a program.
    pub(crate) fn use_of(&self, path: &Path) -> Result<()> {
        self.add(path, WatchFlags::OPEN | WatchFlags::ACCESS | WatchFlags::CLOSE)
    }

    /// What is written to a file.
    pub(crate) fn writes_to(&self, file: &Path) -> Result<()> {
        self.add(file, WatchFlags::MODIFY)
    }

    fn add(&self, path: &Path, flags: WatchFlags) -> Result<()> {
        match inotify::add_watch(&self.directories, path, flags) {
            Ok(_) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot watch {}", path.display())),
        }
    }

    /// Waits until something changes, or a descriptor of `others` is readable. False when the
    /// deadline has passed.
    pub(crate) fn wait(&self, others: &[BorrowedFd<'_>], deadline: Deadline) -> Result<bool> {
        let mut fds = vec![
            PollFd::new(&self.directories, PollFlags::IN),
            // The kernel's mark for a changed mount table; see proc_pid_mounts(5).
            PollFd::new(&self.mounts, PollFlags::PRI),
        ];
        fds.extend(others.iter().map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)));
        let ready = poll(&mut fds, Some(&deadline.timespec())).context("cannot poll")?;
        self.drain();
        Ok(ready > 0)
    }

    /// Forgets the events so far.
    fn drain(&self) {
        let mut buffer = [0; 4096];
        while rustix::io::read(&self.directories, &mut buffer).is_ok_and(|length| length > 0) {}
    }
}

/// Runs `find` now and after every change of `watch` until it finds something; `None` when the
/// deadline has passed.
pub(crate) fn until<T>(
    watch: &Watch,
    deadline: Deadline,
    find: impl Fn() -> Result<Option<T>>,
) -> Result<Option<T>> {
    loop {
        if let Some(found) = find()? {
            return Ok(Some(found));
        }
        if !watch.wait(&[], deadline)? {
            return Ok(None);
        }
    }
}

/// Waits until there is something at `path`, whose parent's parent is there already. False when the
/// deadline has passed.
pub fn await_path(path: &Path, deadline: Deadline) -> Result<bool> {
    let watch = Watch::new()?;
    let directories: Vec<&Path> = path.ancestors().skip(1).take(2).collect();
    let found = until(&watch, deadline, || {
        for directory in &directories {
            watch.names_in(directory)?;
        }
        Ok(path.exists().then_some(()))
    })?;
    Ok(found.is_some())
}

/// Waits until the file at `path` has one more name than that, in `directory`, whose parent is
/// there already. False when the deadline has passed.
pub fn await_link(path: &Path, directory: &Path, deadline: Deadline) -> Result<bool> {
    let watch = Watch::new()?;
    let found = until(&watch, deadline, || {
        for directory in directory.ancestors().take(2) {
            watch.names_in(directory)?;
        }
        let names = fs::metadata(path).with_context(|| format!("no {}", path.display()))?.nlink();
        Ok((names > 1).then_some(()))
    })?;
    Ok(found.is_some())
}
