//! Processes that are remembered across time: a process id alone may belong to somebody else by
//! now, together with the time at which its process started it does not.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// One process, past or present.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Its process id.
    pub pid: u32,
    /// When it started, in clock ticks since boot (field 22 of proc_pid_stat(5)).
    pub start_time: u64,
}

impl ProcessIdentity {
    /// The process that has this id now; `None` when there is none. One that has ended and was not
    /// reaped yet has its id still, and may have threads that are just ending.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        Self::with_state(pid).map(|(identity, _)| identity)
    }

    /// Whether it still runs: a zombie does not.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        Self::with_state(self.pid).is_some_and(|(now, state)| now == *self && state != 'Z')
    }

    fn with_state(pid: u32) -> Option<(Self, char)> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (state, start_time) = parse_stat(&stat)?;
        Some((Self { pid, start_time }, state))
    }

    /// Kills it if it still runs, and waits until it is gone, but not longer than `patience`. Never
    /// touches another process that has got its id meanwhile. False when it is still there.
    #[must_use]
    pub fn kill_and_wait(&self, patience: Duration) -> bool {
        self.signal_and_wait(Some(Signal::KILL), patience)
    }

    /// Waits until it is gone, but not longer than `patience`. False when it is still there.
    #[must_use]
    pub fn wait(&self, patience: Duration) -> bool {
        self.signal_and_wait(None, patience)
    }

    /// As [`ProcessIdentity::kill_and_wait`] for several: all are killed before any is waited for,
    /// and `patience` is for all together. Returns those that are still there.
    #[must_use]
    pub fn kill_all_and_wait(all: &[Self], patience: Duration) -> Vec<Self> {
        let deadline = Instant::now() + patience;
        let pinned: Vec<_> =
            all.iter().filter_map(|one| Some((*one, one.pin(Some(Signal::KILL))?))).collect();
        let left = |(_, pidfd): &(Self, OwnedFd)| {
            !has_ended(pidfd, deadline.saturating_duration_since(Instant::now()))
        };
        pinned.into_iter().filter(left).map(|(identity, _)| identity).collect()
    }

    fn signal_and_wait(&self, signal: Option<Signal>, patience: Duration) -> bool {
        self.pin(signal).is_none_or(|pidfd| has_ended(&pidfd, patience))
    }

    /// A descriptor of the process, which gets `signal`; `None` when it is gone.
    fn pin(&self, signal: Option<Signal>) -> Option<OwnedFd> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw)?;
        // The descriptor pins the id; only then is the comparison worth something.
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        if Self::of(self.pid) != Some(*self) {
            return None;
        }
        if let Some(signal) = signal {
            let _ = pidfd_send_signal(&pidfd, signal);
        }
        Some(pidfd)
    }
}

/// Waits for a process's end and says whether it has come. The descriptor is readable when the last
/// thread has ended; the first one may be a zombie long before that.
fn has_ended(pidfd: &OwnedFd, patience: Duration) -> bool {
    let timeout = Timespec::try_from(patience).ok();
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    matches!(retry(|| poll(&mut fds, timeout.as_ref())), Ok(ready) if ready > 0)
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    rustix::io::retry_on_intr(&mut call).map_err(io::Error::from)
}

/// State and start time. The second field, the command in parentheses, may itself hold spaces and
/// parentheses.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let (_, after) = stat.rsplit_once(')')?;
    let mut fields = after.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let start_time = fields.nth(18)?.parse().ok()?;
    Some((state, start_time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_with_a_strange_command_is_parsed() {
        let stat = format!("7 (a) b) ) R{} 4242 0", " 0".repeat(18));
        assert_eq!(parse_stat(&stat), Some(('R', 4242)));
    }

    #[test]
    fn own_process_is_alive_and_an_earlier_one_is_not() {
        let own = ProcessIdentity::of(std::process::id()).unwrap();
        assert!(own.is_alive());
        let earlier = ProcessIdentity { start_time: own.start_time - 1, ..own };
        assert!(!earlier.is_alive());
        assert!(earlier.kill_and_wait(Duration::ZERO));
    }

    #[test]
    fn killed_process_is_waited_for() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let identity = ProcessIdentity::of(child.id()).unwrap();
        assert!(identity.kill_and_wait(Duration::from_secs(10)));
        child.wait().unwrap();
        assert!(!identity.is_alive());
    }

    #[test]
    fn several_are_killed_at_once_and_those_that_stay_are_told() {
        let mut children: Vec<_> = (0..3)
            .map(|_| std::process::Command::new("sleep").arg("60").spawn().unwrap())
            .collect();
        let all: Vec<_> =
            children.iter().map(|child| ProcessIdentity::of(child.id()).unwrap()).collect();
        assert_eq!(ProcessIdentity::kill_all_and_wait(&all, Duration::from_secs(10)), []);
        for child in &mut children {
            child.wait().unwrap();
        }
        assert_eq!(ProcessIdentity::kill_all_and_wait(&all, Duration::ZERO), []);
    }
}
