//! From the guest's process to the host.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::unix::pipe;
use tokio::sync::watch;

use super::fifo::OutputFifo;
use super::{GuestStreams, StreamError};

/// As much as is asked of the guest at once.
const CHUNK: u32 = 1 << 20;

/// How long output that nobody takes is kept for after the process has ended. As long as runc's
/// shim waits.
const AWAY: Duration = Duration::from_secs(2);

/// How long somebody who is there may take nothing before the end of the process is told in spite
/// of them.
const STALLED: Duration = Duration::from_secs(5);

/// Where output goes.
#[derive(Debug)]
pub(super) enum Sink {
    /// Read from the guest, so that the process is not held up, and forgotten.
    Nowhere,
    Fifo(OutputFifo),
    File(File),
    /// To a log program.
    Pipe(pipe::Sender),
}

impl Sink {
    /// Opens a fifo, whose other end is not waited for, or a file to append to. Two streams may go
    /// to the same one: each is written at its end then.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        if fs::metadata(path)?.file_type().is_fifo() {
            Ok(Self::Fifo(OutputFifo::open(path)?))
        } else {
            Ok(Self::File(File::options().append(true).open(path)?))
        }
    }

    /// The same, and a file that is not there is made, with its directories.
    pub(super) fn open_or_create(path: &Path) -> io::Result<Self> {
        match Self::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => return opened,
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let file = File::options().append(true).create(true).mode(0o644).open(path)?;
        Ok(Self::File(file))
    }

    /// Writes all of `bytes`, however long the other side takes. Once the process has ended, a side
    /// that does not take anything for a while is not waited for: a fifo that nobody has open, and
    /// a log program that hangs. Somebody who is there and takes nothing stalls.
    async fn write_all(&mut self, bytes: &[u8], watched: &Watched) -> io::Result<()> {
        let (writer, mut own_reader) = match self {
            Self::Nowhere => return Ok(()),
            // Files cannot be waited for; writing to one takes no longer than the disk does.
            Self::File(file) => return file.write_all(bytes),
            Self::Fifo(fifo) => (&fifo.writer, Some(&mut fifo.own_reader)),
            Self::Pipe(writer) => (&*writer, None),
        };
        let mut rest = bytes;
        while !rest.is_empty() {
            match writer.try_write(rest) {
                Ok(written) => {
                    rest = &rest[written..];
                    watched.set_stalled(false);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => tokio::select! {
                    ready = writer.writable() => ready?,
                    () = watched.ended_for(STALLED), if !watched.is_stalled() => watched.set_stalled(true),
                    () = watched.ended_for(AWAY), if !matches!(own_reader, Some(None)) => match &mut own_reader {
                        // Without our own end, nobody at the other one is an error at once, and
                        // somebody is waited for.
                        Some(own_reader) => **own_reader = None,
                        None => return Err(io::ErrorKind::TimedOut.into()),
                    },
                },
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// What the two streams of a process and whoever waits for them know of each other.
#[derive(Debug)]
pub(super) struct Watched {
    /// Whether the process has ended.
    pub(super) ended: watch::Receiver<bool>,
    /// Whether a reader has taken nothing for [`STALLED`] since then.
    pub(super) stalled: watch::Sender<bool>,
}

impl Watched {
    /// Resolves so long after the process has ended.
    async fn ended_for(&self, time: Duration) {
        // An error means that nobody waits for the output any more, which is an end as well.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
        tokio::time::sleep(time).await;
    }

    fn is_stalled(&self) -> bool {
        *self.stalled.borrow()
    }

    fn set_stalled(&self, stalled: bool) {
        self.stalled.send_if_modified(|before| std::mem::replace(before, stalled) != stalled);
    }
}

/// Which of the two.
#[derive(Debug, Clone, Copy)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    async fn read(self, guest: &dyn GuestStreams) -> Vec<u8> {
        let read: Result<_, StreamError> = match self {
            Self::Stdout => guest.read_stdout(CHUNK).await,
            Self::Stderr => guest.read_stderr(CHUNK).await,
        };
        read.unwrap_or_else(|error| {
            tracing::debug!(stream = ?self, "output ends: {error}");
            Vec::new()
        })
    }
}

/// Copies one stream to its end. `copying` is dropped when that is reached and the sink closed.
pub(super) fn spawn(
    stream: Stream,
    mut sink: Sink,
    guest: Arc<dyn GuestStreams>,
    watched: Watched,
    copying: watch::Sender<()>,
) {
    tokio::spawn(async move {
        let mut chunk = stream.read(&*guest).await;
        while !chunk.is_empty() {
            // The guest prepares the next one while this one is written.
            let (written, next) =
                tokio::join!(sink.write_all(&chunk, &watched), stream.read(&*guest));
            if let Err(error) = written {
                tracing::warn!(?stream, "output goes nowhere from here on: {error}");
                sink = Sink::Nowhere;
            }
            chunk = next;
        }
        if let Sink::Fifo(fifo) = sink {
            fifo.close().await;
        }
        drop(copying);
    });
}
