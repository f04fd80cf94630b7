//! The one owner of the exit statuses of all children.
//!
//! As PID 1 (or as a subreaper) the agent inherits every orphan of every container, so it cannot
//! wait for single children: it collects whatever has died whenever SIGCHLD says so, hands the
//! status to whoever asked for that pid, and throws away the rest.
//!
//! A container's init is a grandchild until the child that made it has exited, and may be dead
//! before its pid is known here. So whoever makes processes takes a [`Hold`] first: while one
//! exists, unclaimed statuses are kept, and [`Reaper::claim`] finds them.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{WaitOptions, WaitStatus};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It returned this from main, or called exit with it; 0..=255.
    Exited(i32),
    /// This signal killed it.
    Killed(i32),
}

impl ExitStatus {
    /// The status as a shell and the agent protocol put it: 128 + signal for a killed process.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Killed(signal) => 128 + signal,
        }
    }

    /// `None` for a process that is merely stopped or continued.
    fn from_wait(status: WaitStatus) -> Option<Self> {
        if let Some(code) = status.exit_status() {
            return Some(Self::Exited(code));
        }
        status.terminating_signal().map(Self::Killed)
    }
}

#[derive(Debug, Default)]
struct Statuses {
    claims: HashMap<i32, oneshot::Sender<ExitStatus>>,
    /// Statuses that nobody has claimed yet; empty unless `holds` > 0.
    unclaimed: HashMap<i32, ExitStatus>,
    holds: usize,
}

impl Statuses {
    fn claim(&mut self, pid: i32) -> oneshot::Receiver<ExitStatus> {
        let (sender, receiver) = oneshot::channel();
        match self.unclaimed.remove(&pid) {
            // The receiver is still here, so sending cannot fail.
            Some(status) => drop(sender.send(status)),
            None => drop(self.claims.insert(pid, sender)),
        }
        receiver
    }

    fn ended(&mut self, pid: i32, status: ExitStatus) {
        match self.claims.remove(&pid) {
            // Nobody to tell if the one who asked has gone.
            Some(claim) => drop(claim.send(status)),
            None if self.holds > 0 => drop(self.unclaimed.insert(pid, status)),
            None => {}
        }
    }

    fn release(&mut self) {
        self.holds -= 1;
        if self.holds == 0 {
            self.unclaimed.clear();
        }
    }
}

/// Handle on the reaper; clones are the same reaper.
///
/// The statuses sit behind a mutex, not in a task of their own, because a claim must be registered
/// before the caller's next await; it is locked for a few instructions and never contended, for
/// the agent has one thread.
#[derive(Debug, Clone, Default)]
pub struct Reaper {
    statuses: Arc<Mutex<Statuses>>,
}

impl Reaper {
    /// Starts to listen for SIGCHLD. Call it before the first child is made, inside of the
    /// runtime, and spawn the returned future.
    ///
    /// # Errors
    ///
    /// Fails when the signal handler cannot be installed.
    pub fn start() -> io::Result<(Self, impl Future<Output = ()> + Send + use<>)> {
        let reaper = Self::default();
        let deaths = signal(SignalKind::child())?;
        let collector = reaper.clone();
        Ok((reaper, collector.run(deaths)))
    }

    async fn run(self, mut deaths: Signal) {
        loop {
            self.collect();
            if deaths.recv().await.is_none() {
                return;
            }
        }
    }

    /// One signal may stand for many deaths, so this collects until nothing is left.
    fn collect(&self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if let Some(status) = ExitStatus::from_wait(status) {
                self.lock().ended(pid.as_raw_nonzero().get(), status);
            }
        }
    }

    /// Keeps unclaimed statuses until the returned guard is dropped.
    #[must_use]
    pub fn hold(&self) -> Hold {
        self.lock().holds += 1;
        Hold { reaper: self.clone() }
    }

    /// The exit status of child `pid`, also if it has ended already, provided that a [`Hold`] was
    /// taken before it was made. `None` if somebody else claims the same pid later on.
    pub fn claim(&self, pid: i32) -> impl Future<Output = Option<ExitStatus>> + Send + use<> {
        let receiver = self.lock().claim(pid);
        async move { receiver.await.ok() }
    }

    fn lock(&self) -> MutexGuard<'_, Statuses> {
        self.statuses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While this exists, no exit status is thrown away. Hold it only for as long as processes are
/// being made: every orphan that dies meanwhile is remembered.
#[derive(Debug)]
pub struct Hold {
    reaper: Reaper,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.reaper.lock().release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claim_after_death_under_hold_finds_status() {
        let mut statuses = Statuses { holds: 1, ..Statuses::default() };
        statuses.ended(7, ExitStatus::Exited(42));
        assert_eq!(statuses.claim(7).try_recv(), Ok(ExitStatus::Exited(42)));
    }

    #[test]
    fn ended_without_hold_or_claim_is_forgotten() {
        let mut statuses = Statuses::default();
        statuses.ended(7, ExitStatus::Exited(42));
        assert!(statuses.claim(7).try_recv().is_err());
        assert!(statuses.unclaimed.is_empty());
    }

    #[test]
    fn release_of_last_hold_forgets_orphans() {
        let mut statuses = Statuses { holds: 2, ..Statuses::default() };
        statuses.ended(7, ExitStatus::Killed(9));
        statuses.release();
        assert_eq!(statuses.unclaimed.len(), 1);
        statuses.release();
        assert!(statuses.unclaimed.is_empty());
    }

    #[test]
    fn code_of_killed_process_is_128_plus_signal() {
        assert_eq!(ExitStatus::Killed(15).code(), 143);
        assert_eq!(ExitStatus::Exited(42).code(), 42);
    }

    #[tokio::test]
    async fn claim_real_child_yields_its_status() {
        let (reaper, run) = Reaper::start().unwrap();
        let child = {
            let _hold = reaper.hold();
            let child = std::process::Command::new("/bin/sh").args(["-c", "exit 3"]).spawn();
            let pid = i32::try_from(child.unwrap().id()).unwrap();
            reaper.claim(pid)
        };
        let status = tokio::select! { status = child => status, () = run => None };
        assert_eq!(status, Some(ExitStatus::Exited(3)));
    }
}
