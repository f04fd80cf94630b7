//! The host's end of the serial channel.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use yamux::Mode;

use crate::handshake::{connect_line, parse_ok, read_line};
use crate::mux::{Driver, MAX_STREAMS, MuxStream, StreamRequest};
use crate::{ChannelError, ChannelStream};

/// Opens streams to the guest's ports over one carrier. Clones share the carrier.
#[derive(Debug, Clone)]
pub struct SerialDialer {
    requests: mpsc::Sender<(StreamRequest, OwnedSemaphorePermit)>,
    permits: Arc<Semaphore>,
}

impl SerialDialer {
    /// Takes the carrier over and spawns the task that drives it on the current tokio runtime. The task ends when the carrier does, that
    /// is with the VM; streams outlive the dialer.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn new<T: AsyncRead + AsyncWrite + Send + Unpin + 'static>(carrier: T) -> Self {
        let permits = Arc::new(Semaphore::new(MAX_STREAMS));
        let (requests, queue) = mpsc::channel(1);
        // The guest is only ever dialled: a stream that it opens gets no permit, so it is reset.
        let driver = Driver::new(carrier, Mode::Client, Arc::new(Semaphore::new(0)));
        tokio::spawn(driver.run(queue, drop));
        Self { requests, permits }
    }

    /// Opens a stream to `port` and resolves when the guest has accepted it, however long that takes: also a guest that has not yet booted
    /// may be dialled, and the caller sets the deadline. Dropping the future gives the attempt up.
    pub async fn dial(&self, port: u32) -> Result<ChannelStream, ChannelError> {
        let mut stream = self.open().await?;
        let io = |source| ChannelError::Io { port, source };
        stream.write_all(connect_line(port).as_bytes()).await.map_err(io)?;
        stream.flush().await.map_err(io)?;
        match read_line(&mut stream).await.map_err(io)? {
            // yamux tells a reset stream and a lost carrier alike by an end of file.
            None if self.requests.is_closed() => Err(ChannelError::Closed),
            None => Err(ChannelError::Refused { port }),
            Some(line) => match line.and_then(|line| parse_ok(&line)) {
                Ok(_) => Ok(Box::new(stream)),
                Err(source) => Err(ChannelError::Handshake { port, source }),
            },
        }
    }

    async fn open(&self) -> Result<MuxStream, ChannelError> {
        let permit = self
            .permits
            .clone()
            .try_acquire_owned()
            .map_err(|_| ChannelError::TooManyStreams { limit: MAX_STREAMS })?;
        let (answer, stream) = oneshot::channel();
        self.requests.send((answer, permit)).await.map_err(|_| ChannelError::Closed)?;
        stream.await.map_err(|_| ChannelError::Closed)
    }
}
