//! Fifos, opened so that nothing depends on when the other side comes or goes (fifo(7)).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use kata_linux::descriptors;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{Mode, OFlags, open};
use tokio::net::unix::pipe;
use tokio::time::Instant;

/// How long after its opening a fifo is kept for a client that is about to read from it.
/// containerd's clients start a thread for that, which on a busy machine may come after the end of
/// a short process; and they give up what it has not begun with when they hear of that end.
const ON_ITS_WAY: Duration = Duration::from_secs(2);

/// The end that the process's input comes from.
#[derive(Debug)]
pub(super) struct StdinFifo(pub(super) pipe::Receiver);

impl StdinFifo {
    /// Opens the fifo to read, and beside it a writing end: as long as that is held, clients may
    /// come and go without the process seeing the end of its input.
    pub(super) fn open(path: &Path) -> io::Result<(Self, OwnedFd)> {
        let reader = pipe::OpenOptions::new().open_receiver(path)?;
        let writer =
            open(path, OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
        Ok((Self(reader), writer))
    }
}

/// The end that the process's output goes to.
#[derive(Debug)]
pub(super) struct OutputFifo {
    pub(super) writer: pipe::Sender,
    /// A reading end of our own, so that output waits for a client that is away, instead of
    /// failing. `None` once that is over.
    pub(super) own_reader: Option<OwnedFd>,
    opened: Instant,
}

impl OutputFifo {
    /// Opens both ends; needs nobody at the other side.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let reader =
            open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
        let writer = pipe::OpenOptions::new().open_sender(path)?;
        Ok(Self { writer, own_reader: Some(reader), opened: Instant::now() })
    }

    /// Closes it, after all has been written. A client that has not had the time to begin to read
    /// is waited for.
    pub(super) async fn close(mut self) {
        self.own_reader = None;
        let taken = async {
            if let Err(error) = self.taken().await {
                tracing::debug!("cannot wait for a fifo's reader: {error}");
                // Without its events there is nothing to wait for but the time.
                std::future::pending::<()>().await;
            }
        };
        if self.has_unread() {
            // An error is the time's end: there is no such client.
            let _ = tokio::time::timeout_at(self.opened + ON_ITS_WAY, taken).await;
        }
    }

    /// Resolves when all that was written has been read.
    async fn taken(&self) -> io::Result<()> {
        let uses = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let fifo = format!("/proc/self/fd/{}", self.writer.as_raw_fd());
        inotify::add_watch(&uses, fifo, WatchFlags::ACCESS)?;
        let uses = descriptors::register(uses)?;
        // What was read before the watch has caused no event.
        while self.has_unread() {
            let mut ready = uses.readable().await?;
            let _ = rustix::io::read(uses.get_ref(), &mut [0; 1024]);
            ready.clear_ready();
        }
        Ok(())
    }

    fn has_unread(&self) -> bool {
        rustix::io::ioctl_fionread(&self.writer).is_ok_and(|unread| unread > 0)
    }
}
