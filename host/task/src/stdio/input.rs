//! From the host to the guest's process.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::unix::pipe;
use tokio::sync::watch;

use super::fifo::StdinFifo;
use super::{GuestStreams, StreamError};

/// As much as is read from the fifo at once: several times what one holds by default.
const CHUNK: usize = 256 << 10;

/// The writing end of stdin that stays open until the engine closes stdin.
// A mutex and not a channel: closing must work before anything runs that could receive, and is
// never held over an await.
#[derive(Debug, Clone, Default)]
pub(super) struct StdinHold(Arc<Mutex<Option<OwnedFd>>>);

impl StdinHold {
    pub(super) fn new(writer: OwnedFd) -> Self {
        Self(Arc::new(Mutex::new(Some(writer))))
    }

    /// Closes it. The input ends when it has been read and no client has it open.
    pub(super) fn release(&self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// Copies stdin until its end or the process's.
pub(super) fn spawn(
    stdin: Option<StdinFifo>,
    hold: StdinHold,
    terminal: bool,
    guest: Arc<dyn GuestStreams>,
    mut ended: watch::Receiver<bool>,
) {
    tokio::spawn(async move {
        let copy = async {
            match &stdin {
                Some(fifo) => copy(&fifo.0, &*guest).await,
                // Nobody wants to write: without a terminal the process reads the end at once, as
                // from /dev/null.
                None if !terminal => guest.close_stdin().await,
                None => Ok(()),
            }
        };
        tokio::select! {
            result = copy => if let Err(error) = result {
                tracing::debug!("input ends: {error}");
            },
            _ = ended.wait_for(|ended| *ended) => {}
        }
        // With both of our ends closed, a client that still writes learns that nobody reads.
        hold.release();
    });
}

/// Copies all of the input, then closes the process's stdin.
async fn copy(fifo: &pipe::Receiver, guest: &dyn GuestStreams) -> Result<(), StreamError> {
    let mut chunk = read(fifo).await?;
    while !chunk.is_empty() {
        // The next one is read while this one is on its way; a process that takes no more ends
        // both.
        let ((), next) = tokio::try_join!(write_all(guest, &chunk), read(fifo))?;
        chunk = next;
    }
    guest.close_stdin().await
}

/// The next bytes; empty at the end.
async fn read(fifo: &pipe::Receiver) -> Result<Vec<u8>, StreamError> {
    loop {
        fifo.readable().await.map_err(StreamError::new)?;
        // Allocated when there is something to read: a process that waits for input costs nothing.
        let mut bytes = Vec::with_capacity(CHUNK);
        match fifo.try_read_buf(&mut bytes) {
            Ok(_) => return Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(StreamError::new(error)),
        }
    }
}

async fn write_all(guest: &dyn GuestStreams, bytes: &[u8]) -> Result<(), StreamError> {
    let mut rest = bytes;
    while !rest.is_empty() {
        rest = match guest.write_stdin(rest.to_vec()).await? {
            // A guest that takes nothing would be asked for ever.
            0 => return Err(StreamError::new(io::Error::from(io::ErrorKind::WriteZero))),
            taken => rest.get(taken..).unwrap_or_default(),
        };
    }
    Ok(())
}
