//! `io.containerd.cgroups.v2.Metrics`.

use std::collections::BTreeMap;

use kata_sandbox::{BlockIoStats, ContainerStats, CpuStats, MemoryStats};
use kata_shim_api::metrics::v2::{
    CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PidsStat, RdmaStat,
};

use super::{entry, swap};

pub(super) fn metrics(stats: &ContainerStats) -> Metrics {
    Metrics {
        pids: Some(PidsStat {
            current: stats.pids.current,
            // The agent says 0 for no limit, containerd the largest number.
            limit: if stats.pids.limit == 0 { u64::MAX } else { stats.pids.limit },
            ..PidsStat::default()
        })
        .into(),
        cpu: Some(cpu(&stats.cpu)).into(),
        memory: Some(memory(&stats.memory)).into(),
        memory_events: Some(memory_events(&stats.memory)).into(),
        io: Some(io(&stats.block_io)).into(),
        hugetlb: stats
            .huge_pages
            .iter()
            .map(|(size, pages)| HugeTlbStat {
                current: pages.usage,
                max: pages.max_usage,
                pagesize: size.clone(),
                failcnt: pages.failures,
                ..HugeTlbStat::default()
            })
            .collect(),
        rdma: Some(RdmaStat::default()).into(),
        ..Metrics::default()
    }
}

fn cpu(cpu: &CpuStats) -> CPUStat {
    let microseconds = |nanoseconds: u64| nanoseconds / 1000;
    CPUStat {
        usage_usec: microseconds(cpu.total),
        user_usec: microseconds(cpu.user),
        system_usec: microseconds(cpu.kernel),
        nr_periods: cpu.throttling.periods,
        nr_throttled: cpu.throttling.throttled_periods,
        throttled_usec: microseconds(cpu.throttling.throttled_time),
        ..CPUStat::default()
    }
}

fn memory(memory: &MemoryStats) -> MemoryStat {
    let stat = |name: &str| entry(memory, &[name]);
    let swap = swap(memory);
    MemoryStat {
        usage: memory.usage.usage,
        usage_limit: memory.usage.limit,
        max_usage: memory.usage.max_usage,
        swap_usage: swap.usage,
        swap_limit: swap.limit,
        swap_max_usage: swap.max_usage,
        anon: stat("anon"),
        file: stat("file"),
        kernel_stack: stat("kernel_stack"),
        slab: stat("slab"),
        sock: stat("sock"),
        shmem: stat("shmem"),
        file_mapped: stat("file_mapped"),
        file_dirty: stat("file_dirty"),
        file_writeback: stat("file_writeback"),
        anon_thp: stat("anon_thp"),
        inactive_anon: stat("inactive_anon"),
        active_anon: stat("active_anon"),
        inactive_file: stat("inactive_file"),
        active_file: stat("active_file"),
        unevictable: stat("unevictable"),
        slab_reclaimable: stat("slab_reclaimable"),
        slab_unreclaimable: stat("slab_unreclaimable"),
        pgfault: stat("pgfault"),
        pgmajfault: stat("pgmajfault"),
        // Since Linux 5.9 there are two of each, of which containerd takes that of files.
        workingset_refault: entry(memory, &["workingset_refault", "workingset_refault_file"]),
        workingset_activate: entry(memory, &["workingset_activate", "workingset_activate_file"]),
        workingset_nodereclaim: stat("workingset_nodereclaim"),
        pgrefill: stat("pgrefill"),
        pgscan: stat("pgscan"),
        pgsteal: stat("pgsteal"),
        pgactivate: stat("pgactivate"),
        pgdeactivate: stat("pgdeactivate"),
        pglazyfree: stat("pglazyfree"),
        pglazyfreed: stat("pglazyfreed"),
        thp_fault_alloc: stat("thp_fault_alloc"),
        thp_collapse_alloc: stat("thp_collapse_alloc"),
        ..MemoryStat::default()
    }
}

fn memory_events(memory: &MemoryStats) -> MemoryEvents {
    let event = |name: &str| entry(memory, &[name]);
    MemoryEvents {
        low: event("events.low"),
        high: event("events.high"),
        max: memory.usage.failures,
        oom: event("events.oom"),
        oom_kill: event("events.oom_kill"),
        ..MemoryEvents::default()
    }
}

/// One entry per device, where the agent has one per device and operation.
fn io(io: &BlockIoStats) -> IOStat {
    let mut devices: BTreeMap<(u64, u64), IOEntry> = BTreeMap::new();
    let kinds = [(&io.service_bytes, true), (&io.serviced, false)];
    for (entries, are_bytes) in kinds {
        for entry in entries {
            let device = devices.entry((entry.major, entry.minor)).or_insert_with(|| IOEntry {
                major: entry.major,
                minor: entry.minor,
                ..IOEntry::default()
            });
            match (entry.operation.to_ascii_lowercase().as_str(), are_bytes) {
                ("read", true) => device.rbytes = entry.value,
                ("write", true) => device.wbytes = entry.value,
                ("read", false) => device.rios = entry.value,
                ("write", false) => device.wios = entry.value,
                _ => {}
            }
        }
    }
    IOStat { usage: devices.into_values().collect(), ..IOStat::default() }
}
