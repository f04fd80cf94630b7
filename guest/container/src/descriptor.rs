//! A file descriptor that is waited for, not blocked on.
#![expect(unsafe_code, reason = "the runtime asks for a promise that OwnedFd cannot break")]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::OFlags;
use tokio::io::unix::AsyncFd;

/// The time between two looks at a terminal that was hung up once. It may be open again, but the
/// runtime remembers the hang-up for good, and never waits for it any more.
const AGAIN: Duration = Duration::from_millis(10);

/// A pipe's end, a terminal's master or a socket, in non-blocking mode.
#[derive(Debug)]
pub(crate) struct Descriptor(AsyncFd<OwnedFd>);

impl Descriptor {
    /// Makes `fd` non-blocking and registers it. Call it inside of the runtime.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        // SAFETY: an OwnedFd is open, and stays the same descriptor for as long as it lives.
        let registered = unsafe { AsyncFd::register(fd) };
        Ok(Self(registered.map_err(io::Error::from)?))
    }

    /// Runs `read` whenever there may be something, until it does not say "would block".
    pub(crate) async fn read_with<T>(
        &self,
        mut read: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            let mut guard = self.0.readable().await?;
            let hung_up = guard.ready().is_read_closed();
            match guard.try_io(|fd| read(fd.as_fd())) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return result,
                Err(_would_block) if hung_up => tokio::time::sleep(AGAIN).await,
                Err(_would_block) => {}
            }
        }
    }

    /// Writes all of `data`, waiting for room as often as it takes.
    pub(crate) async fn write_all(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let mut guard = self.0.writable().await?;
            let hung_up = guard.ready().is_write_closed();
            match guard.try_io(|fd| Ok(rustix::io::write(fd, data)?)) {
                Ok(Ok(written)) => data = &data[written..],
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) if hung_up => tokio::time::sleep(AGAIN).await,
                Err(_would_block) => {}
            }
        }
        Ok(())
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}
