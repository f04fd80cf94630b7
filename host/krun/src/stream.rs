//! A connection to a guest that may not be listening yet.
//!
//! The VMM accepts at once and then asks the guest; if nobody listens there, it closes what it has
//! accepted, and nothing before that tells the two apart. So the first bytes are kept until the
//! guest has answered, and sent again after such an end:
//!
//! ```text
//!               a byte from the guest
//!   Unanswered ───────────────────────▶ Answered (a plain stream from here on)
//!     │    ▲
//!     │    └── connected: what was kept is sent
//!     └── closed before the guest has taken anything ──▶ Waiting
//! ```
//!
//! Whether the guest has taken something is what unix(7) tells: a peer that closes with unread
//! bytes resets the connection, one that has read them all ends it. An end after all has been read
//! is the guest's own, and is passed on.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

/// How much is kept for a guest that does not answer; whoever writes more waits for the answer. It
/// fits into the buffer of a fresh socket.
const KEPT: usize = 64 * 1024;

type Connecting = Pin<Box<dyn Future<Output = io::Result<UnixStream>> + Send + Sync>>;

/// Makes another connection.
pub(crate) type Connect = Box<dyn Fn() -> Connecting + Send + Sync>;

/// The stream. Reading drives what has to be done again.
pub(crate) struct PatientStream {
    stream: UnixStream,
    connect: Connect,
    again: Duration,
    /// Set when the guest has answered.
    reached: Arc<AtomicBool>,
    state: State,
}

enum State {
    Unanswered(Kept),
    Waiting(Kept, Connecting),
    Answered,
}

/// What the guest will have to be told again.
#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    /// Nothing will follow.
    shut_down: bool,
    /// Somebody who has more to write than can be kept.
    writer: Option<Waker>,
}

impl PatientStream {
    pub(crate) fn new(
        stream: UnixStream,
        connect: Connect,
        again: Duration,
        reached: Arc<AtomicBool>,
    ) -> Self {
        Self { stream, connect, again, reached, state: State::Unanswered(Kept::default()) }
    }

    /// After an end without an answer.
    fn wait(&mut self) {
        if let State::Unanswered(kept) = std::mem::replace(&mut self.state, State::Answered) {
            let (again, connecting) = (self.again, (self.connect)());
            let connecting = Box::pin(async move {
                tokio::time::sleep(again).await;
                connecting.await
            });
            self.state = State::Waiting(kept, connecting);
        }
    }

    /// With a new connection.
    fn tell_again(&mut self, stream: UnixStream) -> io::Result<()> {
        self.stream = stream;
        if let State::Waiting(kept, _) = std::mem::replace(&mut self.state, State::Answered) {
            let told = tell(&self.stream, &kept);
            self.state = State::Unanswered(kept);
            match told {
                // It has ended before anything was said.
                Err(error) if is_closed(&error) => self.wait(),
                told => return told,
            }
        }
        Ok(())
    }

    fn answered(&mut self) {
        self.reached.store(true, Ordering::Relaxed);
        if let State::Unanswered(Kept { writer: Some(writer), .. }) =
            std::mem::replace(&mut self.state, State::Answered)
        {
            writer.wake();
        }
    }
}

fn tell(stream: &UnixStream, kept: &Kept) -> io::Result<()> {
    if !kept.bytes.is_empty() {
        // A fresh socket takes all of it at once.
        let length = rustix::io::write(stream, &kept.bytes)?;
        if length < kept.bytes.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
    }
    if kept.shut_down { shut_down(stream) } else { Ok(()) }
}

/// Of writing only. A peer that is gone has been told.
fn shut_down(stream: &UnixStream) -> io::Result<()> {
    match rustix::net::shutdown(stream, rustix::net::Shutdown::Write) {
        Err(rustix::io::Errno::NOTCONN) | Ok(()) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn is_closed(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

impl AsyncRead for PatientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if let State::Waiting(_, connecting) = &mut this.state {
                let stream = ready!(connecting.as_mut().poll(context))?;
                this.tell_again(stream)?;
                continue;
            }
            let before = buffer.filled().len();
            let read = ready!(Pin::new(&mut this.stream).poll_read(context, buffer));
            let State::Unanswered(kept) = &this.state else { return Poll::Ready(read) };
            match read {
                Ok(()) if buffer.filled().len() > before => {
                    this.answered();
                    return Poll::Ready(Ok(()));
                }
                // All of it was read, so there was somebody to end it.
                Ok(()) if !kept.bytes.is_empty() => return Poll::Ready(Ok(())),
                Ok(()) => this.wait(),
                Err(error) if is_closed(&error) => this.wait(),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for PatientStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match &mut this.state {
            State::Answered => Pin::new(&mut this.stream).poll_write(context, bytes),
            State::Unanswered(kept) | State::Waiting(kept, _) if kept.bytes.len() >= KEPT => {
                kept.writer = Some(context.waker().clone());
                Poll::Pending
            }
            State::Unanswered(kept) => {
                let room = KEPT - kept.bytes.len();
                let part = &bytes[..bytes.len().min(room)];
                match ready!(Pin::new(&mut this.stream).poll_write(context, part)) {
                    Ok(length) => {
                        kept.bytes.extend_from_slice(&part[..length]);
                        Poll::Ready(Ok(length))
                    }
                    // The next read notices, too, and then it is told again.
                    Err(error) if is_closed(&error) => {
                        kept.bytes.extend_from_slice(part);
                        this.wait();
                        Poll::Ready(Ok(part.len()))
                    }
                    Err(error) => Poll::Ready(Err(error)),
                }
            }
            State::Waiting(kept, _) => {
                let part = &bytes[..bytes.len().min(KEPT - kept.bytes.len())];
                kept.bytes.extend_from_slice(part);
                Poll::Ready(Ok(part.len()))
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match &mut this.state {
            State::Answered => Pin::new(&mut this.stream).poll_shutdown(context),
            State::Unanswered(kept) => {
                kept.shut_down = true;
                Poll::Ready(shut_down(&this.stream))
            }
            State::Waiting(kept, _) => {
                kept.shut_down = true;
                Poll::Ready(Ok(()))
            }
        }
    }
}

#[cfg(test)]
mod tests;
