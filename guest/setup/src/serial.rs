//! A virtio-serial port as a stream.
#![expect(unsafe_code, reason = "the runtime asks for a promise that OwnedFd cannot break")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A port, non-blocking. While the host has not opened its side yet, reading waits (the port itself
/// says "end of file" then); once the host has been heard of, its going away is the end.
#[derive(Debug)]
pub struct SerialPort {
    port: AsyncFd<File>,
    heard: bool,
}

impl SerialPort {
    /// Takes the port's node, opened non-blocking. Call it inside of the runtime.
    ///
    /// # Errors
    ///
    /// Fails when the node cannot be waited for.
    pub fn new(node: File) -> io::Result<Self> {
        // SAFETY: a File is open, and stays the same descriptor for as long as it lives.
        let port = unsafe { AsyncFd::register(node) }.map_err(io::Error::from)?;
        Ok(Self { port, heard: false })
    }
}

impl AsyncRead for SerialPort {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.port.poll_read_ready(context))?;
            match guard.try_io(|port| port.get_ref().read(buffer.initialize_unfilled())) {
                Ok(Ok(0)) if !self.heard => {
                    // The kernel wakes whoever waits when the host opens its side.
                    let mut guard = ready!(self.port.poll_read_ready(context))?;
                    guard.clear_ready();
                }
                Ok(Ok(length)) => {
                    self.heard = true;
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for SerialPort {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.port.poll_write_ready(context))?;
            if let Ok(result) = guard.try_io(|port| port.get_ref().write(data)) {
                return Poll::Ready(result);
            }
        }
    }

    /// The port buffers nothing.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// A port has no half-closed state.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
