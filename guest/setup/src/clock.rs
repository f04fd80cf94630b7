//! The guest's wall clock.

use std::io;

use rustix::time::{ClockId, Timespec};

/// Why the clock could not be set.
#[derive(Debug, thiserror::Error)]
pub enum ClockError {
    /// Microseconds beyond a second, or a time before 1970.
    #[error("{seconds} s and {microseconds} µs since 1970 is not a time")]
    OutOfRange {
        /// Whole seconds.
        seconds: i64,
        /// The rest.
        microseconds: i64,
    },
    /// The kernel refused.
    #[error("cannot set the clock")]
    Set(#[source] io::Error),
}

/// Sets the wall clock to this time since 1970 (UTC).
///
/// # Errors
///
/// Fails for a time before 1970, for `microseconds` outside of 0..1 000 000, and without
/// `CAP_SYS_TIME`.
pub fn set(seconds: i64, microseconds: i64) -> Result<(), ClockError> {
    if seconds < 0 || !(0..1_000_000).contains(&microseconds) {
        return Err(ClockError::OutOfRange { seconds, microseconds });
    }
    let time = Timespec { tv_sec: seconds, tv_nsec: microseconds * 1000 };
    rustix::time::clock_settime(ClockId::Realtime, time)
        .map_err(|errno| ClockError::Set(errno.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_impossible_time_is_refused() {
        assert!(matches!(set(-1, 0), Err(ClockError::OutOfRange { .. })));
        assert!(matches!(set(1, 1_000_000), Err(ClockError::OutOfRange { .. })));
    }
}
