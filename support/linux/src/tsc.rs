//! The frequency of the processor's time stamp counter.
//!
//! An emulated guest whose machine has no timer to calibrate against cannot find it out when the
//! host is busy, and then waits for ever; so the host measures and tells it.

/// How fast the host's time stamp counter runs in kHz, measured against `CLOCK_MONOTONIC_RAW`. It
/// is good to 0.05 % and takes 2 ms on a host that does not disturb it; where readings are
/// disturbed it takes longer, until it is as good, and 200 ms at most: then the best measurement of
/// all counts. `None` where there is no such counter, or none that counts time.
#[must_use]
pub fn host_khz() -> Option<u32> {
    imp::host_khz()
}

/// The clocks that the kernel may count time by; one that it found to be wrong is not among them
/// (Documentation/ABI/testing/sysfs-devices-system-clocksource).
const CLOCKS: &str = "/sys/devices/system/clocksource/clocksource0/available_clocksource";

/// Whether this host's kernel takes the counter for one that counts time evenly, on all processors
/// alike. Not, where that cannot be read.
#[must_use]
pub fn is_trusted() -> bool {
    std::fs::read_to_string(CLOCKS).is_ok_and(|all| all.split_whitespace().any(|one| one == "tsc"))
}

#[cfg(target_arch = "x86_64")]
mod imp {
    #![expect(unsafe_code, reason = "reading the time stamp counter")]

    use core::arch::x86_64::_rdtsc;

    use rustix::time::{ClockId, clock_gettime};

    /// The least time to measure for, and between two readings.
    const PERIOD_NS: u64 = 2_000_000;
    /// The most.
    const LONGEST_NS: u64 = 200_000_000;
    /// How often the counter is read each time; the least disturbed reading counts.
    const TRIES: usize = 16;
    /// A measurement is good when it may be wrong by one part in so many.
    const GOOD: u64 = 2000;

    /// The clock and the counter at one moment.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) struct Reading {
        pub(super) ns: u64,
        pub(super) ticks: u64,
        /// How long the reading took: `ns` may be wrong by half of it.
        pub(super) took_ns: u64,
    }

    /// What two readings tell.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) struct Measurement {
        ticks: u64,
        ns: u64,
        /// How much `ns` may be wrong.
        error_ns: u64,
    }

    impl Measurement {
        /// `None` if no time has passed, or if the counter has run backwards.
        fn between(start: Reading, end: Reading) -> Option<Self> {
            Some(Self {
                ticks: end.ticks.checked_sub(start.ticks)?,
                ns: end.ns.checked_sub(start.ns).filter(|&ns| ns > 0)?,
                error_ns: (start.took_ns + end.took_ns).div_ceil(2),
            })
        }

        /// How much of it may be wrong, in billionths.
        fn error_ppb(self) -> u128 {
            u128::from(self.error_ns) * 1_000_000_000 / u128::from(self.ns)
        }

        fn is_good(self) -> bool {
            self.ns >= PERIOD_NS && self.error_ns <= self.ns / GOOD
        }

        pub(super) fn khz(self) -> Option<u32> {
            let khz = (u128::from(self.ticks) * 1_000_000).checked_div(u128::from(self.ns))?;
            // Below 100 MHz and above 100 GHz something other than a counter was read.
            u32::try_from(khz).ok().filter(|khz| (100_000..100_000_000).contains(khz))
        }
    }

    pub(super) fn host_khz() -> Option<u32> {
        measure(reading).and_then(Measurement::khz)
    }

    /// Takes readings until two of them make a good measurement, or for as long as one may take.
    /// The best pair counts, wherever in that time its readings are.
    pub(super) fn measure(mut read: impl FnMut() -> Reading) -> Option<Measurement> {
        let first = read();
        let mut readings = vec![best(first, &mut read)];
        let mut found = None;
        loop {
            let earliest = readings.last().map_or(0, |last| last.ns + PERIOD_NS);
            let mut next = read();
            while next.ns < earliest {
                std::hint::spin_loop();
                next = read();
            }
            let next = best(next, &mut read);
            let pairs = readings.iter().filter_map(|&start| Measurement::between(start, next));
            found = pairs.chain(found).min_by_key(|pair| pair.error_ppb());
            if found.is_some_and(Measurement::is_good) || next.ns >= first.ns + LONGEST_NS {
                return found;
            }
            readings.push(next);
        }
    }

    /// The least disturbed of `first` and those that follow it at once.
    fn best(first: Reading, read: &mut impl FnMut() -> Reading) -> Reading {
        (1..TRIES).fold(first, |best, _| less_disturbed(best, read()))
    }

    fn less_disturbed(one: Reading, other: Reading) -> Reading {
        if other.took_ns < one.took_ns { other } else { one }
    }

    fn reading() -> Reading {
        let before = now_ns();
        // SAFETY: every x86-64 processor has the instruction; Linux lets user space execute it
        // unless prctl(PR_SET_TSC) says otherwise, which nothing in this program does.
        let ticks = unsafe { _rdtsc() };
        let after = now_ns();
        Reading { ns: before.midpoint(after), ticks, took_ns: after - before }
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
    use super::imp::{Reading, measure};
    use super::*;

    const KHZ: u64 = 2_600_000;

    /// A host whose readings take what `took` says, each begun 1 us after the last one's end, and
    /// whose counter is read at the beginning of that time or at its end: as wrong as can be.
    fn host(mut took: impl FnMut(u64) -> u64) -> impl FnMut() -> Reading {
        let mut now = 0;
        let mut count = 0;
        move || {
            let took_ns = took(count);
            count += 1;
            let begun = now + 1000;
            now = begun + took_ns;
            let read = if count % 3 == 0 { begun } else { now };
            Reading { ns: begun.midpoint(now), ticks: read * KHZ / 1_000_000, took_ns }
        }
    }

    /// How far the measurement of such a host is off, in parts of 100 000.
    fn off(took: impl FnMut(u64) -> u64) -> u64 {
        let khz = measure(host(took)).and_then(|measured| measured.khz()).expect("it counts");
        KHZ.abs_diff(khz.into()) * 100_000 / KHZ
    }

    #[test]
    fn quiet_host_is_measured_in_two_milliseconds() {
        let mut end = 0;
        let mut read = host(|_| 60);
        let measured = measure(|| {
            let reading = read();
            end = reading.ns;
            reading
        });
        assert!(measured.unwrap().khz().unwrap().abs_diff(2_600_000) <= 130);
        assert!((2_000_000..2_200_000).contains(&end), "{end}");
    }

    #[test]
    fn disturbed_host_is_measured_for_longer_and_as_well() {
        // Every reading is a trap into a hypervisor.
        assert!(off(|_| 20_000) <= 50);
        // The first two rounds are interrupted, the rest is not.
        assert!(off(|n| if n < 40 { 900_000 } else { 100 }) <= 50);
        // Long and short ones take turns at random.
        assert!(off(|n| if n * 7919 % 13 < 12 { 3_000_000 } else { 2_000 }) <= 50);
    }

    #[test]
    fn host_that_is_never_quiet_is_measured_as_well_as_it_can_be() {
        // 200 ms with readings of 4 ms: 2 % are the bound.
        assert!(off(|n| 4_000_000 + n * 7919 % 13) <= 2000);
    }

    #[test]
    fn what_does_not_count_time_is_no_counter() {
        let khz = |ticks: fn(u64) -> u64| {
            let mut read = host(|_| 60);
            let read = || {
                let reading = read();
                Reading { ticks: ticks(reading.ns), ..reading }
            };
            measure(read).and_then(|measured| measured.khz())
        };
        assert_eq!(khz(|_| 42), None, "it stands still");
        assert_eq!(khz(|ns| u64::MAX - ns), None, "it runs backwards");
        assert_eq!(khz(|ns| ns / 100_000), None, "it is too slow");
        assert!(khz(|ns| ns).is_some());
    }

    #[test]
    fn this_host_is_measured_every_time_and_alike() {
        let measured: Vec<Option<u32>> = (0..10).map(|_| host_khz()).collect();
        let known: Vec<u32> = measured.iter().flatten().copied().collect();
        assert_eq!(known.len(), measured.len(), "{measured:?}");
        for pair in known.windows(2) {
            let apart = f64::from(pair[0].abs_diff(pair[1])) / f64::from(pair[0]);
            assert!(apart < 0.002, "{measured:?}");
        }
    }
}
