//! The yamux connection and the task that drives it; the same for both sides.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};

use futures::future::poll_fn;
use tokio::io::{AsyncRead, AsyncWrite, BufStream, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use yamux::{Config, Connection, Mode};

/// Streams that may be open at a time.
pub const MAX_STREAMS: usize = 128;

/// What yamux itself allows. A closed stream is forgotten by the driver a little after its user
/// dropped it, and yamux ends the whole connection at its limit, so it is well above ours.
const YAMUX_STREAMS: usize = 2 * MAX_STREAMS;

/// What every stream may hold unread, fixed by the yamux specification.
const BASE_WINDOW: usize = 256 * 1024;

/// What all streams together may hold unread beyond their base windows: room for a few fast ones to
/// grow.
const EXTRA_WINDOW: usize = 16 * 1024 * 1024;

/// A frame with its 12 bytes of header fills 32 KiB, the most that Linux's virtio console driver
/// passes on at once.
const FRAME_BODY: usize = 32 * 1024 - 12;

/// Buffers of the carrier, so that a frame's header and body cost one system call. From this size
/// on glibc has the kernel map them, unless something larger was freed before (mallopt(3),
/// `M_MMAP_THRESHOLD`): they take what was ever in them, some pages in an idle sandbox. Smaller
/// ones take the place of what was freed before, all of which is in memory already.
const CARRIER_BUFFER: usize = 128 * 1024;

/// A request to the driver for a new stream.
pub(crate) type StreamRequest = oneshot::Sender<MuxStream>;

static LIMITS: LazyLock<Config> = LazyLock::new(|| {
    let mut config = Config::default();
    config
        .set_max_num_streams(YAMUX_STREAMS)
        .set_max_connection_receive_window(Some(YAMUX_STREAMS * BASE_WINDOW + EXTRA_WINDOW))
        .set_split_send_size(FRAME_BODY);
    config
});

/// The driver of one connection. Ends when the carrier does, or when the peer breaks the protocol.
pub(crate) struct Driver<T> {
    connection: Connection<Compat<BufStream<T>>>,
    permits: Arc<Semaphore>,
}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Driver<T> {
    pub(crate) fn new(carrier: T, mode: Mode, permits: Arc<Semaphore>) -> Self {
        let carrier = BufStream::with_capacity(CARRIER_BUFFER, CARRIER_BUFFER, carrier);
        Self { connection: Connection::new(carrier.compat(), LIMITS.clone(), mode), permits }
    }

    /// Opens a stream for every request and hands every stream of the peer to `on_inbound`.
    pub(crate) async fn run(
        mut self,
        mut requests: mpsc::Receiver<(StreamRequest, OwnedSemaphorePermit)>,
        mut on_inbound: impl FnMut(MuxStream) + Send,
    ) {
        poll_fn(|cx| {
            loop {
                if let Poll::Ready(Some((request, permit))) = requests.poll_recv(cx) {
                    if !self.open(cx, request, permit) {
                        return Poll::Ready(());
                    }
                    continue;
                }
                match self.connection.poll_next_inbound(cx) {
                    // A stream beyond the limit is dropped, which the peer sees as a reset.
                    Poll::Ready(Some(Ok(stream))) => {
                        if let Ok(permit) = self.permits.clone().try_acquire_owned() {
                            on_inbound(MuxStream::new(stream, permit));
                        }
                    }
                    Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await;
    }

    /// Whether the connection lives on. A request that cannot be served is dropped, which its
    /// sender sees.
    fn open(
        &mut self,
        cx: &mut Context<'_>,
        request: StreamRequest,
        permit: OwnedSemaphorePermit,
    ) -> bool {
        match self.connection.poll_new_outbound(cx) {
            Poll::Ready(Ok(stream)) => {
                // When nobody waits any more the stream comes back and is dropped here.
                drop(request.send(MuxStream::new(stream, permit)));
                true
            }
            Poll::Ready(Err(_)) => false,
            // 256 streams wait for the peer's first sign of life; ours are fewer, so this does not
            // happen.
            Poll::Pending => true,
        }
    }
}

/// One stream of the connection, counted against [`MAX_STREAMS`] for as long as it lives.
pub(crate) struct MuxStream {
    stream: Compat<yamux::Stream>,
    _permit: OwnedSemaphorePermit,
}

impl MuxStream {
    fn new(stream: yamux::Stream, permit: OwnedSemaphorePermit) -> Self {
        Self { stream: stream.compat(), _permit: permit }
    }
}

impl AsyncRead for MuxStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for MuxStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
