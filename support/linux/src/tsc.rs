//! The frequency of the processor's time stamp counter.
//!
//! An emulated guest whose machine has no timer to calibrate against cannot find it out when the
//! host is busy, and then waits for ever; so the host measures and tells it.

/// How fast the host's time stamp counter runs in kHz, measured against `CLOCK_MONOTONIC_RAW` for 2
/// ms (which this call takes) and good to 0.05 %. `None` where there is no such counter, or where
/// it could not be read undisturbed.
#[must_use]
pub fn host_khz() -> Option<u32> {
    imp::host_khz()
}

#[cfg(target_arch = "x86_64")]
mod imp {
    #![expect(unsafe_code, reason = "reading the time stamp counter")]

    use core::arch::x86_64::_rdtsc;

    use rustix::time::{ClockId, clock_gettime};

    /// Long enough that an error of 500 ns at either end makes 0.05 %.
    const PERIOD_NS: u64 = 2_000_000;
    /// Readings at each end, of which the least disturbed counts.
    const READINGS: usize = 16;
    /// A reading that took longer was interrupted.
    const WORST_READING_NS: u64 = 400;
    /// Measurements before giving up on a host that is too busy.
    const ATTEMPTS: usize = 20;

    /// The clock and the counter at one moment.
    #[derive(Clone, Copy)]
    struct Reading {
        ns: u64,
        ticks: u64,
        /// How far apart the two may be.
        uncertainty_ns: u64,
    }

    pub(super) fn host_khz() -> Option<u32> {
        (0..ATTEMPTS).find_map(|_| measure())
    }

    fn measure() -> Option<u32> {
        let start = best_reading()?;
        while now_ns() - start.ns < PERIOD_NS {
            std::hint::spin_loop();
        }
        let end = best_reading()?;
        khz(end.ticks.checked_sub(start.ticks)?, end.ns - start.ns)
    }

    pub(super) fn khz(ticks: u64, ns: u64) -> Option<u32> {
        let khz = (u128::from(ticks) * 1_000_000).checked_div(u128::from(ns))?;
        // Below 100 MHz and above 100 GHz something other than a counter was read.
        u32::try_from(khz).ok().filter(|khz| (100_000..100_000_000).contains(khz))
    }

    fn best_reading() -> Option<Reading> {
        (0..READINGS)
            .map(|_| reading())
            .min_by_key(|reading| reading.uncertainty_ns)
            .filter(|reading| reading.uncertainty_ns <= WORST_READING_NS)
    }

    fn reading() -> Reading {
        let before = now_ns();
        // SAFETY: every x86-64 processor has the instruction; Linux lets user space execute it
        // unless prctl(PR_SET_TSC) says otherwise, which nothing in this program does.
        let ticks = unsafe { _rdtsc() };
        let after = now_ns();
        Reading { ns: before.midpoint(after), ticks, uncertainty_ns: after - before }
    }

    fn now_ns() -> u64 {
        let now = clock_gettime(ClockId::MonotonicRaw);
        u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000
            + u64::try_from(now.tv_nsec).unwrap_or(0)
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod imp {
    pub(super) fn host_khz() -> Option<u32> {
        None
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use std::iter;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn ticks_over_time_are_a_frequency() {
        assert_eq!(imp::khz(5_200_000, 2_000_000), Some(2_600_000));
        assert_eq!(imp::khz(0, 2_000_000), None);
        assert_eq!(imp::khz(1, 0), None);
    }

    #[test]
    fn measurements_agree_within_their_accuracy() {
        // A busy host may allow fewer than ten within a second; those that there are agree.
        let deadline = Instant::now() + Duration::from_secs(1);
        let all = iter::from_fn(|| (Instant::now() < deadline).then(host_khz)).flatten();
        let measured: Vec<u32> = all.take(10).collect();
        for pair in measured.windows(2) {
            let apart = f64::from(pair[0].abs_diff(pair[1])) / f64::from(pair[0]);
            assert!(apart < 0.001, "{measured:?}");
        }
    }
}
