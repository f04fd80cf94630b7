use kata_sandbox::{
    BlockIoStats, BlockIoStatsEntry, CpuStats, HugePageStats, MemoryUsage, PidsStats,
    ThrottlingStats,
};

use super::*;

fn stats() -> ContainerStats {
    let entry = |operation: &str, value| BlockIoStatsEntry {
        major: 8,
        minor: 1,
        operation: operation.into(),
        value,
    };
    ContainerStats {
        cpu: CpuStats {
            total: 5_000_000,
            kernel: 2_000_000,
            user: 3_000_000,
            per_cpu: vec![4_000_000, 1_000_000],
            throttling: ThrottlingStats { periods: 7, throttled_periods: 2, throttled_time: 9_000 },
        },
        memory: MemoryStats {
            usage: MemoryUsage { usage: 100, max_usage: 120, failures: 3, limit: 200 },
            swap_usage: MemoryUsage { usage: 11, limit: u64::MAX, ..MemoryUsage::default() },
            stat: [
                ("anon", 40),
                ("file", 50),
                ("inactive_file", 20),
                ("workingset_refault_file", 6),
                ("events.high", 9),
                ("events.oom", 8),
                ("events.oom_kill", 7),
            ]
            .map(|(name, value)| (name.to_owned(), value))
            .into(),
            ..MemoryStats::default()
        },
        pids: PidsStats { current: 4, limit: 0 },
        block_io: BlockIoStats {
            service_bytes: vec![entry("Read", 4096), entry("Write", 512)],
            serviced: vec![entry("read", 1), entry("write", 2)],
            ..BlockIoStats::default()
        },
        huge_pages: [("2MB".to_owned(), HugePageStats { usage: 1, max_usage: 2, failures: 3 })]
            .into(),
    }
}

#[test]
fn unified_metrics_have_the_units_and_names_of_version_2() {
    let metrics = unified::metrics(&stats());
    assert_eq!(
        (metrics.cpu.usage_usec, metrics.cpu.user_usec, metrics.cpu.system_usec),
        (5_000, 3_000, 2_000)
    );
    assert_eq!((metrics.cpu.nr_throttled, metrics.cpu.throttled_usec), (2, 9));
    assert_eq!(
        (metrics.memory.usage, metrics.memory.usage_limit, metrics.memory.max_usage),
        (100, 200, 120)
    );
    assert_eq!(
        (metrics.memory.anon, metrics.memory.file, metrics.memory.inactive_file),
        (40, 50, 20)
    );
    assert_eq!((metrics.memory.swap_usage, metrics.memory.workingset_refault), (11, 6));
    assert_eq!((metrics.pids.current, metrics.pids.limit), (4, u64::MAX));
    let events = &metrics.memory_events;
    assert_eq!((events.low, events.high, events.max), (0, 9, 3));
    assert_eq!((events.oom, events.oom_kill), (8, 7));
    let [io] = metrics.io.usage.as_slice() else { panic!("one device") };
    assert_eq!(
        (io.major, io.minor, io.rbytes, io.wbytes, io.rios, io.wios),
        (8, 1, 4096, 512, 1, 2)
    );
    assert_eq!((metrics.hugetlb[0].pagesize.as_str(), metrics.hugetlb[0].current), ("2MB", 1));
}

#[test]
fn legacy_metrics_have_the_units_and_names_of_version_1() {
    let metrics = legacy::metrics(&stats());
    assert_eq!((metrics.cpu.usage.total, metrics.cpu.usage.per_cpu.len()), (5_000_000, 2));
    assert_eq!(
        (metrics.cpu.throttling.throttled_periods, metrics.cpu.throttling.throttled_time),
        (2, 9_000)
    );
    assert_eq!((metrics.memory.usage.usage, metrics.memory.usage.limit), (100, 200));
    assert_eq!(
        (metrics.memory.rss, metrics.memory.total_cache, metrics.memory.total_inactive_file),
        (40, 50, 20)
    );
    assert_eq!((metrics.memory.swap.usage, metrics.memory.swap.limit), (111, u64::MAX));
    assert_eq!((metrics.pids.current, metrics.pids.limit), (4, 0));
    assert_eq!(metrics.memory_oom_control.oom_kill, 7);
    assert_eq!(metrics.blkio.io_service_bytes_recursive.len(), 2);
    assert_eq!(metrics.hugetlb[0].failcnt, 3);
}

#[test]
fn swap_is_told_alone_where_the_guest_tells_it_together_with_memory() {
    let mut stats = stats();
    stats.memory.swap_usage = MemoryUsage { usage: 130, limit: 500, ..MemoryUsage::default() };
    let alone = [("swap_usage", 30), ("swap_limit", 300)];
    stats.memory.stat.extend(alone.map(|(name, value)| (name.to_owned(), value)));
    let unified = unified::metrics(&stats);
    assert_eq!((unified.memory.swap_usage, unified.memory.swap_limit), (30, 300));
    let legacy = legacy::metrics(&stats);
    assert_eq!((legacy.memory.swap.usage, legacy.memory.swap.limit), (130, 500));
}

#[test]
fn no_part_is_missing_although_nothing_was_counted() {
    let nothing = ContainerStats::default();
    let unified = unified::metrics(&nothing);
    assert!(
        unified.cpu.is_some()
            && unified.memory.is_some()
            && unified.pids.is_some()
            && unified.io.is_some()
    );
    assert!(unified.memory_events.is_some() && unified.rdma.is_some());
    let legacy = legacy::metrics(&nothing);
    assert!(
        legacy.cpu.usage.is_some()
            && legacy.cpu.throttling.is_some()
            && legacy.pids.is_some()
            && legacy.blkio.is_some()
    );
    assert!(
        legacy.memory.usage.is_some()
            && legacy.memory.swap.is_some()
            && legacy.memory.kernel.is_some()
    );
    assert!(legacy.memory.kernel_tcp.is_some() && legacy.memory_oom_control.is_some());
}
