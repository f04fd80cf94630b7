//! Waiting for a process in the foreground: signals to this program are its signals.

use std::os::fd::AsFd;
use std::process::Child;

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Signals that are not passed on: a child's end, and a reader's.
const OWN: [Signal; 2] = [Signal::SIGCHLD, Signal::SIGPIPE];

/// Signals that wait to be passed on, from now on.
#[derive(Debug)]
pub(crate) struct Foreground(SignalFd);

impl Foreground {
    /// To be called before the process is started, so that none is lost.
    pub(crate) fn begin() -> Result<Self> {
        let mut all = SigSet::all();
        for own in OWN {
            all.remove(own);
        }
        all.thread_block().context("cannot block signals")?;
        let fd = SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .context("cannot listen for signals")?;
        Ok(Self(fd))
    }

    /// Waits for the stand-in, and returns the status that it ends with.
    pub(crate) fn wait(&mut self, stand_in: &mut Child) -> Result<u8> {
        let pid = Pid::from_child(stand_in);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("cannot follow kata-shim")?;
        loop {
            let ended = {
                let mut fds = [
                    PollFd::new(&pidfd, PollFlags::IN),
                    PollFd::from_borrowed_fd(self.0.as_fd(), PollFlags::IN),
                ];
                rustix::io::retry_on_intr(|| poll(&mut fds, None)).context("cannot wait")?;
                !fds[0].revents().is_empty()
            };
            while let Ok(Some(info)) = self.0.read_signal() {
                let number = i32::try_from(info.ssi_signo).unwrap_or_default();
                // That it has ended meanwhile is seen in a moment.
                let _ = kata_linux::pidfd::send_signal(&pidfd, number);
            }
            if ended {
                let status = stand_in.wait().context("cannot wait for kata-shim")?;
                return Ok(exit_code(status));
            }
        }
    }
}

fn exit_code(status: std::process::ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    u8::try_from(code).unwrap_or(u8::MAX)
}
