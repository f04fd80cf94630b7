//! The counters of a container's cgroup, as the guest tells them.

use std::collections::BTreeMap;

use kata_agent_api::agent;

use crate::{AgentError, text};

/// What was asked.
const METHOD: &str = "StatsContainer";

/// The longest name of an operation, a size or a counter that is kept, in bytes.
const MAX_NAME: usize = 64;
/// The most processors that a guest can have.
const MAX_CPUS: usize = 4096;
/// The most counters that memory.stat may have; Linux has some seventy.
const MAX_COUNTERS: usize = 512;
/// The most sizes of huge pages; no processor has ten.
const MAX_PAGE_SIZES: usize = 64;
/// The most counters of one kind for block devices, of which there are some for each.
const MAX_BLOCK_ENTRIES: usize = 1024;

/// The counters of a container's cgroup.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerStats {
    /// Processor time.
    pub cpu: CpuStats,
    /// Memory.
    pub memory: MemoryStats,
    /// Processes.
    pub pids: PidsStats,
    /// Block devices.
    pub block_io: BlockIoStats,
    /// Huge pages by their size, e.g. `2MB`.
    pub huge_pages: BTreeMap<String, HugePageStats>,
}

/// Processor time in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuStats {
    /// All of it.
    pub total: u64,
    /// That of each processor; empty where the guest does not count it.
    pub per_cpu: Vec<u64>,
    /// That in the kernel.
    pub kernel: u64,
    /// That in user mode.
    pub user: u64,
    /// What the quota held back.
    pub throttling: ThrottlingStats,
}

/// What a processor quota held back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ThrottlingStats {
    /// Periods that have passed.
    pub periods: u64,
    /// Those in which the quota was used up.
    pub throttled_periods: u64,
    /// The time held back, in nanoseconds.
    pub throttled_time: u64,
}

/// Memory in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// Page cache.
    pub cache: u64,
    /// Memory.
    pub usage: MemoryUsage,
    /// Memory and swap together, from an agent of ours; swap alone, from others.
    pub swap_usage: MemoryUsage,
    /// Kernel memory.
    pub kernel_usage: MemoryUsage,
    /// The entries of memory.stat, and with `events.` before their names those of memory.events.
    pub stat: BTreeMap<String, u64>,
}

/// One kind of memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryUsage {
    /// Now.
    pub usage: u64,
    /// At most so far; 0 where the guest does not count it.
    pub max_usage: u64,
    /// How often the limit was hit.
    pub failures: u64,
    /// The limit; `u64::MAX` and numbers near it are none.
    pub limit: u64,
}

/// Processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PidsStats {
    /// Now.
    pub current: u64,
    /// The limit; 0 is none.
    pub limit: u64,
}

/// Block devices, by what is counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlockIoStats {
    /// Bytes.
    pub service_bytes: Vec<BlockIoStatsEntry>,
    /// Operations.
    pub serviced: Vec<BlockIoStatsEntry>,
    /// Operations that wait.
    pub queued: Vec<BlockIoStatsEntry>,
    /// Nanoseconds from dispatch to completion.
    pub service_time: Vec<BlockIoStatsEntry>,
    /// Nanoseconds in the queues.
    pub wait_time: Vec<BlockIoStatsEntry>,
    /// Merged operations.
    pub merged: Vec<BlockIoStatsEntry>,
    /// Milliseconds of device time.
    pub time: Vec<BlockIoStatsEntry>,
    /// Sectors.
    pub sectors: Vec<BlockIoStatsEntry>,
}

/// A counter of one block device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlockIoStatsEntry {
    /// The device's major number.
    pub major: u64,
    /// The device's minor number.
    pub minor: u64,
    /// `Read`, `Write` and so on, or empty.
    pub operation: String,
    /// The counter.
    pub value: u64,
}

/// Huge pages of one size, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HugePageStats {
    /// Now.
    pub usage: u64,
    /// At most so far; 0 where the guest does not count it.
    pub max_usage: u64,
    /// How often the limit was hit.
    pub failures: u64,
}

impl ContainerStats {
    /// Takes over the guest's answer.
    ///
    /// # Errors
    /// [`AgentError::Hostile`] when a list is longer than any guest needs.
    pub(crate) fn read(stats: agent::CgroupStats) -> Result<Self, AgentError> {
        at_most(MAX_PAGE_SIZES, stats.hugetlb_stats.len(), "sizes of huge pages")?;
        Ok(Self {
            cpu: CpuStats::read(stats.cpu_stats.unwrap_or_default())?,
            memory: MemoryStats::read(stats.memory_stats.unwrap_or_default())?,
            pids: PidsStats { current: stats.pids_stats.current, limit: stats.pids_stats.limit },
            block_io: BlockIoStats::read(stats.blkio_stats.unwrap_or_default())?,
            huge_pages: stats
                .hugetlb_stats
                .into_iter()
                .map(|(size, pages)| {
                    let stats = HugePageStats {
                        usage: pages.usage,
                        max_usage: pages.max_usage,
                        failures: pages.failcnt,
                    };
                    (text::one_line(&size, MAX_NAME), stats)
                })
                .collect(),
        })
    }
}

impl CpuStats {
    fn read(stats: agent::CpuStats) -> Result<Self, AgentError> {
        let usage = stats.cpu_usage.unwrap_or_default();
        at_most(MAX_CPUS, usage.percpu_usage.len(), "processors")?;
        Ok(Self {
            total: usage.total_usage,
            per_cpu: usage.percpu_usage,
            kernel: usage.usage_in_kernelmode,
            user: usage.usage_in_usermode,
            throttling: ThrottlingStats {
                periods: stats.throttling_data.periods,
                throttled_periods: stats.throttling_data.throttled_periods,
                throttled_time: stats.throttling_data.throttled_time,
            },
        })
    }
}

impl MemoryStats {
    fn read(stats: agent::MemoryStats) -> Result<Self, AgentError> {
        let usage = |data: &agent::MemoryData| MemoryUsage {
            usage: data.usage,
            max_usage: data.max_usage,
            failures: data.failcnt,
            limit: data.limit,
        };
        at_most(MAX_COUNTERS, stats.stats.len(), "counters of memory")?;
        Ok(Self {
            cache: stats.cache,
            usage: usage(&stats.usage),
            swap_usage: usage(&stats.swap_usage),
            kernel_usage: usage(&stats.kernel_usage),
            stat: stats
                .stats
                .into_iter()
                .map(|(name, value)| (text::one_line(&name, MAX_NAME), value))
                .collect(),
        })
    }
}

impl BlockIoStats {
    fn read(stats: agent::BlkioStats) -> Result<Self, AgentError> {
        Ok(Self {
            service_bytes: block_entries(stats.io_service_bytes_recursive)?,
            serviced: block_entries(stats.io_serviced_recursive)?,
            queued: block_entries(stats.io_queued_recursive)?,
            service_time: block_entries(stats.io_service_time_recursive)?,
            wait_time: block_entries(stats.io_wait_time_recursive)?,
            merged: block_entries(stats.io_merged_recursive)?,
            time: block_entries(stats.io_time_recursive)?,
            sectors: block_entries(stats.sectors_recursive)?,
        })
    }
}

fn block_entries(
    entries: Vec<agent::BlkioStatsEntry>,
) -> Result<Vec<BlockIoStatsEntry>, AgentError> {
    at_most(MAX_BLOCK_ENTRIES, entries.len(), "counters of block devices")?;
    let read = |entry: agent::BlkioStatsEntry| BlockIoStatsEntry {
        major: entry.major,
        minor: entry.minor,
        operation: text::one_line(&entry.op, MAX_NAME),
        value: entry.value,
    };
    Ok(entries.into_iter().map(read).collect())
}

/// Refuses a list of `count` elements, which are called `what`, if that is more than `most`.
fn at_most(most: usize, count: usize, what: &str) -> Result<(), AgentError> {
    if count <= most {
        return Ok(());
    }
    Err(AgentError::hostile(METHOD, format!("{count} {what}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_block_entries(count: usize, op: &str) -> agent::CgroupStats {
        let entry = agent::BlkioStatsEntry { op: op.to_owned(), ..Default::default() };
        let io =
            agent::BlkioStats { io_serviced_recursive: vec![entry; count], ..Default::default() };
        agent::CgroupStats { blkio_stats: Some(io).into(), ..Default::default() }
    }

    fn refusal(stats: agent::CgroupStats) -> String {
        ContainerStats::read(stats).unwrap_err().to_string()
    }

    #[test]
    fn lists_that_no_guest_needs_are_refused() {
        assert!(ContainerStats::read(with_block_entries(MAX_BLOCK_ENTRIES, "Read")).is_ok());
        let error = refusal(with_block_entries(700_000, "Read"));
        assert!(error.ends_with("StatsContainer with 700000 counters of block devices"), "{error}");

        let usage = agent::CpuUsage { percpu_usage: vec![1; MAX_CPUS + 1], ..Default::default() };
        let cpu = agent::CpuStats { cpu_usage: Some(usage).into(), ..Default::default() };
        let error =
            refusal(agent::CgroupStats { cpu_stats: Some(cpu).into(), ..Default::default() });
        assert!(error.ends_with("4097 processors"), "{error}");

        let stats = (0..=MAX_COUNTERS).map(|n| (n.to_string(), 1)).collect();
        let memory = agent::MemoryStats { stats, ..Default::default() };
        let error =
            refusal(agent::CgroupStats { memory_stats: Some(memory).into(), ..Default::default() });
        assert!(error.ends_with("513 counters of memory"), "{error}");

        let hugetlb_stats =
            (0..=MAX_PAGE_SIZES).map(|n| (n.to_string(), Default::default())).collect();
        let error = refusal(agent::CgroupStats { hugetlb_stats, ..Default::default() });
        assert!(error.ends_with("65 sizes of huge pages"), "{error}");
    }

    #[test]
    fn names_are_bounded_lines() {
        let stats = ContainerStats::read(with_block_entries(1, "Re\x1b[2Jad\n")).unwrap();
        assert_eq!(stats.block_io.serviced[0].operation, "Re [2Jad");
        let stats = ContainerStats::read(with_block_entries(1, &"x".repeat(100_000))).unwrap();
        assert!(stats.block_io.serviced[0].operation.len() <= MAX_NAME);
    }
}
