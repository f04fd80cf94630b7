//! What is special to Linux, beside resources and the system call filter.

use std::path::PathBuf;

use oci_spec::runtime as spec;

use super::resources::{resources_from_wire, resources_to_wire};
use super::seccomp::{seccomp_from_wire, seccomp_to_wire};
use super::{
    ConvertError, bad_value, list_from_wire, list_to_wire, name, optional_path_to_wire, or_empty,
    path_from_wire, path_to_wire, refuse, unless_empty,
};
use crate::oci;

/// What the specification leaves to the runtime when a device has no `fileMode`. It is sent,
/// because agents take a zero literally.
const DEFAULT_DEVICE_MODE: u32 = 0o666;

pub(super) fn linux_to_wire(linux: &spec::Linux) -> Result<oci::Linux, ConvertError> {
    refuse("linux.netDevices", linux.net_devices().as_ref().is_some_and(|d| !d.is_empty()))?;
    refuse("linux.memoryPolicy", linux.memory_policy().is_some())?;
    refuse("linux.personality", linux.personality().is_some())?;
    refuse("linux.timeOffsets", linux.time_offsets().as_ref().is_some_and(|t| !t.is_empty()))?;
    let id_mappings = |mappings: &Option<Vec<_>>| {
        mappings.iter().flatten().map(id_mapping_to_wire).collect::<Vec<_>>()
    };
    Ok(oci::Linux {
        UIDMappings: id_mappings(linux.uid_mappings()),
        GIDMappings: id_mappings(linux.gid_mappings()),
        Sysctl: or_empty(linux.sysctl()),
        Resources: linux.resources().as_ref().map(resources_to_wire).transpose()?.into(),
        CgroupsPath: optional_path_to_wire("linux.cgroupsPath", linux.cgroups_path().as_ref())?,
        Namespaces: list_to_wire(linux.namespaces(), namespace_to_wire)?,
        Devices: list_to_wire(linux.devices(), device_to_wire)?,
        Seccomp: linux.seccomp().as_ref().map(seccomp_to_wire).transpose()?.into(),
        RootfsPropagation: or_empty(linux.rootfs_propagation()),
        MaskedPaths: or_empty(linux.masked_paths()),
        ReadonlyPaths: or_empty(linux.readonly_paths()),
        MountLabel: or_empty(linux.mount_label()),
        IntelRdt: linux.intel_rdt().as_ref().map(rdt_to_wire).transpose()?.into(),
        ..Default::default()
    })
}

pub(super) fn linux_from_wire(wire: oci::Linux) -> Result<spec::Linux, ConvertError> {
    let id_mappings = |mappings| list_from_wire(mappings, |m| Ok(id_mapping_from_wire(&m)));
    // Every field is set: the type's own default has namespaces and hidden paths.
    let mut linux = spec::Linux::default();
    linux
        .set_uid_mappings(id_mappings(wire.UIDMappings)?)
        .set_gid_mappings(id_mappings(wire.GIDMappings)?)
        .set_sysctl(unless_empty(wire.Sysctl))
        .set_resources(wire.Resources.into_option().map(resources_from_wire).transpose()?)
        .set_cgroups_path(path_from_wire(wire.CgroupsPath))
        .set_namespaces(list_from_wire(wire.Namespaces, namespace_from_wire)?)
        .set_devices(list_from_wire(wire.Devices, |device| device_from_wire(&device))?)
        .set_seccomp(wire.Seccomp.into_option().map(seccomp_from_wire).transpose()?)
        .set_rootfs_propagation(unless_empty(wire.RootfsPropagation))
        .set_masked_paths(unless_empty(wire.MaskedPaths))
        .set_readonly_paths(unless_empty(wire.ReadonlyPaths))
        .set_mount_label(unless_empty(wire.MountLabel))
        .set_intel_rdt(wire.IntelRdt.into_option().map(rdt_from_wire));
    Ok(linux)
}

fn id_mapping_to_wire(mapping: &spec::LinuxIdMapping) -> oci::LinuxIDMapping {
    oci::LinuxIDMapping {
        HostID: mapping.host_id(),
        ContainerID: mapping.container_id(),
        Size: mapping.size(),
        ..Default::default()
    }
}

fn id_mapping_from_wire(wire: &oci::LinuxIDMapping) -> spec::LinuxIdMapping {
    spec::LinuxIdMappingBuilder::default()
        .host_id(wire.HostID)
        .container_id(wire.ContainerID)
        .size(wire.Size)
        .build()
        .expect("every field of a mapping has a default")
}

fn namespace_to_wire(
    namespace: &spec::LinuxNamespace,
) -> Result<oci::LinuxNamespace, ConvertError> {
    // Not the type's own text, which says `mnt` and `net` as /proc/<pid>/ns does.
    let name = match namespace.typ() {
        spec::LinuxNamespaceType::Mount => "mount",
        spec::LinuxNamespaceType::Cgroup => "cgroup",
        spec::LinuxNamespaceType::Uts => "uts",
        spec::LinuxNamespaceType::Ipc => "ipc",
        spec::LinuxNamespaceType::User => "user",
        spec::LinuxNamespaceType::Pid => "pid",
        spec::LinuxNamespaceType::Network => "network",
        spec::LinuxNamespaceType::Time => "time",
    };
    Ok(oci::LinuxNamespace {
        Type: name.to_owned(),
        Path: optional_path_to_wire("linux.namespaces[].path", namespace.path().as_ref())?,
        ..Default::default()
    })
}

/// Knows `mnt` and `net` too, which some runtimes send.
fn namespace_from_wire(wire: oci::LinuxNamespace) -> Result<spec::LinuxNamespace, ConvertError> {
    let typ = spec::LinuxNamespaceType::try_from(wire.Type.as_str())
        .map_err(|_| bad_value("linux.namespaces[].type", &wire.Type))?;
    let mut namespace = spec::LinuxNamespace::default();
    namespace.set_typ(typ).set_path(path_from_wire(wire.Path));
    Ok(namespace)
}

fn device_to_wire(device: &spec::LinuxDevice) -> Result<oci::LinuxDevice, ConvertError> {
    refuse("a linux.devices[].fileMode of 0", device.file_mode() == Some(0))?;
    Ok(oci::LinuxDevice {
        Path: path_to_wire("linux.devices[].path", device.path())?,
        Type: device.typ().as_str().to_owned(),
        Major: device.major(),
        Minor: device.minor(),
        FileMode: device.file_mode().unwrap_or(DEFAULT_DEVICE_MODE),
        UID: device.uid().unwrap_or_default(),
        GID: device.gid().unwrap_or_default(),
        ..Default::default()
    })
}

fn device_from_wire(wire: &oci::LinuxDevice) -> Result<spec::LinuxDevice, ConvertError> {
    let mut device = spec::LinuxDevice::default();
    device
        .set_path(PathBuf::from(&wire.Path))
        .set_typ(name("linux.devices[].type", &wire.Type)?)
        .set_major(wire.Major)
        .set_minor(wire.Minor)
        .set_file_mode(Some(unless_empty(wire.FileMode).unwrap_or(DEFAULT_DEVICE_MODE)))
        .set_uid(unless_empty(wire.UID))
        .set_gid(unless_empty(wire.GID));
    Ok(device)
}

fn rdt_to_wire(rdt: &spec::LinuxIntelRdt) -> Result<oci::LinuxIntelRdt, ConvertError> {
    refuse("linux.intelRdt.closID", rdt.clos_id().is_some())?;
    refuse("linux.intelRdt.schemata", rdt.schemata().as_ref().is_some_and(|s| !s.is_empty()))?;
    refuse("linux.intelRdt.memBwSchema", rdt.mem_bw_schema().is_some())?;
    refuse("linux.intelRdt.enableCMT", rdt.enable_cmt().unwrap_or_default())?;
    refuse("linux.intelRdt.enableMBM", rdt.enable_mbm().unwrap_or_default())?;
    refuse("linux.intelRdt.enableMonitoring", rdt.enable_monitoring().unwrap_or_default())?;
    Ok(oci::LinuxIntelRdt { L3CacheSchema: or_empty(rdt.l3_cache_schema()), ..Default::default() })
}

fn rdt_from_wire(wire: oci::LinuxIntelRdt) -> spec::LinuxIntelRdt {
    let mut rdt = spec::LinuxIntelRdt::default();
    rdt.set_l3_cache_schema(unless_empty(wire.L3CacheSchema));
    rdt
}
