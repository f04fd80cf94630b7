//! QEMU's control socket: a client of QMP, the QEMU Machine Protocol (one JSON object a line).
//!
//! One task owns the socket. It sends one command at a time, and remembers why the guest ended, for
//! QEMU tells that before it exits.

mod message;

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use kata_hypervisor::HypervisorError;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};

pub(crate) use message::Command;
use message::{Incoming, parse};

/// The longest line that is accepted. QEMU is as little trusted as the guest that may have taken it
/// over.
const MAX_LINE: usize = 64 * 1024;

/// A command on its way to the owner.
struct Request {
    command: Command,
    /// A descriptor to send along.
    descriptor: Option<Arc<OwnedFd>>,
    answer: oneshot::Sender<Answer>,
}

/// The outcome of a command, with what it told.
type Answer = Result<Value, String>;

/// Is told the name of each device that the guest has let go of. It must not wait.
pub(crate) type Deleted = Box<dyn Fn(&str) + Send + Sync>;

/// A connection to a QEMU that has said hello.
#[derive(Debug)]
pub(crate) struct Qmp {
    requests: mpsc::Sender<Request>,
    reason: watch::Receiver<Option<String>>,
    removals: watch::Receiver<()>,
    port_open: watch::Receiver<bool>,
    migrated: watch::Receiver<bool>,
}

impl Qmp {
    /// Waits for the greeting, and leaves the negotiation mode in which QEMU begins.
    /// `deleted` is told of devices that the guest has let go of.
    pub(crate) async fn connect(
        socket: UnixStream,
        deleted: Deleted,
    ) -> Result<Self, HypervisorError> {
        let (read, write) = socket.into_split();
        let mut lines = Lines::new(read);
        let command = Command::QmpCapabilities;
        loop {
            match lines.next().await {
                Some(Incoming::Greeting) => break,
                Some(_) => {}
                None => return Err(refused(&command, "no greeting".to_owned())),
            }
        }
        let (requests, queue) = mpsc::channel(1);
        let (report, reason) = watch::channel(None);
        let (removed, removals) = watch::channel(());
        let (opened, port_open) = watch::channel(false);
        let (done, migrated) = watch::channel(false);
        tokio::spawn(Owner { lines, write, report, deleted, removed, opened, done }.run(queue));
        let qmp = Self { requests, reason, removals, port_open, migrated };
        qmp.execute(command).await?;
        Ok(qmp)
    }

    /// Sends a command and waits for QEMU's answer.
    pub(crate) async fn execute(&self, command: Command) -> Result<(), HypervisorError> {
        self.request(command, None).await.map(drop)
    }

    /// Sends a command that is answered with a number.
    pub(crate) async fn number(&self, command: Command) -> Result<u64, HypervisorError> {
        let number = self.ask(command.clone()).await?.as_u64();
        number.ok_or_else(|| refused(&command, "its answer is no number".to_owned()))
    }

    /// Sends a command for the sake of its answer.
    pub(crate) async fn ask(&self, command: Command) -> Result<Value, HypervisorError> {
        self.request(command, None).await
    }

    /// Changes whenever a device has gone, and is closed with the socket.
    pub(crate) fn removals(&self) -> watch::Receiver<()> {
        self.removals.clone()
    }

    /// Resolves when the guest has opened its serial port; never when QEMU ends before.
    pub(crate) async fn port_opened(&self) {
        happened(&self.port_open).await;
    }

    /// Resolves when the guest's state has been saved, or read; never when QEMU ends before. It
    /// tells only if the capability `events` is on.
    pub(crate) async fn migrated(&self) {
        happened(&self.migrated).await;
    }

    /// Hands QEMU a copy of a descriptor, which it then knows by `name`.
    pub(crate) async fn pass_fd(
        &self,
        name: &str,
        descriptor: &Arc<OwnedFd>,
    ) -> Result<(), HypervisorError> {
        let command = Command::GetFd(name.to_owned());
        self.request(command, Some(Arc::clone(descriptor))).await.map(drop)
    }

    /// Hands QEMU a copy of a descriptor, which it then has as `/dev/fdset/SET`.
    pub(crate) async fn add_fd(
        &self,
        set: u64,
        descriptor: &Arc<OwnedFd>,
    ) -> Result<(), HypervisorError> {
        self.request(Command::AddFd(set), Some(Arc::clone(descriptor))).await.map(drop)
    }

    async fn request(
        &self,
        command: Command,
        descriptor: Option<Arc<OwnedFd>>,
    ) -> Result<Value, HypervisorError> {
        let gone = |_| refused(&command, "its control socket is closed".to_owned());
        let (answer, answered) = oneshot::channel();
        let request = Request { command: command.clone(), descriptor, answer };
        self.requests.send(request).await.map_err(|_| gone(()))?;
        answered.await.map_err(|_| gone(()))?.map_err(|reason| refused(&command, reason))
    }

    /// Resolves when QEMU has closed the socket, which its end does, with why the guest ended, if
    /// QEMU told.
    pub(crate) async fn closed(&self) -> Option<String> {
        let mut reason = self.reason.clone();
        // Only the end of the owner, which drops its side, is waited for.
        while reason.changed().await.is_ok() {}
        reason.borrow().clone()
    }
}

/// Resolves when it is true; never when that cannot be any more.
async fn happened(what: &watch::Receiver<bool>) {
    if what.clone().wait_for(|happened| *happened).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn refused(command: &Command, reason: String) -> HypervisorError {
    HypervisorError::Control { command: command.name(), reason }
}

/// The task that owns the socket.
struct Owner {
    lines: Lines,
    write: OwnedWriteHalf,
    report: watch::Sender<Option<String>>,
    deleted: Deleted,
    removed: watch::Sender<()>,
    opened: watch::Sender<bool>,
    done: watch::Sender<bool>,
}

impl Owner {
    /// Until QEMU closes the socket. Commands that wait then are dropped, which their senders see.
    async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut waiting: Option<oneshot::Sender<Answer>> = None;
        loop {
            tokio::select! {
                incoming = self.lines.next() => match incoming {
                    None => return,
                    Some(Incoming::Answer(answer)) => {
                        if let Some(waiting) = waiting.take() {
                            // Whoever asked may have lost interest.
                            let _ = waiting.send(answer);
                        }
                    }
                    Some(Incoming::End(reason)) => self.report_end(reason),
                    Some(Incoming::Deleted(device)) => {
                        (self.deleted)(&device);
                        self.removed.send_replace(());
                    }
                    Some(Incoming::PortOpened) => {
                        self.opened.send_replace(true);
                    }
                    Some(Incoming::Migrated) => {
                        self.done.send_replace(true);
                    }
                    Some(Incoming::Greeting | Incoming::Other) => {}
                },
                Some(request) = requests.recv(), if waiting.is_none() => {
                    if self.send(&request).await.is_ok() {
                        waiting = Some(request.answer);
                    }
                }
            }
        }
    }

    async fn send(&mut self, request: &Request) -> io::Result<()> {
        let line = request.command.line();
        let sent = match &request.descriptor {
            None => 0,
            Some(descriptor) => self.send_with(line.as_bytes(), descriptor).await?,
        };
        self.write.write_all(&line.as_bytes()[sent..]).await
    }

    /// Sends the beginning of a line with a descriptor (SCM_RIGHTS in unix(7)), and tells how much
    /// of it.
    async fn send_with(&self, line: &[u8], descriptor: &OwnedFd) -> io::Result<usize> {
        let socket: &UnixStream = self.write.as_ref();
        let send = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let fds = [descriptor.as_fd()];
            ancillary.push(SendAncillaryMessage::ScmRights(&fds));
            Ok(sendmsg(socket, &[IoSlice::new(line)], &mut ancillary, SendFlags::NOSIGNAL)?)
        };
        socket.async_io(Interest::WRITABLE, send).await
    }

    /// The first reason counts: a panic is followed by the reset or shutdown that it causes.
    fn report_end(&self, reason: String) {
        self.report.send_if_modified(|known| {
            let is_first = known.is_none();
            known.get_or_insert(reason);
            is_first
        });
    }
}

/// The lines of the socket, parsed and bounded. `next` may be dropped and called again without
/// loss.
struct Lines {
    read: BufReader<OwnedReadHalf>,
    line: Vec<u8>,
}

impl Lines {
    fn new(read: OwnedReadHalf) -> Self {
        Self { read: BufReader::new(read), line: Vec::new() }
    }

    /// `None` at the end, or when a line is too long.
    async fn next(&mut self) -> Option<Incoming> {
        loop {
            let chunk = self.read.fill_buf().await.ok().filter(|chunk| !chunk.is_empty())?;
            let (length, complete) = match chunk.iter().position(|&byte| byte == b'\n') {
                Some(newline) => (newline + 1, true),
                None => (chunk.len(), false),
            };
            if self.line.len() + length > MAX_LINE {
                return None;
            }
            self.line.extend_from_slice(&chunk[..length]);
            self.read.consume(length);
            if complete {
                let incoming = parse(&self.line);
                self.line.clear();
                return Some(incoming);
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
