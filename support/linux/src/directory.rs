//! What comes into a directory, as events (inotify(7)).

#![expect(
    unsafe_code,
    reason = "tokio takes descriptors that belong to it for good only by an unsafe call"
)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Enough for any event: a name has 255 bytes at most (inotify(7)).
const ROOM: usize = 4096;

/// Watches a directory from the moment on at which it was opened. To wait for a file, open this
/// first, then look whether it is there, then wait.
#[derive(Debug)]
pub struct DirectoryWatch(AsyncFd<OwnedFd>);

impl DirectoryWatch {
    /// Begins to watch.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&watch, directory, WatchFlags::CREATE | WatchFlags::MOVED_TO)?;
        // SAFETY: an `OwnedFd` is open and the same until it is dropped, which the `AsyncFd` does
        // after deregistering it.
        Ok(Self(unsafe { AsyncFd::register_with_interest(watch, Interest::READABLE) }?))
    }

    /// Resolves when something has come since the last time.
    pub async fn next(&self) -> io::Result<()> {
        let mut events = [MaybeUninit::uninit(); ROOM];
        loop {
            let mut ready = self.0.readable().await?;
            let read = ready.try_io(|watch| {
                let mut reader = inotify::Reader::new(watch, &mut events);
                reader.next().map(drop).map_err(io::Error::from)
            });
            if let Ok(read) = read {
                return read;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn file_that_comes_is_an_event() {
        let directory = tempfile::tempdir().unwrap();
        let watch = DirectoryWatch::open(directory.path()).unwrap();
        std::fs::write(directory.path().join("one"), "").unwrap();
        tokio::time::timeout(std::time::Duration::from_secs(10), watch.next())
            .await
            .unwrap()
            .unwrap();
    }
}
