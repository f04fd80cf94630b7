//! What of a container becomes a disk of its VM: a root file system on a block device, and block
//! devices that it uses as such.

use std::fs;
use std::path::{Path, PathBuf};

use kata_hypervisor::{DiskSpec, Disks, LaterDisks};
use kata_sandbox::{DiskDevice, DiskRoot};
use kata_storage::{BlockRoot, RootfsMount};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Spec};

use crate::{ContainerRole, Runtime, RuntimeError, SpecError, spec_devices};

/// The disk with the root file system of a container that is alone.
const ROOT_DISK: &str = "root";

/// How many containers with root file systems on disks a pod has room for at a time, its pause
/// container among them.
const POD_ROOTS: usize = 8;

/// How many block devices the containers of a pod may use at a time.
pub(crate) const POD_DEVICES: usize = 4;

/// How many of a pod's disks are read-only, where its root file systems are writable ones. With a
/// driver whose places for disks are of either sort from the boot on, there are no more places than
/// its machine has interrupts for, so that these are taken off the writable ones.
const POD_READONLY: usize = 2;

/// The container's root file system, if it is on a device and the driver takes that as a disk: one
/// that takes them at boot only does so from a container that is alone. None where the
/// configuration wants it shared.
pub(crate) fn root(
    runtime: &Runtime,
    role: &ContainerRole,
    mounts: &[RootfsMount],
) -> Result<Option<DiskRoot>, RuntimeError> {
    let virtio_fs = runtime.config.virtio_fs();
    if virtio_fs.is_some_and(|keys| keys.disable_block_device_use) {
        return Ok(None);
    }
    let is_first = *role == ContainerRole::Single;
    match runtime.hypervisor().capabilities().disks {
        Disks::None => return Ok(None),
        Disks::AtBoot if !is_first => return Ok(None),
        Disks::AtBoot | Disks::Later => {}
    }
    let id = is_first.then(|| ROOT_DISK.to_owned());
    Ok(BlockRoot::of(mounts)?.map(|root| DiskRoot { root, id }))
}

pub(crate) fn at_boot(disk: DiskRoot) -> Option<DiskSpec> {
    let BlockRoot { source, readonly, .. } = disk.root;
    Some(DiskSpec { id: disk.id?, path: source, readonly })
}

/// The room that a sandbox needs for disks of containers that come after its boot: as its first
/// one's root file system is, those of the others are, too; which devices they will use nobody
/// knows.
pub(crate) fn later(
    takes: Disks,
    role: &ContainerRole,
    root: Option<&DiskRoot>,
    packs: bool,
) -> LaterDisks {
    let none = LaterDisks::default();
    if takes != Disks::Later {
        return none;
    }
    match (role, root) {
        (ContainerRole::Single, None) if packs => LaterDisks { readonly: 1, ..none },
        (ContainerRole::Single, _) => none,
        (_, Some(_)) => {
            LaterDisks { readonly: POD_READONLY, writable: POD_ROOTS + POD_DEVICES - POD_READONLY }
        }
        (_, None) if packs => LaterDisks { readonly: POD_ROOTS, writable: POD_DEVICES },
        (_, None) => LaterDisks { writable: POD_DEVICES, ..none },
    }
}

/// Whether block devices of a container's spec become disks. A driver that takes them at boot only
/// does so from a container that is alone.
pub(crate) fn takes_devices(runtime: &Runtime, role: &ContainerRole) -> bool {
    match runtime.hypervisor().capabilities().disks {
        Disks::None => false,
        Disks::AtBoot => *role == ContainerRole::Single,
        Disks::Later => true,
    }
}

/// The disk that the VM boots with for a device, if it is there at boot.
pub(crate) fn device_at_boot(device: DiskDevice) -> Option<DiskSpec> {
    let DiskDevice { id, path, readonly, .. } = device;
    Some(DiskSpec { id: id?, path, readonly })
}

/// The block devices of the spec, where they become disks.
pub(crate) fn devices(
    runtime: &Runtime,
    role: &ContainerRole,
    spec: &Spec,
) -> Result<Vec<DiskDevice>, RuntimeError> {
    if !takes_devices(runtime, role) {
        return Ok(Vec::new());
    }
    let asked_for = spec.linux().as_ref().map(spec_devices::asked_for).unwrap_or_default();
    let blocks = asked_for.iter().filter(|device| device.typ() == LinuxDeviceType::B);
    blocks
        .enumerate()
        .map(|(number, device)| {
            let is_alone = *role == ContainerRole::Single;
            Ok(DiskDevice {
                id: is_alone.then(|| format!("device{number}")),
                path: host_node(device)?,
                readonly: !may_write(spec, device),
                container_path: device.path().clone(),
            })
        })
        .collect()
}

/// The host's node of a block device, which is looked for by its number: a path of the spec's is
/// the container's.
fn host_node(device: &LinuxDevice) -> Result<PathBuf, SpecError> {
    let (major, minor) = (device.major(), device.minor());
    let event = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent"));
    let name = event.ok().and_then(|event| {
        event.lines().find_map(|line| line.strip_prefix("DEVNAME=")).map(str::to_owned)
    });
    let node = name.map(|name| Path::new("/dev").join(name));
    let missing = || SpecError::NoDevice { path: device.path().clone(), major, minor };
    node.filter(|node| spec_devices::is_at(device, node)).ok_or_else(missing)
}

/// Whether a rule of the spec lets the container write to the device; without any rule for it
/// nothing does.
fn may_write(spec: &Spec, device: &LinuxDevice) -> bool {
    let linux = spec.linux().as_ref();
    let resources = linux.and_then(|linux| linux.resources().as_ref());
    let rules = resources.and_then(|resources| resources.devices().as_ref());
    rules.into_iter().flatten().any(|rule| {
        let is_for_it =
            rule.typ().is_none_or(|typ| matches!(typ, LinuxDeviceType::A | LinuxDeviceType::B))
                && rule.major().is_none_or(|major| major == device.major())
                && rule.minor().is_none_or(|minor| minor == device.minor());
        let writes = rule.access().as_deref().is_none_or(|access| access.contains('w'));
        rule.allow() && is_for_it && writes
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(rules: &str) -> (Spec, LinuxDevice) {
        let text = format!(
            r#"{{"ociVersion":"1.0.2","linux":{{"devices":[{{"path":"/dev/x","type":"b","major":7,"minor":1}}],
                "resources":{{"devices":[{rules}]}}}}}}"#
        );
        let spec: Spec = serde_json::from_str(&text).unwrap();
        let device = spec.linux().as_ref().unwrap().devices().as_ref().unwrap()[0].clone();
        (spec, device)
    }

    #[test]
    fn pods_have_room_for_disks_where_the_driver_takes_them_later() {
        let root = DiskRoot {
            root: BlockRoot {
                source: "/dev/dm-1".into(),
                fstype: "ext4".into(),
                options: Vec::new(),
                readonly: false,
            },
            id: None,
        };
        let room = |takes, role, root, packs| {
            let LaterDisks { readonly, writable } = later(takes, &role, root, packs);
            (readonly, writable)
        };
        let (single, pod) = (ContainerRole::Single, ContainerRole::PodSandbox);
        assert_eq!(room(Disks::AtBoot, pod.clone(), Some(&root), false), (0, 0));
        assert_eq!(room(Disks::Later, single.clone(), Some(&root), false), (0, 0));
        assert_eq!(room(Disks::Later, single.clone(), None, false), (0, 0));
        assert_eq!(room(Disks::Later, single, None, true), (1, 0));
        assert_eq!(room(Disks::Later, pod.clone(), None, false), (0, 4));
        assert_eq!(room(Disks::Later, pod.clone(), None, true), (8, 4));
        // Some of a pod's devices may be read-only (`volumeDevices` with `readOnly`).
        assert_eq!(room(Disks::Later, pod, Some(&root), false), (2, 10));
    }

    #[test]
    fn device_is_written_to_only_as_the_rules_say() {
        for (rules, expected) in [
            ("", false),
            (r#"{"allow":false,"access":"rwm"}"#, false),
            (r#"{"allow":true,"type":"b","major":7,"minor":1,"access":"r"}"#, false),
            (r#"{"allow":true,"type":"b","major":7,"minor":2,"access":"rwm"}"#, false),
            (r#"{"allow":true,"type":"b","major":7,"minor":1,"access":"rwm"}"#, true),
            (r#"{"allow":true,"access":"rwm"}"#, true),
        ] {
            let (spec, device) = spec(rules);
            assert_eq!(may_write(&spec, &device), expected, "{rules}");
        }
    }

    #[test]
    fn device_that_is_not_there_is_named() {
        let (_, mut device) = spec("");
        device.set_major(4093);
        let error = host_node(&device).unwrap_err().to_string();
        assert!(error.contains("/dev/x") && error.contains("4093:1"), "{error}");
    }
}
