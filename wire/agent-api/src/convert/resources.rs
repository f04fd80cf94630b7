//! Cgroup limits.

use oci_spec::runtime as spec;

use super::{ConvertError, list_from_wire, name, number, or_empty, refuse, unless_empty};
use crate::oci;

/// The wire's "every number" in a rule about devices.
const EVERY_NUMBER: i64 = -1;

/// Limits as the agent reads them, for a container or for an update of one.
///
/// # Errors
///
/// When the limits say what the protocol cannot carry, e.g. `rdma`.
pub fn resources_to_wire(
    resources: &spec::LinuxResources,
) -> Result<oci::LinuxResources, ConvertError> {
    refuse("linux.resources.rdma", resources.rdma().as_ref().is_some_and(|r| !r.is_empty()))?;
    Ok(oci::LinuxResources {
        Devices: super::list_to_wire(resources.devices(), device_rule_to_wire)?,
        Memory: resources.memory().as_ref().map(memory_to_wire).transpose()?.into(),
        CPU: resources.cpu().as_ref().map(cpu_to_wire).transpose()?.into(),
        Pids: resources
            .pids()
            .map(|pids| oci::LinuxPids { Limit: pids.limit(), ..Default::default() })
            .into(),
        BlockIO: resources.block_io().as_ref().map(block_io_to_wire).into(),
        HugepageLimits: resources.hugepage_limits().iter().flatten().map(huge_to_wire).collect(),
        Network: resources.network().as_ref().map(network_to_wire).into(),
        Unified: resources.unified().clone().unwrap_or_default(),
        ..Default::default()
    })
}

/// The limits that the runtime sent.
///
/// # Errors
///
/// When a name is not one of the specification's or a number does not fit.
pub fn resources_from_wire(
    wire: oci::LinuxResources,
) -> Result<spec::LinuxResources, ConvertError> {
    let mut resources = spec::LinuxResources::default();
    resources
        .set_devices(list_from_wire(wire.Devices, device_rule_from_wire)?)
        .set_memory(wire.Memory.as_ref().map(memory_from_wire))
        .set_cpu(wire.CPU.into_option().map(cpu_from_wire))
        .set_pids(wire.Pids.as_ref().map(|pids| {
            let mut limit = spec::LinuxPids::default();
            limit.set_limit(pids.Limit);
            limit
        }))
        .set_block_io(wire.BlockIO.into_option().map(block_io_from_wire).transpose()?)
        .set_hugepage_limits(list_from_wire(wire.HugepageLimits, |limit| {
            Ok(huge_from_wire(limit))
        })?)
        .set_network(wire.Network.into_option().map(network_from_wire).transpose()?)
        .set_unified(Some(wire.Unified).filter(|files| !files.is_empty()));
    Ok(resources)
}

fn device_rule_to_wire(
    rule: &spec::LinuxDeviceCgroup,
) -> Result<oci::LinuxDeviceCgroup, ConvertError> {
    // Read back as "every number", it would allow more than was meant.
    refuse("a linux.resources.devices[].major of 0", rule.major() == Some(0))?;
    Ok(oci::LinuxDeviceCgroup {
        Allow: rule.allow(),
        Type: rule.typ().map_or_else(String::new, |typ| typ.as_str().to_owned()),
        Major: rule.major().unwrap_or(EVERY_NUMBER),
        Minor: rule.minor().unwrap_or(EVERY_NUMBER),
        Access: or_empty(rule.access()),
        ..Default::default()
    })
}

/// Some runtimes write 0 for "every number". No device has the major number 0, so there it is
/// read as such, for the minor number with it; a minor number 0 of a given major is a device.
fn device_rule_from_wire(
    wire: oci::LinuxDeviceCgroup,
) -> Result<spec::LinuxDeviceCgroup, ConvertError> {
    let typ = unless_empty(wire.Type)
        .map(|text| name("linux.resources.devices[].type", &text))
        .transpose()?;
    let given = |number: i64| (number >= 0).then_some(number);
    let major = given(wire.Major).and_then(unless_empty);
    let minor = if wire.Major == 0 { unless_empty(wire.Minor) } else { Some(wire.Minor) };
    let mut rule = spec::LinuxDeviceCgroup::default();
    rule.set_allow(wire.Allow)
        .set_typ(typ)
        .set_major(major)
        .set_minor(minor.and_then(given))
        .set_access(unless_empty(wire.Access));
    Ok(rule)
}

fn memory_to_wire(memory: &spec::LinuxMemory) -> Result<oci::LinuxMemory, ConvertError> {
    refuse("a linux.resources.memory.swappiness of 0", memory.swappiness() == Some(0))?;
    refuse("linux.resources.memory.useHierarchy", memory.use_hierarchy().unwrap_or_default())?;
    refuse(
        "linux.resources.memory.checkBeforeUpdate",
        memory.check_before_update().unwrap_or_default(),
    )?;
    Ok(oci::LinuxMemory {
        Limit: memory.limit().unwrap_or_default(),
        Reservation: memory.reservation().unwrap_or_default(),
        Swap: memory.swap().unwrap_or_default(),
        Kernel: memory.kernel().unwrap_or_default(),
        KernelTCP: memory.kernel_tcp().unwrap_or_default(),
        Swappiness: memory.swappiness().unwrap_or_default(),
        DisableOOMKiller: memory.disable_oom_killer().unwrap_or_default(),
        ..Default::default()
    })
}

fn memory_from_wire(wire: &oci::LinuxMemory) -> spec::LinuxMemory {
    let mut memory = spec::LinuxMemory::default();
    memory
        .set_limit(unless_empty(wire.Limit))
        .set_reservation(unless_empty(wire.Reservation))
        .set_swap(unless_empty(wire.Swap))
        .set_kernel(unless_empty(wire.Kernel))
        .set_kernel_tcp(unless_empty(wire.KernelTCP))
        .set_swappiness(unless_empty(wire.Swappiness))
        .set_disable_oom_killer(unless_empty(wire.DisableOOMKiller));
    memory
}

fn cpu_to_wire(cpu: &spec::LinuxCpu) -> Result<oci::LinuxCPU, ConvertError> {
    refuse("linux.resources.cpu.idle", cpu.idle().unwrap_or_default() != 0)?;
    refuse("linux.resources.cpu.burst", cpu.burst().unwrap_or_default() != 0)?;
    Ok(oci::LinuxCPU {
        Shares: cpu.shares().unwrap_or_default(),
        Quota: cpu.quota().unwrap_or_default(),
        Period: cpu.period().unwrap_or_default(),
        RealtimeRuntime: cpu.realtime_runtime().unwrap_or_default(),
        RealtimePeriod: cpu.realtime_period().unwrap_or_default(),
        Cpus: or_empty(cpu.cpus()),
        Mems: or_empty(cpu.mems()),
        ..Default::default()
    })
}

fn cpu_from_wire(wire: oci::LinuxCPU) -> spec::LinuxCpu {
    let mut cpu = spec::LinuxCpu::default();
    cpu.set_shares(unless_empty(wire.Shares))
        .set_quota(unless_empty(wire.Quota))
        .set_period(unless_empty(wire.Period))
        .set_realtime_runtime(unless_empty(wire.RealtimeRuntime))
        .set_realtime_period(unless_empty(wire.RealtimePeriod))
        .set_cpus(unless_empty(wire.Cpus))
        .set_mems(unless_empty(wire.Mems));
    cpu
}

fn block_io_to_wire(block_io: &spec::LinuxBlockIo) -> oci::LinuxBlockIO {
    let throttles = |list: &Option<Vec<_>>| list.iter().flatten().map(throttle_to_wire).collect();
    oci::LinuxBlockIO {
        Weight: block_io.weight().unwrap_or_default().into(),
        LeafWeight: block_io.leaf_weight().unwrap_or_default().into(),
        WeightDevice: block_io.weight_device().iter().flatten().map(weight_to_wire).collect(),
        ThrottleReadBpsDevice: throttles(block_io.throttle_read_bps_device()),
        ThrottleWriteBpsDevice: throttles(block_io.throttle_write_bps_device()),
        ThrottleReadIOPSDevice: throttles(block_io.throttle_read_iops_device()),
        ThrottleWriteIOPSDevice: throttles(block_io.throttle_write_iops_device()),
        ..Default::default()
    }
}

fn block_io_from_wire(wire: oci::LinuxBlockIO) -> Result<spec::LinuxBlockIo, ConvertError> {
    let weight = |weight: u32| -> Result<Option<u16>, _> {
        Ok(unless_empty(number("linux.resources.blockIO.weight", weight)?))
    };
    let throttles = |list| list_from_wire(list, |device| Ok(throttle_from_wire(&device)));
    let mut block_io = spec::LinuxBlockIo::default();
    block_io
        .set_weight(weight(wire.Weight)?)
        .set_leaf_weight(weight(wire.LeafWeight)?)
        .set_weight_device(list_from_wire(wire.WeightDevice, |device| weight_from_wire(&device))?)
        .set_throttle_read_bps_device(throttles(wire.ThrottleReadBpsDevice)?)
        .set_throttle_write_bps_device(throttles(wire.ThrottleWriteBpsDevice)?)
        .set_throttle_read_iops_device(throttles(wire.ThrottleReadIOPSDevice)?)
        .set_throttle_write_iops_device(throttles(wire.ThrottleWriteIOPSDevice)?);
    Ok(block_io)
}

fn weight_to_wire(device: &spec::LinuxWeightDevice) -> oci::LinuxWeightDevice {
    oci::LinuxWeightDevice {
        Major: device.major(),
        Minor: device.minor(),
        Weight: device.weight().unwrap_or_default().into(),
        LeafWeight: device.leaf_weight().unwrap_or_default().into(),
        ..Default::default()
    }
}

fn weight_from_wire(
    wire: &oci::LinuxWeightDevice,
) -> Result<spec::LinuxWeightDevice, ConvertError> {
    let field = "linux.resources.blockIO.weightDevice[]";
    let mut device = spec::LinuxWeightDeviceBuilder::default().major(wire.Major).minor(wire.Minor);
    if wire.Weight != 0 {
        device = device.weight(number::<_, u16>(field, wire.Weight)?);
    }
    if wire.LeafWeight != 0 {
        device = device.leaf_weight(number::<_, u16>(field, wire.LeafWeight)?);
    }
    Ok(device.build().expect("every field of a device weight has a default"))
}

fn throttle_to_wire(device: &spec::LinuxThrottleDevice) -> oci::LinuxThrottleDevice {
    oci::LinuxThrottleDevice {
        Major: device.major(),
        Minor: device.minor(),
        Rate: device.rate(),
        ..Default::default()
    }
}

fn throttle_from_wire(wire: &oci::LinuxThrottleDevice) -> spec::LinuxThrottleDevice {
    spec::LinuxThrottleDeviceBuilder::default()
        .major(wire.Major)
        .minor(wire.Minor)
        .rate(wire.Rate)
        .build()
        .expect("every field of a device limit has a default")
}

/// The specification's number is unsigned, its Rust type is not: the bits are kept.
fn huge_to_wire(limit: &spec::LinuxHugepageLimit) -> oci::LinuxHugepageLimit {
    oci::LinuxHugepageLimit {
        Pagesize: limit.page_size().clone(),
        Limit: limit.limit().cast_unsigned(),
        ..Default::default()
    }
}

fn huge_from_wire(wire: oci::LinuxHugepageLimit) -> spec::LinuxHugepageLimit {
    let mut limit = spec::LinuxHugepageLimit::default();
    limit.set_page_size(wire.Pagesize).set_limit(wire.Limit.cast_signed());
    limit
}

fn network_to_wire(network: &spec::LinuxNetwork) -> oci::LinuxNetwork {
    let priority = |priority: &spec::LinuxInterfacePriority| oci::LinuxInterfacePriority {
        Name: priority.name().clone(),
        Priority: priority.priority(),
        ..Default::default()
    };
    oci::LinuxNetwork {
        ClassID: network.class_id().unwrap_or_default(),
        Priorities: network.priorities().iter().flatten().map(priority).collect(),
        ..Default::default()
    }
}

fn network_from_wire(wire: oci::LinuxNetwork) -> Result<spec::LinuxNetwork, ConvertError> {
    let priorities = list_from_wire(wire.Priorities, |wire| {
        let mut priority = spec::LinuxInterfacePriority::default();
        priority.set_name(wire.Name).set_priority(wire.Priority);
        Ok(priority)
    })?;
    let mut network = spec::LinuxNetwork::default();
    network.set_class_id(unless_empty(wire.ClassID)).set_priorities(priorities);
    Ok(network)
}
