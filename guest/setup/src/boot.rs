//! How far the guest's boot had come when.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// As much of the kernel's log as is looked at: what it says after it has executed its init is
/// little.
const TAIL: usize = 2048;

/// The time since the kernel's clock began to run, which it does early in its boot
/// (`CLOCK_MONOTONIC`).
#[must_use]
pub fn clock() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or(0),
        // Below a second, which fits.
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}

/// A look at two clocks at once: the kernel's, which stands still while the kernel has not found a
/// source for it yet, and the processor's time stamp counter, which runs from the machine's first
/// instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clocks {
    /// What [`clock`] shows.
    pub kernel: Duration,
    /// `None` on processors without such a counter.
    ticks: Option<u64>,
}

impl Clocks {
    /// Reads both.
    #[must_use]
    pub fn now() -> Self {
        Self { kernel: clock(), ticks: ticks() }
    }

    /// How long the machine has been running, if its counter began with it. `earlier` is for
    /// learning the counter's speed, the longer ago, the better; `None` if it was less than a
    /// millisecond ago.
    #[must_use]
    pub fn machine_age(self, earlier: Self) -> Option<Duration> {
        let elapsed = self.kernel.checked_sub(earlier.kernel)?;
        let (now, before) = (self.ticks?, earlier.ticks?);
        let counted = now.checked_sub(before).filter(|counted| *counted > 0)?;
        if elapsed < Duration::from_millis(1) {
            return None;
        }
        let nanos = u128::from(now) * elapsed.as_nanos() / u128::from(counted);
        u64::try_from(nanos).ok().map(Duration::from_nanos)
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "reading the time stamp counter")]
fn ticks() -> Option<u64> {
    // SAFETY: every x86-64 processor has the instruction, and Linux lets user space execute it
    // unless prctl(PR_SET_TSC) says otherwise, which nothing in the agent does.
    Some(unsafe { core::arch::x86_64::_rdtsc() })
}

#[cfg(not(target_arch = "x86_64"))]
fn ticks() -> Option<u64> {
    None
}

/// When the kernel executed its init, as its log tells. The log's time stamps are of another clock
/// than [`clock`], which began some milliseconds earlier or later. `None` without time stamps, or
/// when much has been logged since.
#[must_use]
pub fn kernel_done() -> Option<Duration> {
    parse(&String::from_utf8_lossy(&log_tail()))
}

/// The last words of the kernel's log; empty without the right to read it.
#[expect(unsafe_code, reason = "the call has no safe wrapper")]
fn log_tail() -> Vec<u8> {
    /// `SYSLOG_ACTION_READ_ALL` of syslog(2): as much of the end as fits, whole lines.
    const READ_ALL: libc::c_int = 3;
    let mut tail = vec![0_u8; TAIL];
    let length = libc::c_int::try_from(tail.len()).unwrap_or(0);
    // SAFETY: the kernel writes at most `length` bytes to the buffer, which has as many.
    let read = unsafe { libc::klogctl(READ_ALL, tail.as_mut_ptr().cast(), length) };
    tail.truncate(usize::try_from(read).unwrap_or(0));
    tail
}

/// Looks for a line like `<6>[    0.812345] Run /init as init process`.
fn parse(log: &str) -> Option<Duration> {
    log.lines().rev().find_map(|line| {
        let (stamp, message) = line.split_once('[')?.1.split_once("] ")?;
        if !(message.starts_with("Run ") && message.ends_with(" as init process")) {
            return None;
        }
        let (seconds, micros) = stamp.trim_start().split_once('.')?;
        let micros = (micros.len() == 6).then(|| micros.parse().ok()).flatten()?;
        Some(Duration::from_secs(seconds.parse().ok()?) + Duration::from_micros(micros))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_last_words_are_understood() {
        let log = "ing unused kernel memory: 2M\n<6>[    0.799001] x: [y] Run away\n\
                   <6>[    0.812345] Run /init as init process\n<7>[    0.812350]   with arguments:\n";
        assert_eq!(parse(log), Some(Duration::from_micros(812_345)));
        for log in ["", "<6>Run /init as init process\n", "<6>[ x.1] Run /init as init process"] {
            assert_eq!(parse(log), None, "{log}");
        }
    }

    #[test]
    fn age_is_what_the_counter_has_counted() {
        let ms = Duration::from_millis;
        let started = Clocks { kernel: ms(400), ticks: Some(2_000_000_000) };
        let now = Clocks { kernel: ms(500), ticks: Some(2_260_000_000) };
        let age = now.machine_age(started).unwrap();
        assert_eq!(age.as_micros(), 869_230);
        assert_eq!(started.machine_age(now), None);
        assert_eq!(now.machine_age(now), None);
        assert_eq!(now.machine_age(Clocks { ticks: None, ..started }), None);
    }

    #[test]
    fn clock_runs() {
        let before = clock();
        assert!(before > Duration::ZERO && clock() >= before);
    }
}
