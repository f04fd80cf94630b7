//! The counters of a container's cgroup, as the guest tells them.

use std::collections::BTreeMap;

use kata_agent_api::agent;

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
    /// Memory and swap.
    pub swap_usage: MemoryUsage,
    /// Kernel memory.
    pub kernel_usage: MemoryUsage,
    /// The entries of memory.stat.
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

impl From<agent::CgroupStats> for ContainerStats {
    fn from(stats: agent::CgroupStats) -> Self {
        Self {
            cpu: stats.cpu_stats.unwrap_or_default().into(),
            memory: stats.memory_stats.unwrap_or_default().into(),
            pids: PidsStats { current: stats.pids_stats.current, limit: stats.pids_stats.limit },
            block_io: stats.blkio_stats.unwrap_or_default().into(),
            huge_pages: stats
                .hugetlb_stats
                .into_iter()
                .map(|(size, pages)| {
                    let stats = HugePageStats {
                        usage: pages.usage,
                        max_usage: pages.max_usage,
                        failures: pages.failcnt,
                    };
                    (size, stats)
                })
                .collect(),
        }
    }
}

impl From<agent::CpuStats> for CpuStats {
    fn from(stats: agent::CpuStats) -> Self {
        let usage = stats.cpu_usage.unwrap_or_default();
        Self {
            total: usage.total_usage,
            per_cpu: usage.percpu_usage,
            kernel: usage.usage_in_kernelmode,
            user: usage.usage_in_usermode,
            throttling: ThrottlingStats {
                periods: stats.throttling_data.periods,
                throttled_periods: stats.throttling_data.throttled_periods,
                throttled_time: stats.throttling_data.throttled_time,
            },
        }
    }
}

impl From<agent::MemoryStats> for MemoryStats {
    fn from(stats: agent::MemoryStats) -> Self {
        let usage = |data: &agent::MemoryData| MemoryUsage {
            usage: data.usage,
            max_usage: data.max_usage,
            failures: data.failcnt,
            limit: data.limit,
        };
        Self {
            cache: stats.cache,
            usage: usage(&stats.usage),
            swap_usage: usage(&stats.swap_usage),
            kernel_usage: usage(&stats.kernel_usage),
            stat: stats.stats.into_iter().collect(),
        }
    }
}

impl From<agent::BlkioStats> for BlockIoStats {
    fn from(stats: agent::BlkioStats) -> Self {
        let entries = |entries: Vec<agent::BlkioStatsEntry>| {
            entries
                .into_iter()
                .map(|entry| BlockIoStatsEntry {
                    major: entry.major,
                    minor: entry.minor,
                    operation: entry.op,
                    value: entry.value,
                })
                .collect()
        };
        Self {
            service_bytes: entries(stats.io_service_bytes_recursive),
            serviced: entries(stats.io_serviced_recursive),
            queued: entries(stats.io_queued_recursive),
            service_time: entries(stats.io_service_time_recursive),
            wait_time: entries(stats.io_wait_time_recursive),
            merged: entries(stats.io_merged_recursive),
            time: entries(stats.io_time_recursive),
            sectors: entries(stats.sectors_recursive),
        }
    }
}
