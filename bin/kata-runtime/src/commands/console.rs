//! `exec SANDBOX`: the debug console, which is a shell in the guest itself.
//!
//! ```text
//!   keys ──▶ this program ──▶ the sandbox's socket ──▶ the guest's terminal ──▶ its shell
//!   screen ◀───────┴── new size of the window ──▶ RESIZE, over a connection of its own
//! ```

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};
use kata_channel::DEBUG_CONSOLE_PORT;
use kata_channel::guest_socket::GuestRequest;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::tcgetwinsize;

use super::Host;
use crate::guest::Guest;
use crate::terminal::RawTerminal;

/// Control and `]`, the key that leaves the console whatever the guest does.
const LEAVE: u8 = 0x1d;

/// What is typed where a file ends that is the input. Control and D would be lost: a shell that has
/// not asked for keys yet throws it away when it changes the terminal's modes.
const END_OF_INPUT: &[u8] = b"\nexit\n";

/// Returns when the shell has ended, or when the user has left it.
pub(super) fn run(host: &Host, id: &str) -> Result<u8> {
    let guest = Guest::of(host, id)?;
    let stream = guest.ask(GuestRequest::Connect(DEBUG_CONSOLE_PORT))?;
    stream.set_nonblocking(true).context("cannot prepare the connection")?;
    let signals = signals()?;
    let raw = RawTerminal::of_stdin();
    if raw.is_some() {
        eprint!("The debug console of the guest; control and ] leave it.\r\n");
        follow_size(&guest);
    }
    let console = Console { guest, stream, signals, in_terminal: raw.is_some() };
    let carried = console.carry();
    drop(raw);
    carried.context("the debug console is lost").map(|()| 0)
}

/// The signals that come with a terminal. They are only looked at by the loop, so that none ends
/// this program with a raw terminal.
fn signals() -> Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in
        [Signal::SIGWINCH, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT]
    {
        set.add(signal);
    }
    set.thread_block().context("cannot block signals")?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("cannot listen for signals")
}

/// Tells the guest how big the user's terminal is. A guest that cannot be told keeps what it has.
fn follow_size(guest: &Guest) {
    if let Ok(size) = tcgetwinsize(io::stdin().as_fd()) {
        let _ = guest.ask(GuestRequest::Resize { rows: size.ws_row, columns: size.ws_col });
    }
}

struct Console {
    guest: Guest,
    stream: UnixStream,
    signals: SignalFd,
    in_terminal: bool,
}

impl Console {
    fn carry(&self) -> io::Result<()> {
        let mut keys = Keys::default();
        loop {
            let (input, stream) = self.wait(&keys)?;
            while let Ok(Some(signal)) = self.signals.read_signal() {
                if signal.ssi_signo == Signal::SIGWINCH as u32 {
                    follow_size(&self.guest);
                } else {
                    return Ok(());
                }
            }
            if input {
                keys.read(io::stdin().as_fd(), self.in_terminal)?;
                if keys.left {
                    return Ok(());
                }
            }
            if stream.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) && !self.show()? {
                return Ok(());
            }
            keys.send(&self.stream)?;
        }
    }

    /// Waits until something can be done: whether there is input, and what the stream is ready for.
    fn wait(&self, keys: &Keys) -> io::Result<(bool, PollFlags)> {
        let stdin = io::stdin();
        let of_stream =
            if keys.pending.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        let mut fds = vec![
            PollFd::new(&self.stream, of_stream),
            PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN),
        ];
        if keys.wanted() {
            fds.push(PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN));
        }
        rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
        Ok((fds.get(2).is_some_and(|fd| !fd.revents().is_empty()), fds[0].revents()))
    }

    /// Shows what the guest has sent. False at its end.
    fn show(&self) -> io::Result<bool> {
        let mut chunk = [0; 4096];
        let length = match rustix::io::read(&self.stream, &mut chunk) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(true),
            Err(rustix::io::Errno::CONNRESET) | Ok(0) => return Ok(false),
            length => length?,
        };
        let mut stdout = io::stdout();
        stdout.write_all(&chunk[..length])?;
        stdout.flush()?;
        Ok(true)
    }
}

/// What the user has typed and the guest has not taken yet.
#[derive(Debug, Default)]
struct Keys {
    pending: Vec<u8>,
    ended: bool,
    left: bool,
}

impl Keys {
    /// A guest that takes nothing must not make this program remember everything.
    fn wanted(&self) -> bool {
        !self.ended && self.pending.len() < 4096
    }

    fn read(&mut self, input: BorrowedFd<'_>, in_terminal: bool) -> io::Result<()> {
        let mut chunk = [0; 1024];
        let length = match rustix::io::read(input, &mut chunk) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(()),
            length => length?,
        };
        self.take(&chunk[..length], in_terminal);
        Ok(())
    }

    /// Nothing is the end of the input: of a terminal the user has gone; the end of a file is told
    /// in a word that every shell knows.
    fn take(&mut self, keys: &[u8], in_terminal: bool) {
        if keys.is_empty() {
            self.ended = true;
            self.left |= in_terminal;
            self.pending.extend_from_slice(END_OF_INPUT);
        } else if in_terminal && keys.contains(&LEAVE) {
            self.left = true;
        } else {
            self.pending.extend_from_slice(keys);
        }
    }

    fn send(&mut self, stream: &UnixStream) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        match rustix::io::write(stream, &self.pending) {
            Ok(length) => drop(self.pending.drain(..length)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            // Its end is read in a moment.
            Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => self.pending.clear(),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn end_of_a_file_is_told_to_the_shell_and_leaves_no_more_to_read() {
        let mut keys = Keys::default();
        keys.take(b"uname", false);
        keys.take(b"", false);
        assert_eq!(keys.pending, b"uname\nexit\n");
        assert!(!keys.wanted() && !keys.left);
    }

    #[test]
    fn key_that_leaves_is_one_only_in_a_terminal() {
        let mut keys = Keys::default();
        keys.take(b"a\x1db", false);
        assert!(!keys.left && keys.pending == b"a\x1db");
        keys.take(b"\x1d", true);
        assert!(keys.left);
    }

    #[test]
    fn guest_that_takes_nothing_bounds_what_is_read() {
        let mut keys = Keys::default();
        while keys.wanted() {
            keys.take(&[b'x'; 1024], true);
        }
        assert!(keys.pending.len() <= 8192);
    }
}
