//! `io.containerd.cgroups.v1.Metrics`.

use kata_sandbox::{
    BlockIoStats, BlockIoStatsEntry, ContainerStats, CpuStats, MemoryStats, MemoryUsage,
};
use kata_shim_api::metrics::v1::{
    BlkIOEntry, BlkIOStat, CPUStat, CPUUsage, CgroupStats, HugetlbStat, MemoryEntry,
    MemoryOomControl, MemoryStat, Metrics, PidsStat, RdmaStat, Throttle,
};

use super::{entry, swap};

pub(super) fn metrics(stats: &ContainerStats) -> Metrics {
    Metrics {
        pids: Some(PidsStat {
            current: stats.pids.current,
            limit: if stats.pids.limit == u64::MAX { 0 } else { stats.pids.limit },
            ..PidsStat::default()
        })
        .into(),
        cpu: Some(cpu(&stats.cpu)).into(),
        memory: Some(memory(&stats.memory)).into(),
        blkio: Some(block_io(&stats.block_io)).into(),
        hugetlb: stats
            .huge_pages
            .iter()
            .map(|(size, pages)| HugetlbStat {
                usage: pages.usage,
                max: pages.max_usage,
                failcnt: pages.failures,
                pagesize: size.clone(),
                ..HugetlbStat::default()
            })
            .collect(),
        rdma: Some(RdmaStat::default()).into(),
        cgroup_stats: Some(CgroupStats::default()).into(),
        memory_oom_control: Some(MemoryOomControl {
            oom_kill: entry(&stats.memory, &["events.oom_kill"]),
            ..MemoryOomControl::default()
        })
        .into(),
        ..Metrics::default()
    }
}

fn cpu(cpu: &CpuStats) -> CPUStat {
    CPUStat {
        usage: Some(CPUUsage {
            total: cpu.total,
            kernel: cpu.kernel,
            user: cpu.user,
            per_cpu: cpu.per_cpu.clone(),
            ..CPUUsage::default()
        })
        .into(),
        throttling: Some(Throttle {
            periods: cpu.throttling.periods,
            throttled_periods: cpu.throttling.throttled_periods,
            throttled_time: cpu.throttling.throttled_time,
            ..Throttle::default()
        })
        .into(),
        ..CPUStat::default()
    }
}

/// Version 2 counts whole subtrees only, which version 1 calls totals: both get the same.
fn memory(memory: &MemoryStats) -> MemoryStat {
    let stat = |names: &[&str]| entry(memory, names);
    let cache = if memory.cache == 0 { stat(&["file", "cache"]) } else { memory.cache };
    let (rss, rss_huge) = (stat(&["anon", "rss"]), stat(&["anon_thp", "rss_huge"]));
    let (mapped, dirty, writeback) = (
        stat(&["file_mapped", "mapped_file"]),
        stat(&["file_dirty", "dirty"]),
        stat(&["file_writeback", "writeback"]),
    );
    let (faults, major_faults) = (stat(&["pgfault"]), stat(&["pgmajfault"]));
    let (inactive_anon, active_anon) = (stat(&["inactive_anon"]), stat(&["active_anon"]));
    let (inactive_file, active_file) = (stat(&["inactive_file"]), stat(&["active_file"]));
    let unevictable = stat(&["unevictable"]);
    let swap = swap(memory);
    MemoryStat {
        cache,
        total_cache: cache,
        rss,
        total_rss: rss,
        rss_huge,
        total_rss_huge: rss_huge,
        mapped_file: mapped,
        total_mapped_file: mapped,
        dirty,
        total_dirty: dirty,
        writeback,
        total_writeback: writeback,
        pg_fault: faults,
        total_pg_fault: faults,
        pg_maj_fault: major_faults,
        total_pg_maj_fault: major_faults,
        inactive_anon,
        total_inactive_anon: inactive_anon,
        active_anon,
        total_active_anon: active_anon,
        inactive_file,
        total_inactive_file: inactive_file,
        active_file,
        total_active_file: active_file,
        unevictable,
        total_unevictable: unevictable,
        hierarchical_memory_limit: memory.usage.limit,
        usage: Some(usage(&memory.usage)).into(),
        // Version 2 counts swap alone, version 1 memory and swap together.
        swap: Some(usage(&MemoryUsage {
            usage: memory.usage.usage.saturating_add(swap.usage),
            max_usage: memory.usage.max_usage.saturating_add(swap.max_usage),
            failures: swap.failures,
            limit: memory.usage.limit.saturating_add(swap.limit),
        }))
        .into(),
        kernel: Some(usage(&memory.kernel_usage)).into(),
        kernel_tcp: Some(MemoryEntry::default()).into(),
        ..MemoryStat::default()
    }
}

fn usage(usage: &MemoryUsage) -> MemoryEntry {
    MemoryEntry {
        limit: usage.limit,
        usage: usage.usage,
        max: usage.max_usage,
        failcnt: usage.failures,
        ..MemoryEntry::default()
    }
}

fn block_io(io: &BlockIoStats) -> BlkIOStat {
    let entries = |entries: &[BlockIoStatsEntry]| {
        let entry = |entry: &BlockIoStatsEntry| BlkIOEntry {
            op: entry.operation.clone(),
            major: entry.major,
            minor: entry.minor,
            value: entry.value,
            ..BlkIOEntry::default()
        };
        entries.iter().map(entry).collect()
    };
    BlkIOStat {
        io_service_bytes_recursive: entries(&io.service_bytes),
        io_serviced_recursive: entries(&io.serviced),
        io_queued_recursive: entries(&io.queued),
        io_service_time_recursive: entries(&io.service_time),
        io_wait_time_recursive: entries(&io.wait_time),
        io_merged_recursive: entries(&io.merged),
        io_time_recursive: entries(&io.time),
        sectors_recursive: entries(&io.sectors),
        ..BlkIOStat::default()
    }
}
