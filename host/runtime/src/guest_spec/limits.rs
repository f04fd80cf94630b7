//! Limits of the spec that a guest can keep, and those that it cannot.

use std::collections::BTreeMap;

use oci_spec::runtime::{LinuxCpu, LinuxResources};

use super::SpecError;

/// Makes the limits of a container's spec, or those that it is given later, the guest's.
///
/// # Errors
///
/// Refuses limits that a guest could not keep, or would put on something else.
pub fn resources_for_guest(resources: &mut LinuxResources) -> Result<(), SpecError> {
    check_resources(resources)?;
    let ignored = take_out_version_1(resources);
    if !ignored.is_empty() {
        tracing::debug!("only version 1 of cgroups knows {}; ignored", ignored.join(", "));
    }
    Ok(())
}

/// Takes out what version 2 of cgroups, the guest's, has nothing for, and returns the names of what
/// was asked for. It is not refused, since runc ignores it on such hosts, too, and what users of
/// that know must go on working.
fn take_out_version_1(resources: &mut LinuxResources) -> Vec<&'static str> {
    let mut asked = Vec::new();
    if let Some(memory) = resources.memory_mut() {
        let is_set = |bytes: Option<i64>| bytes.is_some_and(|bytes| bytes != 0);
        asked.extend([
            ("memory.kernel", is_set(memory.kernel())),
            ("memory.kernelTCP", is_set(memory.kernel_tcp())),
            // Of 0, too: never to swap.
            ("memory.swappiness", memory.swappiness().is_some()),
            ("memory.disableOOMKiller", memory.disable_oom_killer().unwrap_or_default()),
        ]);
        memory.set_kernel(None).set_kernel_tcp(None);
        memory.set_swappiness(None).set_disable_oom_killer(None);
    }
    if let Some(io) = resources.block_io_mut() {
        asked.push(("blockIO.leafWeight", io.leaf_weight().is_some_and(|weight| weight != 0)));
        io.set_leaf_weight(None);
    }
    if let Some(network) = resources.network() {
        let has_priorities = network.priorities().as_ref().is_some_and(|all| !all.is_empty());
        asked.extend([
            ("network.classID", network.class_id().is_some_and(|class| class != 0)),
            ("network.priorities", has_priorities),
        ]);
        resources.set_network(None);
    }
    asked.into_iter().filter_map(|(name, is_asked)| is_asked.then_some(name)).collect()
}

fn check_resources(resources: &LinuxResources) -> Result<(), SpecError> {
    resources.cpu().as_ref().map_or(Ok(()), check_cpu)?;
    check_unified(resources)?;
    let Some(io) = resources.block_io() else { return Ok(()) };
    let weights =
        io.weight_device().iter().flatten().map(|one| (one.major(), one.minor(), "weightDevice"));
    let throttles = [
        (io.throttle_read_bps_device(), "throttleReadBpsDevice"),
        (io.throttle_write_bps_device(), "throttleWriteBpsDevice"),
        (io.throttle_read_iops_device(), "throttleReadIOPSDevice"),
        (io.throttle_write_iops_device(), "throttleWriteIOPSDevice"),
    ];
    let throttles = throttles.into_iter().flat_map(|(list, name)| {
        list.iter().flatten().map(move |one| (one.major(), one.minor(), name))
    });
    match weights.chain(throttles).next() {
        Some((major, minor, list)) => Err(SpecError::DiskLimit { major, minor, list }),
        None => Ok(()),
    }
}

/// Refuses what is no name of a file, and limits for disks, which are named by their numbers there
/// (cgroup-v2.rst, "IO").
fn check_unified(resources: &LinuxResources) -> Result<(), SpecError> {
    let files: BTreeMap<_, _> = resources.unified().iter().flatten().collect();
    for (file, value) in files {
        if file.contains('/') {
            return Err(SpecError::UnifiedName(file.clone()));
        }
        if file.starts_with("io.") && value.contains(':') {
            return Err(SpecError::UnifiedDiskLimit(file.clone()));
        }
    }
    Ok(())
}

/// 0 is what an engine writes that asks for nothing.
fn check_cpu(cpu: &LinuxCpu) -> Result<(), SpecError> {
    let asked = [
        ("burst", cpu.burst().is_some_and(|burst| burst != 0)),
        ("idle", cpu.idle().is_some_and(|idle| idle != 0)),
        ("realtimeRuntime", cpu.realtime_runtime().is_some_and(|runtime| runtime != 0)),
        ("realtimePeriod", cpu.realtime_period().is_some_and(|period| period != 0)),
    ];
    match asked.into_iter().find(|(_, is_asked)| *is_asked) {
        Some((name, _)) => Err(SpecError::CpuLimit(name)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(resources: &str) -> Result<LinuxResources, SpecError> {
        let mut resources = serde_json::from_str(resources).unwrap();
        resources_for_guest(&mut resources).map(|()| resources)
    }

    #[test]
    fn limits_of_the_hosts_disks_are_refused_and_a_weight_is_not() {
        let io = |io: &str| kept(&format!(r#"{{"blockIO":{io}}}"#)).map(drop);
        assert_eq!(io(r#"{"weight":500,"throttleReadBpsDevice":[]}"#), Ok(()));
        let limit = r#"{"throttleWriteIOPSDevice":[{"major":254,"minor":0,"rate":9}]}"#;
        let list = "throttleWriteIOPSDevice";
        assert_eq!(io(limit), Err(SpecError::DiskLimit { major: 254, minor: 0, list }));
        assert!(io(r#"{"weightDevice":[{"major":8,"minor":0,"weight":9}]}"#).is_err());

        let unified = |files: &str| kept(&format!(r#"{{"unified":{files}}}"#)).map(drop);
        assert_eq!(unified(r#"{"io.weight":"default 50","memory.high":"9"}"#), Ok(()));
        let refusal = SpecError::UnifiedDiskLimit("io.max".to_owned());
        assert_eq!(unified(r#"{"io.max":"8:0 rbps=9"}"#), Err(refusal));
        let refusal = SpecError::UnifiedName("./io.max".to_owned());
        assert_eq!(unified(r#"{"./io.max":"8:0 rbps=9"}"#), Err(refusal));
    }

    #[test]
    fn limits_of_version_1_of_cgroups_do_not_reach_the_guest() {
        let taken = |resources: &str| {
            let mut resources: LinuxResources = serde_json::from_str(resources).unwrap();
            let names = take_out_version_1(&mut resources);
            (names, serde_json::to_string(&resources).unwrap())
        };
        let all = r#"{"memory":{"limit":5,"kernel":1,"kernelTCP":2,"swappiness":60,"disableOOMKiller":true},
            "blockIO":{"weight":9,"leafWeight":10},
            "network":{"classID":7,"priorities":[{"name":"eth0","priority":3}]}}"#;
        let names = [
            "memory.kernel",
            "memory.kernelTCP",
            "memory.swappiness",
            "memory.disableOOMKiller",
            "blockIO.leafWeight",
            "network.classID",
            "network.priorities",
        ];
        let left = r#"{"memory":{"limit":5},"blockIO":{"weight":9}}"#.to_owned();
        assert_eq!(taken(all), (names.to_vec(), left));
        assert_eq!(taken(r#"{"memory":{"swappiness":0}}"#).0, ["memory.swappiness"]);
        // Engines write this and ask for nothing.
        let nothing = r#"{"memory":{"kernel":0,"disableOOMKiller":false},"network":{"classID":0}}"#;
        assert_eq!(taken(nothing), (Vec::new(), r#"{"memory":{}}"#.to_owned()));
        let never_swap = kept(r#"{"memory":{"swappiness":0}}"#).unwrap();
        assert_eq!(never_swap.memory().unwrap().swappiness(), None);
    }
}
