//! A moment on the host.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Nanoseconds of the host's `CLOCK_MONOTONIC`, which begins with the host's boot and is the same
/// for all processes of the host (time_namespaces(7) excepted).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment(u64);

impl Moment {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::Monotonic);
        // The clock is never negative, and its nanoseconds last for 584 years.
        let part = |value: i64| u64::try_from(value).unwrap_or(0);
        Self(part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec))
    }

    /// From nanoseconds of that clock.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds of that clock.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The moment that was `time` earlier, or the host's boot.
    #[must_use]
    pub fn before(self, time: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// The time from `earlier` to this moment; zero if it is the later one.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// [`Instant`] is of the same clock, but does not tell its value.
impl From<Instant> for Moment {
    fn from(instant: Instant) -> Self {
        let ago = u64::try_from(instant.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Self(Self::now().0.saturating_sub(ago))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_and_moments_are_of_one_clock() {
        let before = Moment::now();
        let instant = Instant::now();
        let after = Moment::now();
        let moment = Moment::from(instant);
        // Reading the clock twice, once for each, is no atomic act.
        assert!(moment.since(after) < Duration::from_millis(50), "{moment:?}");
        assert!(before.since(moment) < Duration::from_millis(50), "{moment:?}");
    }
}
