//! What a container has used, in the protocol's words.

use kata_agent_api::agent::{
    BlkioStats, BlkioStatsEntry, CgroupStats, CpuStats, CpuUsage, HugetlbStats, MemoryData,
    MemoryStats, PidsStats, StatsContainerResponse, ThrottlingData,
};
use kata_guest_container::cgroup::Stats;

/// Converts; nothing that was measured is left out.
pub(crate) fn to_wire(stats: &Stats) -> StatsContainerResponse {
    let mut cgroup = CgroupStats::new();
    cgroup.cpu_stats = Some(cpu(stats)).into();
    cgroup.memory_stats = Some(memory(stats)).into();
    let mut pids = PidsStats::new();
    pids.current = stats.pids;
    // The protocol's way to say "no limit" for processes.
    pids.limit = if stats.pids_limit == u64::MAX { 0 } else { stats.pids_limit };
    cgroup.pids_stats = Some(pids).into();
    cgroup.blkio_stats = Some(io(stats)).into();
    for (size, measured) in &stats.hugetlb {
        let mut wire = HugetlbStats::new();
        wire.usage = measured.usage;
        wire.failcnt = measured.failures;
        cgroup.hugetlb_stats.insert(size.clone(), wire);
    }
    let mut response = StatsContainerResponse::new();
    response.cgroup_stats = Some(cgroup).into();
    response
}

fn cpu(stats: &Stats) -> CpuStats {
    let mut usage = CpuUsage::new();
    usage.total_usage = stats.cpu.total;
    usage.usage_in_usermode = stats.cpu.user;
    usage.usage_in_kernelmode = stats.cpu.kernel;
    let mut throttling = ThrottlingData::new();
    throttling.periods = stats.cpu.periods;
    throttling.throttled_periods = stats.cpu.throttled_periods;
    throttling.throttled_time = stats.cpu.throttled_time;
    let mut wire = CpuStats::new();
    wire.cpu_usage = Some(usage).into();
    wire.throttling_data = Some(throttling).into();
    wire
}

fn memory(stats: &Stats) -> MemoryStats {
    let measured = &stats.memory;
    let detail = |key| measured.details.get(key).copied().unwrap_or(0);
    let data = |usage, max_usage, failcnt, limit| {
        let mut wire = MemoryData::new();
        (wire.usage, wire.max_usage, wire.failcnt, wire.limit) = (usage, max_usage, failcnt, limit);
        wire
    };
    let mut wire = MemoryStats::new();
    wire.cache = detail("file");
    wire.use_hierarchy = true;
    let failures = measured.events.get("max").copied().unwrap_or(0);
    let usage = data(measured.usage, measured.peak, failures, measured.limit);
    wire.usage = Some(usage).into();
    // As in cgroup version 1, which the protocol speaks: memory and swap together.
    let together = measured.usage.saturating_add(measured.swap_usage);
    let limit = measured.limit.saturating_add(measured.swap_limit);
    wire.swap_usage = Some(data(together, 0, 0, limit)).into();
    wire.kernel_usage = Some(data(detail("kernel"), 0, 0, u64::MAX)).into();
    wire.stats = measured.details.iter().map(|(key, value)| (key.clone(), *value)).collect();
    // Not in memory.stat, but wanted by whoever reads version 2 out of this.
    wire.stats.insert("swap_usage".to_owned(), measured.swap_usage);
    wire.stats.insert("swap_limit".to_owned(), measured.swap_limit);
    let events = measured.events.iter();
    wire.stats.extend(events.map(|(key, value)| (format!("events.{key}"), *value)));
    wire
}

fn io(stats: &Stats) -> BlkioStats {
    let mut wire = BlkioStats::new();
    for measured in &stats.io {
        let (op, is_bytes) = match measured.kind.as_str() {
            "rbytes" => ("Read", true),
            "wbytes" => ("Write", true),
            "dbytes" => ("Discard", true),
            "rios" => ("Read", false),
            "wios" => ("Write", false),
            "dios" => ("Discard", false),
            _ => continue,
        };
        let mut entry = BlkioStatsEntry::new();
        (entry.major, entry.minor, entry.value) = (measured.major, measured.minor, measured.value);
        op.clone_into(&mut entry.op);
        if is_bytes {
            wire.io_service_bytes_recursive.push(entry);
        } else {
            wire.io_serviced_recursive.push(entry);
        }
    }
    wire
}

#[cfg(test)]
mod tests {
    use kata_guest_container::cgroup::IoEntry;

    use super::*;

    #[test]
    fn to_wire_sorts_io_by_unit() {
        let entry = |kind: &str| IoEntry { major: 8, minor: 1, kind: kind.into(), value: 7 };
        let stats =
            Stats { io: vec![entry("rbytes"), entry("wios"), entry("?")], ..Stats::default() };
        let wire = to_wire(&stats).cgroup_stats.unwrap().blkio_stats.unwrap();
        assert_eq!(wire.io_service_bytes_recursive[0].op, "Read");
        assert_eq!(wire.io_serviced_recursive[0].op, "Write");
    }

    #[test]
    fn to_wire_tells_of_every_event_of_memory() {
        let mut stats = Stats::default();
        stats.memory.events = [("max", 5), ("oom_kill", 2)].map(|(key, n)| (key.into(), n)).into();
        let wire = to_wire(&stats).cgroup_stats.unwrap().memory_stats.unwrap();
        assert_eq!((wire.usage.failcnt, wire.stats["events.oom_kill"]), (5, 2));
    }

    #[test]
    fn to_wire_without_limit_does_not_overflow() {
        let mut stats = Stats { pids_limit: u64::MAX, ..Stats::default() };
        (stats.memory.limit, stats.memory.swap_limit) = (u64::MAX, u64::MAX);
        let wire = to_wire(&stats).cgroup_stats.unwrap();
        assert_eq!(wire.pids_stats.limit, 0);
        assert_eq!(wire.memory_stats.swap_usage.limit, u64::MAX);
    }
}
