//! Figures for programs that measure.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::Process;

/// After that an idle sandbox changes nothing any more: its owner has handed back what it can do
/// without, for which it waits a second. Nothing would tell.
const SETTLED: Duration = Duration::from_secs(2);

/// Waits until a sandbox that has nothing to do has come to rest, so that what it costs can be
/// measured.
pub fn let_it_settle() {
    std::thread::sleep(SETTLED);
}

/// What several values come to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// How many there are.
    pub runs: usize,
    /// The one in the middle, or what is midway between the two there.
    pub median: f64,
    /// Nine of ten values are at most this.
    pub p90: f64,
    /// From the value that one of ten does not exceed to the one that nine of ten do not.
    pub spread: f64,
}

impl Summary {
    /// `None` of no values.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        // The nearest rank: the first that so many tenths of all do not exceed.
        let rank = |tenths: usize| sorted[(sorted.len() * tenths).div_ceil(10) - 1];
        let median = f64::midpoint(sorted[last / 2], sorted[last.div_ceil(2)]);
        Some(Self { runs: sorted.len(), median, p90: rank(9), spread: rank(9) - rank(1) })
    }
}

/// A process's share of the memory that it maps (its PSS), in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Share {
    /// Of the guest's memory.
    pub guest: u64,
    /// Of everything else.
    pub rest: u64,
    /// All that is resident of both, whoever else has it mapped, too: no share, but the whole
    /// (RSS).
    pub resident: u64,
}

/// One mapping of a process.
#[derive(Debug, Clone, Copy)]
pub struct Mapping<'a> {
    /// The file, or what stands in place of one, at the end of this line (proc_pid_maps(5)).
    pub line: &'a str,
    /// Its size in KiB.
    pub size: u64,
}

impl Share {
    /// Looks at a process, of whose mappings those are the guest's memory that `is_guests`.
    ///
    /// # Errors
    ///
    /// When the process is gone.
    pub fn of(process: &Process, is_guests: impl Fn(Mapping<'_>) -> bool) -> Result<Self> {
        let maps = fs::read_to_string(format!("/proc/{}/smaps", process.pid))
            .with_context(|| format!("cannot look at {}", process.describe()))?;
        Ok(Self::parse(&maps, is_guests))
    }

    /// What is beside the guest's memory, in MiB.
    #[must_use]
    pub fn rest_mib(&self) -> f64 {
        self.rest as f64 / 1024.0
    }

    /// proc_pid_smaps(5): a line for each mapping, and lines of what is in it, of which its size is
    /// the first.
    fn parse(maps: &str, is_guests: impl Fn(Mapping<'_>) -> bool) -> Self {
        let mut share = Self::default();
        let (mut line, mut is_guest) = ("", false);
        for next in maps.lines() {
            let mut words = next.split_whitespace();
            match (words.next(), words.next().and_then(|word| word.parse::<u64>().ok())) {
                (Some("Size:"), Some(size)) => is_guest = is_guests(Mapping { line, size }),
                (Some("Rss:"), Some(kib)) => share.resident += kib,
                (Some("Pss:"), Some(kib)) if is_guest => share.guest += kib,
                (Some("Pss:"), Some(kib)) => share.rest += kib,
                (Some(first), _) if !first.ends_with(':') => line = next,
                _ => {}
            }
        }
        share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_knows_the_middle_and_the_tail() {
        assert_eq!(Summary::of(&[]), None);
        let one = Summary::of(&[3.0]).unwrap();
        assert_eq!((one.median, one.p90, one.spread), (3.0, 3.0, 0.0));
        let values: Vec<f64> = (1..=11).rev().map(f64::from).collect();
        let eleven = Summary::of(&values).unwrap();
        assert_eq!((eleven.runs, eleven.median, eleven.p90, eleven.spread), (11, 6.0, 10.0, 8.0));
        let ten = Summary::of(&values[1..]).unwrap();
        assert_eq!((ten.median, ten.p90, ten.spread), (5.5, 9.0, 8.0));
        assert_eq!(Summary::of(&[4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
    }

    #[test]
    fn guests_memory_is_told_from_the_rest() {
        let maps = "55d0-55d1 r-xp 00000000 fe:01 12 /usr/bin/vmm\nSize: 8 kB\nRss: 8 kB\nPss:                   4 kB\n\
                    7f00-7f10 rw-s 00000000 00:01 99 /memfd:ram (deleted)\nSize: 2097152 kB\nPss: 100 kB\n\
                    Pss_Dirty: 7 kB\nVmFlags: rd wr sh\n7fff-8000 rw-p 00000000 00:00 0 [stack]\nSize: 132 kB\nPss: 16 kB\n";
        let expected = Share { guest: 100, rest: 20, resident: 8 };
        assert_eq!(Share::parse(maps, |one| one.line.contains("/memfd:ram")), expected);
        assert_eq!(Share::parse(maps, |one| one.size >= 1 << 20), expected);
    }
}
