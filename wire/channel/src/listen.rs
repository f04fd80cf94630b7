//! The guest's end of the serial channel.

use std::fmt;
use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc};
use yamux::Mode;

use crate::ChannelStream;
use crate::handshake::{ok_line, parse_connect, read_line};
use crate::mux::{Driver, MAX_STREAMS, MuxStream};

/// Accepts the streams that the host opens over one carrier.
#[derive(Debug)]
pub struct SerialListener {
    pending: mpsc::Receiver<(u32, PendingStream)>,
}

impl SerialListener {
    /// Takes the carrier over and spawns the task that drives it on the current tokio runtime. The
    /// task ends when the carrier does; streams outlive the listener.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn new<T: AsyncRead + AsyncWrite + Send + Unpin + 'static>(carrier: T) -> Self {
        let (accepted, pending) = mpsc::channel(MAX_STREAMS);
        let (no_requests, requests) = mpsc::channel(1);
        let driver = Driver::new(carrier, Mode::Server, Arc::new(Semaphore::new(MAX_STREAMS)));
        tokio::spawn(async move {
            // The sender is kept so that the queue is merely empty, not closed.
            let _no_requests = no_requests;
            // Only the driver holds the queue beyond a handshake: with its end `accept` returns
            // `None`.
            let on_inbound = |stream| {
                // A task per handshake, so that an opener who dawdles holds up nobody else. There
                // are at most MAX_STREAMS.
                tokio::spawn(shake_hands(stream, accepted.clone()));
            };
            driver.run(requests, on_inbound).await;
        });
        Self { pending }
    }

    /// The next stream that the host has asked for, and the port that it wants. `None` when the
    /// carrier is gone.
    pub async fn accept(&mut self) -> Option<(u32, PendingStream)> {
        self.pending.recv().await
    }
}

/// Reads the opener's line. A stream that ends before it or does not speak the protocol is dropped,
/// which resets it.
async fn shake_hands(mut stream: MuxStream, accepted: mpsc::Sender<(u32, PendingStream)>) {
    let Ok(Some(Ok(line))) = read_line(&mut stream).await else { return };
    let Ok(port) = parse_connect(&line) else { return };
    // An error means that the listener is gone, and with it whoever would serve the stream.
    let _ = accepted.send((port, PendingStream { port, stream })).await;
}

/// A stream that the host has asked for and that is neither granted nor refused yet. Dropping it
/// refuses it.
pub struct PendingStream {
    port: u32,
    stream: MuxStream,
}

impl PendingStream {
    /// Grants the stream.
    pub async fn accept(mut self) -> io::Result<ChannelStream> {
        self.stream.write_all(ok_line(self.port).as_bytes()).await?;
        self.stream.flush().await?;
        Ok(Box::new(self.stream))
    }

    /// Refuses the stream: the host's dial fails at once.
    pub fn refuse(self) {}
}

impl fmt::Debug for PendingStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingStream").field("port", &self.port).finish_non_exhaustive()
    }
}
