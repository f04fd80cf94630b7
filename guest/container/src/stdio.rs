//! The agent's ends of a process's standard streams: pipes, or a terminal's master.
//!
//! Output is never lost: what a process wrote before it ended is read to the end. A background
//! process that has inherited a stream and keeps it open would delay that end for ever, so after
//! the process has ended, half a second of silence counts as the end too.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{Gid, Uid};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};
use rustix::termios::Winsize;

use crate::descriptor::Descriptor;

/// How long a stream that somebody keeps open may be silent after its process has ended.
const DRAIN: Duration = Duration::from_millis(500);

/// What can be read from a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Standard output; of a terminal, everything.
    Stdout,
    /// Standard error; a terminal has none.
    Stderr,
}

/// The agent's ends. All methods may be called at any time and side by side.
#[derive(Debug)]
pub struct Stdio {
    /// `None` once it has been closed. A mutex, because closing takes the descriptor away from
    /// under whoever writes; it is locked for a move only.
    stdin: Mutex<Option<Arc<Descriptor>>>,
    stdout: Stream,
    stderr: Option<Stream>,
    terminal: bool,
}

/// The process's ends, to be given to it and then dropped.
#[derive(Debug)]
pub struct ProcessEnds {
    /// Standard input.
    pub stdin: OwnedFd,
    /// Standard output.
    pub stdout: OwnedFd,
    /// Standard error.
    pub stderr: OwnedFd,
}

#[derive(Debug)]
struct Stream {
    descriptor: Arc<Descriptor>,
    ended: AtomicBool,
}

impl Stream {
    fn new(descriptor: Arc<Descriptor>) -> Self {
        Self { descriptor, ended: AtomicBool::new(false) }
    }

    /// What is there, at most `limit` bytes; empty at the end.
    async fn read(&self, limit: usize, ended: impl Future<Output = ()>) -> io::Result<Vec<u8>> {
        if self.ended.load(Ordering::Relaxed) {
            return Ok(Vec::new());
        }
        let data = self.read_on(limit, ended).await?;
        if data.is_empty() {
            self.ended.store(true, Ordering::Relaxed);
        }
        Ok(data)
    }

    async fn read_on(&self, limit: usize, ended: impl Future<Output = ()>) -> io::Result<Vec<u8>> {
        tokio::select! {
            biased;
            data = self.available(limit) => return data,
            () = ended => {}
        }
        let rest = tokio::time::timeout(DRAIN, self.available(limit)).await;
        rest.unwrap_or(Ok(Vec::new()))
    }

    async fn available(&self, limit: usize) -> io::Result<Vec<u8>> {
        let read = self.descriptor.read_with(|fd| {
            // As much as is there, so that a small output does not cost a large buffer.
            let there = rustix::io::ioctl_fionread(fd).unwrap_or(4096);
            let size = usize::try_from(there).unwrap_or(limit).clamp(1, limit.max(1));
            let mut data = vec![0; size];
            let length = rustix::io::read(fd, &mut data)?;
            data.truncate(length);
            Ok(data)
        });
        match read.await {
            // A terminal's master says this when no process has the terminal open any more.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(Vec::new()),
            result => result,
        }
    }
}

impl Stdio {
    /// Makes three pipes, whose process ends belong to `uid`, so that a process of another user can
    /// open `/dev/stdout` again. `size` is each pipe's in bytes; `None` leaves the kernel's.
    ///
    /// # Errors
    ///
    /// Fails when descriptors have run out or the kernel refuses the size.
    pub fn pipes(uid: u32, size: Option<u32>) -> io::Result<(Self, ProcessEnds)> {
        let make = || -> io::Result<(OwnedFd, OwnedFd)> {
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
            if let Some(size) = size {
                fcntl_setpipe_size(&writer, size as usize)?;
            }
            // Both ends are one inode.
            rustix::fs::fchown(&reader, Some(Uid::from_raw(uid)), None::<Gid>)?;
            Ok((reader, writer))
        };
        let (stdin, our_stdin) = make()?;
        let (our_stdout, stdout) = make()?;
        let (our_stderr, stderr) = make()?;
        let ours = Self {
            stdin: Mutex::new(Some(Arc::new(Descriptor::new(our_stdin)?))),
            stdout: Stream::new(Arc::new(Descriptor::new(our_stdout)?)),
            stderr: Some(Stream::new(Arc::new(Descriptor::new(our_stderr)?))),
            terminal: false,
        };
        Ok((ours, ProcessEnds { stdin, stdout, stderr }))
    }

    /// Takes a terminal's master, and gives the terminal to `uid`.
    ///
    /// # Errors
    ///
    /// Fails when `master` is no terminal's master.
    pub fn terminal(master: OwnedFd, uid: u32) -> io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let peer = ioctl_tiocgptpeer(&master, flags)?;
        rustix::fs::fchown(&peer, Some(Uid::from_raw(uid)), None::<Gid>)?;
        let master = Arc::new(Descriptor::new(master)?);
        Ok(Self {
            stdin: Mutex::new(Some(Arc::clone(&master))),
            stdout: Stream::new(master),
            stderr: None,
            terminal: true,
        })
    }

    /// Waits for output, and yields at most `limit` bytes of it; none at the end of the stream.
    /// `ended` is to complete when the process has ended.
    ///
    /// # Errors
    ///
    /// Fails only as reading a pipe can.
    pub async fn read(
        &self,
        output: Output,
        limit: usize,
        ended: impl Future<Output = ()>,
    ) -> io::Result<Vec<u8>> {
        match (output, &self.stderr) {
            (Output::Stdout, _) => self.stdout.read(limit, ended).await,
            (Output::Stderr, Some(stderr)) => stderr.read(limit, ended).await,
            (Output::Stderr, None) => Ok(Vec::new()),
        }
    }

    /// Whether all output has been read to its end.
    #[must_use]
    pub fn output_ended(&self) -> bool {
        let ended = |stream: &Stream| stream.ended.load(Ordering::Relaxed);
        ended(&self.stdout) && self.stderr.as_ref().is_none_or(ended)
    }

    /// Writes all of `data` to the process, waiting for room.
    ///
    /// # Errors
    ///
    /// `BrokenPipe` when standard input is closed on either side.
    pub async fn write(&self, data: &[u8]) -> io::Result<()> {
        let stdin = self.lock().clone();
        stdin.ok_or(io::ErrorKind::BrokenPipe)?.write_all(data).await
    }

    /// Closes standard input. A terminal stays open, for its output comes from the same descriptor,
    /// and somebody may attach to it again.
    pub fn close_stdin(&self) {
        if !self.terminal {
            *self.lock() = None;
        }
    }

    /// Tells a terminal its size.
    ///
    /// # Errors
    ///
    /// `Unsupported` when there is no terminal.
    pub fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        if !self.terminal {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(rustix::termios::tcsetwinsize(self.stdout.descriptor.as_fd(), size)?)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<Descriptor>>> {
        self.stdin.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    fn uid() -> u32 {
        rustix::process::getuid().as_raw()
    }

    #[tokio::test]
    async fn read_yields_what_was_written_then_end() {
        let (stdio, ends) = Stdio::pipes(uid(), None).unwrap();
        rustix::io::write(&ends.stdout, b"hello").unwrap();
        drop(ends);
        assert_eq!(stdio.read(Output::Stdout, 3, ready(())).await.unwrap(), b"hel");
        assert_eq!(stdio.read(Output::Stdout, 3, ready(())).await.unwrap(), b"lo");
        assert_eq!(stdio.read(Output::Stdout, 3, pending()).await.unwrap(), b"");
    }

    #[tokio::test]
    async fn read_of_pipe_kept_open_ends_after_silence() {
        let (stdio, ends) = Stdio::pipes(uid(), None).unwrap();
        assert_eq!(stdio.read(Output::Stderr, 10, ready(())).await.unwrap(), b"");
        // The end is final, so that a stream's reader and its exit event cannot disagree.
        rustix::io::write(&ends.stderr, b"late").unwrap();
        assert_eq!(stdio.read(Output::Stderr, 10, ready(())).await.unwrap(), b"");
    }

    #[tokio::test]
    async fn close_stdin_is_seen_as_end_and_refuses_writes() {
        let (stdio, ends) = Stdio::pipes(uid(), None).unwrap();
        stdio.write(b"x").await.unwrap();
        stdio.close_stdin();
        let mut buffer = [0; 8];
        assert_eq!(rustix::io::read(&ends.stdin, &mut buffer).unwrap(), 1);
        assert_eq!(rustix::io::read(&ends.stdin, &mut buffer).unwrap(), 0);
        assert_eq!(stdio.write(b"y").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn write_of_more_than_a_pipe_holds_waits_for_the_reader() {
        let (stdio, ends) = Stdio::pipes(uid(), Some(4096)).unwrap();
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            let mut buffer = [0; 1000];
            while let Ok(length @ 1..) = rustix::io::read(&ends.stdin, &mut buffer) {
                all.extend_from_slice(&buffer[..length]);
            }
            all.len()
        });
        stdio.write(&vec![7; 100_000]).await.unwrap();
        stdio.close_stdin();
        assert_eq!(reader.join().unwrap(), 100_000);
    }
}
