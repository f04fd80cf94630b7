//! What a container uses, in the shape in which engines expect it on this host.
//!
//! The guest always counts as cgroup version 2 does. Engines read by the version of the host's
//! cgroups, so on an older host the numbers are put under the older names. No part is ever missing:
//! some engines take that for granted.

mod legacy;
mod unified;

use kata_linux::cgroup;
use kata_sandbox::{ContainerStats, MemoryStats, MemoryUsage};
use kata_shim_api::{Any, metrics};

/// The metrics of a container, as version 2 where the host has nothing else, and as version 1
/// otherwise.
pub(crate) fn to_any(stats: &ContainerStats) -> Any {
    if cgroup::is_unified() {
        metrics::v2_any(&unified::metrics(stats))
    } else {
        metrics::v1_any(&legacy::metrics(stats))
    }
}

/// An entry of `memory.stat` under the first of `names` that there is; 0 if there is none.
fn entry(memory: &MemoryStats, names: &[&str]) -> u64 {
    names.iter().find_map(|name| memory.stat.get(*name)).copied().unwrap_or(0)
}

/// Swap alone. Our agent tells it beside memory.stat, and in the protocol's own place memory and
/// swap together; agents that tell no swap beside memory.stat have swap alone in that place.
fn swap(memory: &MemoryStats) -> MemoryUsage {
    match memory.stat.get("swap_usage") {
        Some(usage) => MemoryUsage {
            usage: *usage,
            limit: entry(memory, &["swap_limit"]),
            ..MemoryUsage::default()
        },
        None => memory.swap_usage,
    }
}

#[cfg(test)]
mod tests;
