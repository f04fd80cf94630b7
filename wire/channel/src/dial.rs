//! The host's end of the serial channel.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use yamux::Mode;

use crate::mux::{Driver, MAX_STREAMS, MuxStream, StreamRequest};
use crate::{ChannelError, ChannelStream, handshake};

/// Opens streams to the guest's ports over one carrier. Clones share the carrier.
#[derive(Debug, Clone)]
pub struct SerialDialer {
    requests: mpsc::Sender<(StreamRequest, OwnedSemaphorePermit)>,
    permits: Arc<Semaphore>,
}

impl SerialDialer {
    /// Takes the carrier over and spawns the task that drives it on the current tokio runtime. The
    /// task ends when the carrier does, that is with the VM; streams outlive the dialer.
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

    /// Opens a stream to `port` and resolves when the guest has accepted it, however long that
    /// takes: also a guest that has not yet booted may be dialled, and the caller sets the
    /// deadline. Dropping the future gives the attempt up.
    pub async fn dial(&self, port: u32) -> Result<ChannelStream, ChannelError> {
        let mut stream = self.open().await?;
        match handshake::open(&mut stream, port).await {
            Ok(()) => Ok(Box::new(stream)),
            // yamux tells a reset stream and a lost carrier alike by an end of file.
            Err(ChannelError::Refused { .. }) if self.requests.is_closed() => {
                Err(ChannelError::Closed)
            }
            Err(error) => Err(error),
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
