//! The metrics that a task's stats are made of, in the shapes of both cgroup versions.

use protobuf::Message;
use protobuf::well_known_types::any::Any;

/// `io.containerd.cgroups.v1`: what a host with legacy cgroups shows.
pub mod v1 {
    pub use containerd_shim_protos::cgroups::metrics::*;
}

/// `io.containerd.cgroups.v2`: what a host with the unified hierarchy shows.
pub mod v2 {
    pub use containerd_shim_protos::cgroups_v2::metrics::*;
}

const V1: &str = "io.containerd.cgroups.v1.Metrics";
const V2: &str = "io.containerd.cgroups.v2.Metrics";

/// Metrics as [`StatsResponse`](crate::api::StatsResponse) carries them. Engines choose how to read
/// them by this name.
pub fn v1_any(metrics: &v1::Metrics) -> Any {
    pack(V1, metrics)
}

/// As [`v1_any`], for version 2.
pub fn v2_any(metrics: &v2::Metrics) -> Any {
    pack(V2, metrics)
}

/// The figures that both versions have, each 0 or empty where there is none or no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "each name says it, with its unit where it has one; memory and swap are in bytes"
)]
pub struct Figures {
    pub cpu_total_ns: u64,
    pub cpu_each_ns: Vec<u64>,
    pub cpu_kernel_ns: u64,
    pub cpu_user_ns: u64,
    pub throttled_of_periods: u64,
    pub throttled_periods: u64,
    pub throttled_ns: u64,
    pub memory_cache: u64,
    pub memory_usage: u64,
    pub memory_limit: u64,
    pub memory_max: u64,
    pub memory_failures: u64,
    pub swap_usage: u64,
    pub swap_limit: u64,
    pub pids: u64,
    pub pids_limit: u64,
    pub block_bytes: Vec<BlockFigure>,
    pub block_operations: Vec<BlockFigure>,
    pub huge_pages: Vec<HugePageFigures>,
}

/// One figure of one block device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlockFigure {
    /// The device's major number in the guest.
    pub major: u64,
    /// Its minor number there.
    pub minor: u64,
    /// `Read`, `Write` or another of the kernel's words.
    pub operation: String,
    /// How many bytes or operations.
    pub value: u64,
}

/// Huge pages of one size, in bytes but for the failures.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each name says it")]
pub struct HugePageFigures {
    /// The size as the kernel writes it, like `2MB`.
    pub size: String,
    pub usage: u64,
    pub max: u64,
    pub failures: u64,
}

/// Reads back what [`v1_any`] or [`v2_any`] has written; `None` if it is something else.
#[must_use]
pub fn figures(any: &Any) -> Option<Figures> {
    match any.type_url.as_str() {
        V1 => v1::Metrics::parse_from_bytes(&any.value).ok().map(|metrics| v1_figures(&metrics)),
        V2 => v2::Metrics::parse_from_bytes(&any.value).ok().map(|metrics| v2_figures(&metrics)),
        _ => None,
    }
}

// An absent message reads as one whose fields are all 0.
fn v1_figures(metrics: &v1::Metrics) -> Figures {
    let (cpu, memory) = (&metrics.cpu, &metrics.memory);
    Figures {
        cpu_total_ns: cpu.usage.total,
        cpu_each_ns: cpu.usage.per_cpu.clone(),
        cpu_kernel_ns: cpu.usage.kernel,
        cpu_user_ns: cpu.usage.user,
        throttled_of_periods: cpu.throttling.periods,
        throttled_periods: cpu.throttling.throttled_periods,
        throttled_ns: cpu.throttling.throttled_time,
        memory_cache: memory.cache,
        memory_usage: memory.usage.usage,
        memory_limit: memory.usage.limit,
        memory_max: memory.usage.max,
        memory_failures: memory.usage.failcnt,
        swap_usage: memory.swap.usage,
        swap_limit: memory.swap.limit,
        pids: metrics.pids.current,
        pids_limit: metrics.pids.limit,
        block_bytes: v1_block(&metrics.blkio.io_service_bytes_recursive),
        block_operations: v1_block(&metrics.blkio.io_serviced_recursive),
        huge_pages: metrics.hugetlb.iter().map(v1_huge_pages).collect(),
    }
}

fn v1_block(entries: &[v1::BlkIOEntry]) -> Vec<BlockFigure> {
    let figure = |entry: &v1::BlkIOEntry| BlockFigure {
        major: entry.major,
        minor: entry.minor,
        operation: entry.op.clone(),
        value: entry.value,
    };
    entries.iter().map(figure).collect()
}

fn v1_huge_pages(pages: &v1::HugetlbStat) -> HugePageFigures {
    HugePageFigures {
        size: pages.pagesize.clone(),
        usage: pages.usage,
        max: pages.max,
        failures: pages.failcnt,
    }
}

fn v2_figures(metrics: &v2::Metrics) -> Figures {
    let (cpu, memory) = (&metrics.cpu, &metrics.memory);
    Figures {
        cpu_total_ns: cpu.usage_usec.saturating_mul(1000),
        cpu_each_ns: Vec::new(),
        cpu_kernel_ns: cpu.system_usec.saturating_mul(1000),
        cpu_user_ns: cpu.user_usec.saturating_mul(1000),
        throttled_of_periods: cpu.nr_periods,
        throttled_periods: cpu.nr_throttled,
        throttled_ns: cpu.throttled_usec.saturating_mul(1000),
        memory_cache: memory.file,
        memory_usage: memory.usage,
        memory_limit: memory.usage_limit,
        memory_max: 0,
        memory_failures: metrics.memory_events.max,
        swap_usage: memory.swap_usage,
        swap_limit: memory.swap_limit,
        pids: metrics.pids.current,
        pids_limit: if metrics.pids.limit == u64::MAX { 0 } else { metrics.pids.limit },
        block_bytes: v2_block(&metrics.io.usage, |one| [one.rbytes, one.wbytes]),
        block_operations: v2_block(&metrics.io.usage, |one| [one.rios, one.wios]),
        huge_pages: metrics.hugetlb.iter().map(v2_huge_pages).collect(),
    }
}

fn v2_block(devices: &[v2::IOEntry], read_write: fn(&v2::IOEntry) -> [u64; 2]) -> Vec<BlockFigure> {
    let figures = |device: &v2::IOEntry| {
        let (major, minor) = (device.major, device.minor);
        let named = ["Read", "Write"].into_iter().zip(read_write(device));
        named.map(move |(operation, value)| {
            let operation = operation.to_owned();
            BlockFigure { major, minor, operation, value }
        })
    };
    devices.iter().flat_map(figures).collect()
}

fn v2_huge_pages(pages: &v2::HugeTlbStat) -> HugePageFigures {
    HugePageFigures {
        size: pages.pagesize.clone(),
        usage: pages.current,
        max: pages.max,
        failures: pages.failcnt,
    }
}

fn pack(type_name: &str, metrics: &impl Message) -> Any {
    let value =
        metrics.write_to_bytes().expect("a message that lives in memory can be written to memory");
    Any { type_url: type_name.to_owned(), value, ..Any::default() }
}

#[cfg(test)]
mod tests {
    use protobuf::MessageFull;

    use super::*;

    #[test]
    fn figures_of_both_versions_are_read_back() {
        let one = v1::Metrics {
            memory: Some(v1::MemoryStat {
                usage: Some(v1::MemoryEntry { usage: 7, ..Default::default() }).into(),
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        assert_eq!(figures(&v1_any(&one)).unwrap().memory_usage, 7);
        let two = v2::Metrics {
            cpu: Some(v2::CPUStat { usage_usec: 3, ..Default::default() }).into(),
            io: Some(v2::IOStat {
                usage: vec![v2::IOEntry { major: 8, rbytes: 5, wios: 2, ..Default::default() }],
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        let read = figures(&v2_any(&two)).unwrap();
        assert_eq!(read.cpu_total_ns, 3000);
        let block = |operation: &str, value| BlockFigure {
            major: 8,
            minor: 0,
            operation: operation.to_owned(),
            value,
        };
        assert_eq!(read.block_bytes, [block("Read", 5), block("Write", 0)]);
        assert_eq!(read.block_operations, [block("Read", 0), block("Write", 2)]);
        assert_eq!(figures(&Any::default()), None);
    }

    #[test]
    fn type_names_are_those_of_the_messages() {
        assert_eq!(v1_any(&v1::Metrics::default()).type_url, v1::Metrics::descriptor().full_name());
        assert_eq!(v2_any(&v2::Metrics::default()).type_url, v2::Metrics::descriptor().full_name());
    }
}
