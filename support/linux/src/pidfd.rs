//! A process as a descriptor (pidfd_open(2)): its end is an event, and a signal reaches it or
//! nobody.

#![expect(
    unsafe_code,
    reason = "tokio takes descriptors that belong to it for good, and rustix the numbers of real-time signals, only by an unsafe call"
)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::process::Exit;

/// Sends a signal to the process of a descriptor. `number` may also be that of a real-time signal,
/// which [`Signal`] has no names for.
///
/// # Errors
/// `InvalidInput` for what is no signal; else as pidfd_send_signal(2).
pub fn send_signal(pidfd: impl AsFd, number: i32) -> io::Result<()> {
    if !(1..=LAST_SIGNAL).contains(&number) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: it is the number of a signal. Those that the C library keeps for itself may be sent
    // to others: they are only not to be handled or blocked here.
    let signal = unsafe { Signal::from_raw_unchecked(number) };
    Ok(pidfd_send_signal(pidfd, signal)?)
}

/// `SIGRTMAX` of the kernel (signal(7)).
const LAST_SIGNAL: i32 = 64;

/// One process, which keeps its identity here also after its end, when its id may belong to
/// another.
#[derive(Debug)]
pub struct Pidfd(AsyncFd<OwnedFd>);

impl Pidfd {
    /// The process that has the id `pid` now; that it is the one meant is sure for one's own
    /// children that were not reaped yet.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn open(pid: Pid) -> io::Result<Self> {
        let fd = pidfd_open(pid, PidfdFlags::empty())?;
        // SAFETY: an `OwnedFd` is open and the same until it is dropped, which the `AsyncFd` does
        // after deregistering it.
        Ok(Self(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?))
    }

    /// Resolves when the process has ended, whether it was reaped or not.
    pub async fn ended(&self) {
        // An error means that the runtime is going down, and everybody who waits with it.
        if self.0.readable().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Sends a signal. That the process has ended is not an error.
    pub fn kill(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(self.0.get_ref(), signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Reaps the process, which must be a child of this one; waits if it has not
    /// [ended](Self::ended) yet.
    #[must_use]
    pub fn reap(&self) -> Exit {
        let status = loop {
            match waitid(WaitId::PidFd(self.0.get_ref().as_fd()), WaitIdOptions::EXITED) {
                Err(Errno::INTR) => {}
                status => break status,
            }
        };
        match status {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Exit::Code(code),
                (None, Some(signal)) => Exit::Signal(signal),
                (None, None) => Exit::Unknown,
            },
            Ok(None) | Err(_) => Exit::Unknown,
        }
    }
}
