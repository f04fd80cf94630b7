//! The agent's ends of a process's standard streams: pipes, or a terminal's master.
//!
//! Output is never lost: what a process wrote before it ended is read to the end. A background
//! process that has inherited a stream and keeps it open would delay that end for ever. So after
//! the process has ended, a stream ends at the latest when it was silent for half a second in all,
//! or when very much has come.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{Gid, Uid};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};
use rustix::termios::Winsize;
use tokio::time::{Instant, timeout};

use crate::descriptor::Descriptor;

/// How long a stream that somebody keeps open may be silent after its process has ended, in all.
const DRAIN: Duration = Duration::from_millis(500);

/// How much may come then beyond what is seen to be there: far more than is on its way through a
/// terminal, and than those write that finish the work of a process (`exec > >(sort)` of a shell).
const MOST_AFTER: usize = 16 << 20;

/// The time between two looks at a terminal that no process has open while its own one lives.
const REOPENED: Duration = Duration::from_millis(100);

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
    /// `None` while its process lives. Locked for a look or a change.
    rest: Mutex<Option<Rest>>,
}

/// What is still waited for after a stream's process has ended.
#[derive(Debug, Clone, Copy)]
struct Rest {
    bytes: usize,
    silence: Duration,
}

impl Stream {
    fn new(descriptor: Arc<Descriptor>) -> Self {
        Self { descriptor, ended: AtomicBool::new(false), rest: Mutex::default() }
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
        let mut ended = pin!(ended);
        loop {
            tokio::select! {
                biased;
                () = &mut ended => return self.read_rest(limit).await,
                data = self.available(limit) => match data {
                    Err(error) if is_hung_up(&error) => {}
                    data => return data,
                },
            }
            // A process may close its terminal and open it again.
            if timeout(REOPENED, &mut ended).await.is_ok() {
                return self.read_rest(limit).await;
            }
        }
    }

    /// As [`Stream::read`], after the process has ended.
    async fn read_rest(&self, limit: usize) -> io::Result<Vec<u8>> {
        let rest = self.change_rest(|_| {});
        if rest.bytes == 0 {
            return Ok(Vec::new());
        }
        let limit = limit.min(rest.bytes);
        let before = Instant::now();
        let data = match timeout(rest.silence, self.available(limit)).await {
            // On a busy machine silence says little of a terminal: what it holds comes in pieces,
            // each brought by a thread of the kernel's that has to run first. To read waits for it.
            Err(_elapsed) => take(self.descriptor.as_fd(), limit).or_else(nothing_now),
            Ok(data) => data,
        };
        let data = data.or_else(nothing_more)?;
        self.change_rest(|rest| {
            rest.bytes = rest.bytes.saturating_sub(data.len());
            rest.silence = rest.silence.saturating_sub(before.elapsed());
        });
        Ok(data)
    }

    /// Changes what is still waited for, and tells it.
    fn change_rest(&self, change: impl FnOnce(&mut Rest)) -> Rest {
        let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = rest.get_or_insert_with(|| {
            let there = rustix::io::ioctl_fionread(self.descriptor.as_fd()).unwrap_or(0);
            let there = usize::try_from(there).unwrap_or(usize::MAX);
            Rest { bytes: there.saturating_add(MOST_AFTER), silence: DRAIN }
        });
        change(rest);
        *rest
    }

    async fn available(&self, limit: usize) -> io::Result<Vec<u8>> {
        self.descriptor.read_with(|fd| take(fd, limit)).await
    }
}

/// Reads as much as is there, at most `limit` bytes, so that a small output does not cost a large
/// buffer.
fn take(fd: BorrowedFd<'_>, limit: usize) -> io::Result<Vec<u8>> {
    let there = rustix::io::ioctl_fionread(fd).unwrap_or(4096);
    let size = usize::try_from(there).unwrap_or(limit).clamp(1, limit.max(1));
    let mut data = vec![0; size];
    let length = rustix::io::read(fd, &mut data)?;
    data.truncate(length);
    Ok(data)
}

/// A terminal's master says this when no process has the terminal open.
fn is_hung_up(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EIO)
}

fn nothing_more(error: io::Error) -> io::Result<Vec<u8>> {
    if is_hung_up(&error) { Ok(Vec::new()) } else { Err(error) }
}

fn nothing_now(error: io::Error) -> io::Result<Vec<u8>> {
    if error.kind() == io::ErrorKind::WouldBlock { Ok(Vec::new()) } else { Err(error) }
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
    async fn background_process_that_goes_on_writing_delays_the_end_not_for_long() {
        // As fast as it can, and slower than half a second of silence would take.
        for pause in [Duration::ZERO, Duration::from_millis(20)] {
            let (stdio, ends) = Stdio::pipes(uid(), None).unwrap();
            rustix::io::write(&ends.stdout, &[b'x'; 10_000]).unwrap();
            let writer = std::thread::spawn(move || {
                // Until nobody reads any more.
                while rustix::io::write(&ends.stdout, b"again\n").is_ok() {
                    std::thread::sleep(pause);
                }
            });
            let mut all = Vec::new();
            let deadline = Instant::now() + Duration::from_secs(20);
            loop {
                let data = stdio.read(Output::Stdout, 4096, ready(())).await.unwrap();
                if data.is_empty() {
                    break;
                }
                all.extend(data);
                assert!(Instant::now() < deadline, "no end after {} bytes", all.len());
            }
            assert!(all.starts_with(&[b'x'; 10_000]), "something was lost");
            drop(stdio);
            writer.join().unwrap();
        }
    }

    #[tokio::test]
    async fn terminal_that_is_opened_again_goes_on() {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let open = |master: &OwnedFd| ioctl_tiocgptpeer(master, flags).unwrap();
        drop(open(&master));
        let peer = master.try_clone().unwrap();
        let stdio = Stdio::terminal(master, uid()).unwrap();
        // What is written comes in pieces.
        let whole = async |text: &[u8]| {
            let mut all = Vec::new();
            while all.len() < text.len() {
                all.extend(stdio.read(Output::Stdout, 100, pending()).await.unwrap());
            }
            assert_eq!(all, text);
        };
        let late = async {
            tokio::time::sleep(3 * REOPENED / 2).await;
            let slave = open(&peer);
            rustix::io::write(&slave, b"late").unwrap();
            slave
        };
        let ((), slave) = tokio::join!(whole(b"late"), late);
        // It waits as if it had never been closed.
        let silence = timeout(REOPENED, stdio.read(Output::Stdout, 100, pending())).await;
        assert!(silence.is_err(), "{silence:?}");
        rustix::io::write(&slave, b"later").unwrap();
        whole(b"later").await;
        drop(slave);
        assert_eq!(stdio.read(Output::Stdout, 100, ready(())).await.unwrap(), b"");
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
