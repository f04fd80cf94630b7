//! What a group has used. A file that is missing, because the kernel lacks the controller, counts
//! as zero.

use std::collections::BTreeMap;

use super::Cgroup;
use super::events::value_of;

/// Everything that is measured.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stats {
    /// Processor time.
    pub cpu: CpuStats,
    /// Memory and swap.
    pub memory: MemoryStats,
    /// How many processes and threads there are.
    pub pids: u64,
    /// How many there may be; `u64::MAX` for no limit.
    pub pids_limit: u64,
    /// Block I/O, by device and kind.
    pub io: Vec<IoEntry>,
    /// Huge pages, by page size as in `2MB`.
    pub hugetlb: BTreeMap<String, HugetlbStats>,
}

/// Processor time, in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CpuStats {
    /// All.
    pub total: u64,
    /// In user mode.
    pub user: u64,
    /// In the kernel.
    pub kernel: u64,
    /// Periods of the quota that have passed.
    pub periods: u64,
    /// Those in which the quota was used up.
    pub throttled_periods: u64,
    /// Time spent waiting for the next.
    pub throttled_time: u64,
}

/// Memory, in bytes. `u64::MAX` is "no limit".
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MemoryStats {
    /// In use now, page cache included.
    pub usage: u64,
    /// The most that was ever in use; 0 on kernels before 5.19.
    pub peak: u64,
    /// The most that there may be.
    pub limit: u64,
    /// Swap in use now.
    pub swap_usage: u64,
    /// The most that there may be.
    pub swap_limit: u64,
    /// Every line of `memory.stat`.
    pub details: BTreeMap<String, u64>,
    /// Every line of `memory.events`: how often a limit was run into (`max`), how often in vain
    /// (`oom`), how many processes that has cost (`oom_kill`), and so on.
    pub events: BTreeMap<String, u64>,
}

/// One device's use, in bytes or operations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IoEntry {
    /// The device's major number.
    pub major: u64,
    /// Its minor number.
    pub minor: u64,
    /// The kernel's name of what is counted: `rbytes`, `wbytes`, `rios`, `wios`, `dbytes`, `dios`.
    pub kind: String,
    /// How much.
    pub value: u64,
}

/// Huge pages of one size, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HugetlbStats {
    /// In use now.
    pub usage: u64,
    /// The most that there may be.
    pub limit: u64,
    /// How often the limit was run into.
    pub failures: u64,
}

impl Cgroup {
    /// Measures. A group that is gone has used nothing.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let text = |name: &str| self.read(name).unwrap_or_default();
        let number = |name: &str| number(&text(name));
        Stats {
            cpu: cpu(&text("cpu.stat")),
            memory: MemoryStats {
                usage: number("memory.current"),
                peak: number("memory.peak"),
                limit: number("memory.max"),
                swap_usage: number("memory.swap.current"),
                swap_limit: number("memory.swap.max"),
                details: flat(&text("memory.stat")),
                events: flat(&text("memory.events")),
            },
            pids: number("pids.current"),
            pids_limit: number("pids.max"),
            io: io(&text("io.stat")),
            hugetlb: self.hugetlb(),
        }
    }

    fn hugetlb(&self) -> BTreeMap<String, HugetlbStats> {
        let mut all = BTreeMap::new();
        let Ok(entries) = std::fs::read_dir(self.directory()) else { return all };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let size = name
                .to_str()
                .and_then(|name| name.strip_prefix("hugetlb."))
                .and_then(|name| name.strip_suffix(".current"))
                .filter(|size| !size.contains('.'));
            let Some(size) = size else { continue };
            let text =
                |what: &str| self.read(&format!("hugetlb.{size}.{what}")).unwrap_or_default();
            let stats = HugetlbStats {
                usage: number(&text("current")),
                limit: number(&text("max")),
                failures: value_of(&text("events"), "max").unwrap_or(0),
            };
            all.insert(size.to_owned(), stats);
        }
        all
    }
}

fn number(text: &str) -> u64 {
    match text.trim() {
        "max" => u64::MAX,
        number => number.parse().unwrap_or(0),
    }
}

fn cpu(text: &str) -> CpuStats {
    let microseconds = |key| value_of(text, key).unwrap_or(0).saturating_mul(1000);
    CpuStats {
        total: microseconds("usage_usec"),
        user: microseconds("user_usec"),
        kernel: microseconds("system_usec"),
        periods: value_of(text, "nr_periods").unwrap_or(0),
        throttled_periods: value_of(text, "nr_throttled").unwrap_or(0),
        throttled_time: microseconds("throttled_usec"),
    }
}

fn flat(text: &str) -> BTreeMap<String, u64> {
    text.lines()
        .filter_map(|line| {
            let (key, value) = line.split_once(' ')?;
            Some((key.to_owned(), value.trim().parse().ok()?))
        })
        .collect()
}

/// Lines like `254:0 rbytes=4096 wbytes=0`.
fn io(text: &str) -> Vec<IoEntry> {
    let mut entries = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some((major, minor)) = words.next().and_then(|device| device.split_once(':')) else {
            continue;
        };
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else { continue };
        for (kind, value) in words.filter_map(|word| word.split_once('=')) {
            if let Ok(value) = value.parse() {
                entries.push(IoEntry { major, minor, kind: kind.to_owned(), value });
            }
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cpu_times_are_nanoseconds() {
        let stats = cpu("usage_usec 12\nuser_usec 5\nsystem_usec 7\nnr_periods 2\n");
        assert_eq!((stats.total, stats.user, stats.kernel), (12_000, 5_000, 7_000));
        assert_eq!(stats.periods, 2);
    }

    #[test]
    fn io_lines_become_entries() {
        let entries = io("254:0 rbytes=4096 wbytes=0\nbroken\n8:1 dios=3\n");
        assert_eq!(entries.len(), 3);
        assert_eq!((entries[2].major, entries[2].minor, entries[2].value), (8, 1, 3));
    }

    #[test]
    fn number_max_is_no_limit() {
        assert_eq!(number("max\n"), u64::MAX);
        assert_eq!(number("17\n"), 17);
        assert_eq!(number(""), 0);
    }

    proptest! {
        #[test]
        fn parsers_never_panic(text in "[a-z0-9:= \n]{0,200}") {
            let _ = (cpu(&text), flat(&text), io(&text), number(&text));
        }
    }
}
