//! Fifos, opened so that nothing depends on when the other side comes or goes (fifo(7)).

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};
use tokio::net::unix::pipe;

/// The end that the process's input comes from.
#[derive(Debug)]
pub(super) struct StdinFifo(pub(super) pipe::Receiver);

impl StdinFifo {
    /// Opens the fifo to read, and beside it a writing end: as long as that is held, clients may come and go without the process
    /// seeing the end of its input.
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
    /// A reading end of our own, so that output waits for a client that is away, instead of failing. `None` once that is over.
    pub(super) own_reader: Option<OwnedFd>,
}

impl OutputFifo {
    /// Opens both ends; needs nobody at the other side.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let reader =
            open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
        let writer = pipe::OpenOptions::new().open_sender(path)?;
        Ok(Self { writer, own_reader: Some(reader) })
    }
}
