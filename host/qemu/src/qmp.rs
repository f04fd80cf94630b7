//! QEMU's control socket: a client of QMP, the QEMU Machine Protocol (one JSON object a line).
//!
//! One task owns the socket. It sends one command at a time, and remembers why the guest ended, for QEMU tells that before it exits.

mod message;

use kata_hypervisor::HypervisorError;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};

pub(crate) use message::Command;
use message::{Incoming, parse};

/// The longest line that is accepted. QEMU is as little trusted as the guest that may have taken it over.
const MAX_LINE: usize = 64 * 1024;

type Request = (Command, oneshot::Sender<Result<(), String>>);

/// A connection to a QEMU that has said hello.
#[derive(Debug)]
pub(crate) struct Qmp {
    requests: mpsc::Sender<Request>,
    reason: watch::Receiver<Option<String>>,
}

impl Qmp {
    /// Waits for the greeting, and leaves the negotiation mode in which QEMU begins.
    pub(crate) async fn connect(socket: UnixStream) -> Result<Self, HypervisorError> {
        let (read, write) = socket.into_split();
        let mut lines = Lines::new(read);
        let command = Command::QmpCapabilities;
        loop {
            match lines.next().await {
                Some(Incoming::Greeting) => break,
                Some(_) => {}
                None => return Err(refused(command, "no greeting".to_owned())),
            }
        }
        let (requests, queue) = mpsc::channel(1);
        let (report, reason) = watch::channel(None);
        tokio::spawn(Owner { lines, write, report }.run(queue));
        let qmp = Self { requests, reason };
        qmp.execute(command).await?;
        Ok(qmp)
    }

    /// Sends a command and waits for QEMU's answer.
    pub(crate) async fn execute(&self, command: Command) -> Result<(), HypervisorError> {
        let gone = |_| refused(command, "its control socket is closed".to_owned());
        let (answer, answered) = oneshot::channel();
        self.requests.send((command, answer)).await.map_err(|_| gone(()))?;
        answered.await.map_err(|_| gone(()))?.map_err(|reason| refused(command, reason))
    }

    /// Resolves when QEMU has closed the socket, which its end does, with why the guest ended, if QEMU told.
    pub(crate) async fn closed(&self) -> Option<String> {
        let mut reason = self.reason.clone();
        // Only the end of the owner, which drops its side, is waited for.
        while reason.changed().await.is_ok() {}
        reason.borrow().clone()
    }
}

fn refused(command: Command, reason: String) -> HypervisorError {
    HypervisorError::Control { command: command.name(), reason }
}

/// The task that owns the socket.
struct Owner {
    lines: Lines,
    write: OwnedWriteHalf,
    report: watch::Sender<Option<String>>,
}

impl Owner {
    /// Until QEMU closes the socket. Commands that wait then are dropped, which their senders see.
    async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut waiting: Option<oneshot::Sender<Result<(), String>>> = None;
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
                    Some(Incoming::Greeting | Incoming::Other) => {}
                },
                Some((command, answer)) = requests.recv(), if waiting.is_none() => {
                    if self.write.write_all(command.line().as_bytes()).await.is_ok() {
                        waiting = Some(answer);
                    }
                }
            }
        }
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

/// The lines of the socket, parsed and bounded. `next` may be dropped and called again without loss.
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
mod tests;
