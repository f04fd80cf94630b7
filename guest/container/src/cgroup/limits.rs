//! What the specification's resources, which speak cgroup version 1, mean in version 2's files.

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};

/// A value for a file of the group.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) file: String,
    pub(super) value: String,
    /// Whether the file may be missing: the value asks for no limit, or then there is nothing to be
    /// limited.
    pub(super) optional: bool,
}

fn setting(file: &str, value: impl Into<String>) -> Setting {
    let value = value.into();
    let optional = value == "max";
    Setting { file: file.to_owned(), value, optional }
}

/// Everything that `resources` asks for, in the order in which it can be written. `cpu_max` is what
/// the group's file of that name says now, nothing if there is none.
pub(super) fn settings(resources: &LinuxResources, cpu_max: &str) -> Vec<Setting> {
    let mut settings = Vec::new();
    if let Some(memory) = resources.memory() {
        memory_settings(memory, &mut settings);
    }
    if let Some(cpu) = resources.cpu() {
        cpu_settings(cpu, cpu_max, &mut settings);
    }
    if let Some(pids) = resources.pids() {
        match pids.limit() {
            0 => {}
            limit if limit < 0 => settings.push(setting("pids.max", "max")),
            limit => settings.push(setting("pids.max", limit.to_string())),
        }
    }
    if let Some(io) = resources.block_io() {
        io_settings(io, &mut settings);
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        let file = format!("hugetlb.{}.max", limit.page_size());
        let mut setting = setting(&file, limit.limit().to_string());
        // Engines name every size that their host has. Of one that the guest has not, nobody can
        // use any.
        setting.optional = true;
        settings.push(setting);
    }
    settings.extend(resources.unified().iter().flatten().map(|(file, value)| {
        // As above: no swap, and so none to limit.
        Setting { optional: file == "memory.swap.max", ..setting(file, value) }
    }));
    settings
}

/// The specification's swap is memory and swap together; version 2 counts swap alone. 0 is what an
/// unset number looks like on the wire.
fn memory_settings(memory: &LinuxMemory, settings: &mut Vec<Setting>) {
    let limit = memory.limit().filter(|limit| *limit != 0);
    match (memory.swap().filter(|swap| *swap != 0), limit) {
        (Some(swap), _) if swap < 0 => settings.push(setting("memory.swap.max", "max")),
        (Some(swap), Some(limit)) if limit > 0 => {
            let mut alone =
                setting("memory.swap.max", swap.saturating_sub(limit).max(0).to_string());
            // A kernel without swap accounting has no swap to give either.
            alone.optional = true;
            settings.push(alone);
        }
        _ => {}
    }
    if let Some(reservation) = memory.reservation().filter(|reservation| *reservation != 0) {
        settings.push(setting("memory.low", or_max(reservation)));
    }
    if let Some(limit) = limit {
        settings.push(setting("memory.max", or_max(limit)));
    }
}

fn or_max(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

fn cpu_settings(cpu: &LinuxCpu, cpu_max: &str, settings: &mut Vec<Setting>) {
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        settings.push(setting("cpu.weight", weight_of_shares(shares).to_string()));
    }
    let quota = cpu.quota().filter(|quota| *quota != 0).map(or_max);
    let period = cpu.period().filter(|period| *period != 0);
    match (quota, period) {
        (Some(quota), Some(period)) => {
            settings.push(setting("cpu.max", format!("{quota} {period}")));
        }
        // The kernel keeps the period.
        (Some(quota), None) => settings.push(setting("cpu.max", quota)),
        // It takes no period alone.
        (None, Some(period)) => {
            let quota = cpu_max.split_ascii_whitespace().next().unwrap_or("max");
            settings.push(setting("cpu.max", format!("{quota} {period}")));
        }
        (None, None) => {}
    }
    for (file, list) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(list) = list.as_deref().filter(|list| !list.is_empty()) {
            settings.push(setting(file, list));
        }
    }
}

/// Maps shares 2..=262144 onto weights 1..=10000 in a straight line, as other runtimes do.
fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn io_settings(io: &LinuxBlockIo, settings: &mut Vec<Setting>) {
    if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
        let weight = 1 + (u64::from(weight).clamp(10, 1000) - 10) * 9999 / 990;
        settings.push(setting("io.weight", format!("default {weight}")));
    }
    for device in io.weight_device().iter().flatten() {
        if let Some(weight) = device.weight().filter(|weight| *weight != 0) {
            let weight = 1 + (u64::from(weight).clamp(10, 1000) - 10) * 9999 / 990;
            let value = format!("{}:{} {weight}", device.major(), device.minor());
            settings.push(setting("io.weight", value));
        }
    }
    let throttles: [(&str, &Option<Vec<LinuxThrottleDevice>>); 4] = [
        ("rbps", io.throttle_read_bps_device()),
        ("wbps", io.throttle_write_bps_device()),
        ("riops", io.throttle_read_iops_device()),
        ("wiops", io.throttle_write_iops_device()),
    ];
    for (key, devices) in throttles {
        for device in devices.iter().flatten() {
            let rate = match device.rate() {
                0 => "max".to_owned(),
                rate => rate.to_string(),
            };
            let value = format!("{}:{} {key}={rate}", device.major(), device.minor());
            settings.push(setting("io.max", value));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn settings_of(resources: serde_json::Value) -> Vec<(String, String)> {
        let resources: LinuxResources = serde_json::from_value(resources).unwrap();
        let settings = settings(&resources, "70000 20000\n");
        settings.into_iter().map(|setting| (setting.file, setting.value)).collect()
    }

    fn pair(file: &str, value: &str) -> (String, String) {
        (file.to_owned(), value.to_owned())
    }

    #[test]
    fn settings_memory_swap_is_counted_alone() {
        let settings = settings_of(json!({"memory": {"limit": 1000, "swap": 1500}}));
        assert_eq!(settings, [pair("memory.swap.max", "500"), pair("memory.max", "1000")]);
        let settings = settings_of(json!({"memory": {"limit": -1, "swap": -1}}));
        assert_eq!(settings, [pair("memory.swap.max", "max"), pair("memory.max", "max")]);
        assert_eq!(settings_of(json!({"memory": {"limit": 0, "swap": 0}})), []);
    }

    #[test]
    fn settings_cpu_quota_and_period_share_a_file() {
        let cpu = |cpu| settings_of(json!({"cpu": cpu}));
        assert_eq!(
            cpu(json!({"quota": 50000, "period": 100_000})),
            [pair("cpu.max", "50000 100000")]
        );
        // What is not named stays as it is.
        assert_eq!(cpu(json!({"quota": 50000})), [pair("cpu.max", "50000")]);
        assert_eq!(cpu(json!({"quota": -1, "period": 0})), [pair("cpu.max", "max")]);
        assert_eq!(cpu(json!({"period": 40000})), [pair("cpu.max", "70000 40000")]);
        assert_eq!(cpu(json!({"quota": 0, "period": 0})), []);
        assert_eq!(cpu(json!({"shares": 1024})), [pair("cpu.weight", "39")]);
        assert_eq!(cpu(json!({"cpus": "0-1", "mems": ""})), [pair("cpuset.cpus", "0-1")]);
    }

    #[test]
    fn settings_pids_and_io() {
        assert_eq!(settings_of(json!({"pids": {"limit": -1}})), [pair("pids.max", "max")]);
        assert_eq!(settings_of(json!({"pids": {"limit": 7}})), [pair("pids.max", "7")]);
        let io = json!({"blockIO": {"weight": 500,
            "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1024}]}});
        assert_eq!(
            settings_of(io),
            [pair("io.weight", "default 4950"), pair("io.max", "8:0 rbps=1024")]
        );
    }

    #[test]
    fn what_the_guest_has_not_needs_no_limit() {
        let all = json!({
            "hugepageLimits": [{"pageSize": "16GB", "limit": 0}],
            "unified": {"memory.swap.max": "0", "memory.high": "900"},
        });
        let all: LinuxResources = serde_json::from_value(all).unwrap();
        let mut told: Vec<_> =
            settings(&all, "").into_iter().map(|one| (one.file, one.value, one.optional)).collect();
        told.sort();
        let set = |file: &str, value: &str, optional| (file.to_owned(), value.to_owned(), optional);
        let expected = [
            set("hugetlb.16GB.max", "0", true),
            set("memory.high", "900", false),
            set("memory.swap.max", "0", true),
        ];
        assert_eq!(told, expected);
    }

    proptest! {
        #[test]
        fn weight_is_in_the_kernels_range_and_monotonic(a: u64, b: u64) {
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!((1..=10_000).contains(&weight_of_shares(a)));
            prop_assert!(weight_of_shares(low) <= weight_of_shares(high));
        }
    }
}
