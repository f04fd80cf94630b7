//! What an administrator may set about Firecracker.

use std::path::PathBuf;
use std::time::Duration;

use crate::api::{RateLimiter, TokenBucket};

/// Settings that are the same for all VMs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirecrackerSettings {
    /// The VMM's program: a path, or a name that is looked for in the usual directories. A path for
    /// the jailer.
    pub program: PathBuf,
    /// Firecracker's own jailer; `None` runs the VMM behind the walls that the other VMMs have.
    pub jailer: Option<PathBuf>,
    /// Whether the VMM filters its own system calls.
    pub seccomp: bool,
    /// What each disk may do.
    pub disk: RateLimiter,
    /// What each network device may receive.
    pub receive: RateLimiter,
    /// What each network device may send.
    pub send: RateLimiter,
    /// The time between two tries to reach an agent that does not listen yet.
    pub dial_again: Duration,
}

impl Default for FirecrackerSettings {
    fn default() -> Self {
        Self {
            program: "firecracker".into(),
            jailer: None,
            seccomp: true,
            disk: RateLimiter::default(),
            receive: RateLimiter::default(),
            send: RateLimiter::default(),
            dial_again: Duration::from_millis(10),
        }
    }
}

impl TokenBucket {
    /// So much a second, and `burst` once beside it; `None` for no limit, which is a rate of 0.
    #[must_use]
    pub fn per_second(rate: u64, burst: u64) -> Option<Self> {
        let one_time_burst = (burst > 0).then_some(burst);
        (rate > 0).then_some(Self { size: rate, refill_time: 1000, one_time_burst })
    }
}

impl RateLimiter {
    /// The limiter as a request has it: `None` where nothing is limited.
    pub(crate) fn if_any(self) -> Option<Self> {
        (self != Self::default()).then_some(self)
    }
}
