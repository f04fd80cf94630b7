//! The connection that carries requests, and descriptors beside them.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::UnixStream;

use crate::message::{MAX_BODY, MAX_HEAD, ResponseError, parse_head};

/// The most descriptors of one request: the queue pairs of one network device.
const MAX_FDS: usize = 16;

/// A response of the VMM's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status code, 100 to 999.
    pub status: u16,
    /// The body, 1 MiB at most; empty if there is none.
    pub body: Vec<u8>,
}

/// One keep-alive connection. After an error nothing more can be said about what the next bytes
/// mean, so it is not used again.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    broken: bool,
}

impl Connection {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { stream, broken: false }
    }

    /// Sends a request and waits for its response. Must be awaited to its end.
    pub(crate) async fn exchange(
        &mut self,
        request: &[u8],
        fds: &[OwnedFd],
    ) -> io::Result<Response> {
        if self.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.broken = true;
        self.send(request, fds).await?;
        let response = self.receive().await?;
        self.broken = false;
        Ok(response)
    }

    /// The descriptors go with the first byte (unix(7), SCM_RIGHTS).
    async fn send(&self, request: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let mut sent = 0;
        while sent < request.len() {
            let passed: &[BorrowedFd<'_>] = if sent == 0 { &fds } else { &[] };
            let rest = &request[sent..];
            sent += self
                .stream
                .async_io(Interest::WRITABLE, || send_with(&self.stream, rest, passed))
                .await?;
        }
        Ok(())
    }

    async fn receive(&mut self) -> io::Result<Response> {
        let mut bytes = Vec::new();
        let head = loop {
            if let Some(head) = parse_head(&bytes).map_err(invalid)? {
                break head;
            }
            self.read_some(&mut bytes, MAX_HEAD).await?;
        };
        let length = head.length + head.body_length;
        while bytes.len() < length {
            self.read_some(&mut bytes, MAX_HEAD + MAX_BODY).await?;
        }
        // One request at a time: whatever follows is no answer to anything.
        if bytes.len() > length {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the response is longer than it says",
            ));
        }
        Ok(Response { status: head.status, body: bytes.split_off(head.length) })
    }

    async fn read_some(&mut self, into: &mut Vec<u8>, limit: usize) -> io::Result<()> {
        let mut part = (&mut self.stream).take((limit - into.len().min(limit)) as u64);
        match part.read_buf(into).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

fn invalid(error: ResponseError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn send_with(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
    }
    Ok(sendmsg(stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?)
}
