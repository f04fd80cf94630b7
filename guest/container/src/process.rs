//! A process of a container, from the agent's point of view.
#![expect(unsafe_code, reason = "signals by number have no safe wrapper for pidfds")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use tokio::sync::watch;

use crate::stdio::{Output, Stdio};

/// A process that has been made, and its status once it has ended: the exit code, or 128 + signal.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    pidfd: OwnedFd,
    stdio: Stdio,
    exit: watch::Receiver<Option<i32>>,
}

/// Why a signal could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum SignalError {
    /// The process has ended.
    #[error("process {0} has already ended")]
    Ended(i32),
    /// There is no such signal.
    #[error("signal {0} does not exist")]
    NoSuchSignal(i32),
    /// The kernel refused.
    #[error("cannot send signal {signal} to process {pid}")]
    Send {
        /// Its number.
        signal: i32,
        /// To whom.
        pid: i32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A process that [`crate::create`] or [`crate::exec`] has made.
#[derive(Debug)]
pub struct Spawned {
    /// Its id, as the agent sees it.
    pub pid: i32,
    /// A descriptor of it, made before anybody could have reaped it.
    pub pidfd: OwnedFd,
    /// The agent's ends of its standard streams.
    pub stdio: Stdio,
}

impl Process {
    /// `exit` is to become the process's status when it has ended.
    #[must_use]
    pub fn new(spawned: Spawned, exit: watch::Receiver<Option<i32>>) -> Self {
        let Spawned { pid, pidfd, stdio } = spawned;
        Self { pid, pidfd, stdio, exit }
    }

    /// Its id, as the agent sees it.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// A descriptor of it.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Its standard streams.
    #[must_use]
    pub fn stdio(&self) -> &Stdio {
        &self.stdio
    }

    /// Its status; `None` while it runs.
    #[must_use]
    pub fn status(&self) -> Option<i32> {
        *self.exit.borrow()
    }

    /// Waits for it to end, and yields its status. `None` if the agent is giving up its processes.
    pub async fn wait(&self) -> Option<i32> {
        let mut exit = self.exit.clone();
        exit.wait_for(Option::is_some).await.ok().and_then(|status| *status)
    }

    /// Output, as [`Stdio::read`].
    ///
    /// # Errors
    ///
    /// As [`Stdio::read`].
    pub async fn read(&self, output: Output, limit: usize) -> io::Result<Vec<u8>> {
        let ended = async {
            self.wait().await;
        };
        self.stdio.read(output, limit, ended).await
    }

    /// Sends a signal to this process and no other, even if its id has been given away since.
    ///
    /// # Errors
    ///
    /// Fails when it has ended, and for numbers that are no signal.
    pub fn signal(&self, signal: i32) -> Result<(), SignalError> {
        let no_info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: the descriptor is open; no information and no flags are given.
        let result = unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, self.pidfd.as_raw_fd(), signal, no_info, 0)
        };
        if result == 0 {
            return Ok(());
        }
        let source = io::Error::last_os_error();
        Err(match source.raw_os_error() {
            Some(libc::ESRCH) => SignalError::Ended(self.pid),
            Some(libc::EINVAL) => SignalError::NoSuchSignal(signal),
            _ => SignalError::Send { signal, pid: self.pid, source },
        })
    }
}

/// Sends a signal to a process whose id cannot be given away meanwhile, such as a frozen one's.
/// Failing means that it has ended, or that there is no such signal.
pub fn kill(pid: i32, signal: i32) {
    // SAFETY: kill has no memory effects.
    unsafe { libc::kill(pid, signal) };
}
