//! Devices that the host gives to one container.

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use kata_agent_api::agent::Device;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, Spec};
use rustix::fs::{major, minor};
use ttrpc::Code;

use crate::disk::{self, Disk};
use crate::status::{Tell, invalid, refuse};

/// A disk's number on the host, and here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Numbers {
    host: (i64, i64),
    guest: (i64, i64),
}

/// Waits for each device, and puts its number in this guest in place of the one on the host: in the
/// container's device node, and in the rules that let it use that.
pub(crate) async fn settle(spec: &mut Spec, devices: &[Device]) -> ttrpc::Result<()> {
    let mut numbers = Vec::new();
    for device in devices {
        if !disk::DRIVERS.contains(&device.type_.as_str()) {
            let text =
                format!("there is no device driver {:?}; this agent has disks only", device.type_);
            return Err(invalid(text));
        }
        let source = if device.vm_path.is_empty() { &device.id } else { &device.vm_path };
        let disk = Disk::parse(&device.type_, source)?;
        disk.arrival().await?;
        let metadata = disk.node().and_then(std::fs::metadata).map_err(Tell::tell)?;
        if !metadata.file_type().is_block_device() {
            return Err(refuse(
                Code::INTERNAL,
                format!("the node of the disk {source:?} is no block device"),
            ));
        }
        let guest = (i64::from(major(metadata.rdev())), i64::from(minor(metadata.rdev())));
        let host = node_of(spec, &device.container_path, guest).ok_or_else(|| {
            invalid(format!("the spec has no block device {:?}", device.container_path))
        })?;
        numbers.push(Numbers { host, guest });
    }
    renumber_rules(spec, &numbers);
    Ok(())
}

/// Gives the container's node at `path` this number, and tells the one that it had.
fn node_of(spec: &mut Spec, path: &str, guest: (i64, i64)) -> Option<(i64, i64)> {
    let devices = spec.linux_mut().as_mut()?.devices_mut().as_mut()?;
    let is_it = |device: &&mut LinuxDevice| {
        device.path().to_str() == Some(path) && device.typ() == LinuxDeviceType::B
    };
    let device = devices.iter_mut().find(is_it)?;
    let host = (device.major(), device.minor());
    device.set_major(guest.0);
    device.set_minor(guest.1);
    Some(host)
}

/// All at once: one disk's number here may be another one's on the host.
fn renumber_rules(spec: &mut Spec, numbers: &[Numbers]) {
    let resources = spec.linux_mut().as_mut().and_then(|linux| linux.resources_mut().as_mut());
    let rules = resources.and_then(|resources| resources.devices_mut().as_mut());
    for rule in rules.into_iter().flatten() {
        let of = |rule: &LinuxDeviceCgroup| Some((rule.major()?, rule.minor()?));
        let found = numbers.iter().find(|numbers| of(rule) == Some(numbers.host));
        if let Some(numbers) = found.filter(|_| rule.typ() == Some(LinuxDeviceType::B)) {
            rule.set_major(Some(numbers.guest.0));
            rule.set_minor(Some(numbers.guest.1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_the_host_become_the_guests_in_node_and_rules() {
        let spec = r#"{"ociVersion":"1.0.2","linux":{
            "devices":[{"path":"/dev/null","type":"c","major":1,"minor":3},
                       {"path":"/dev/a","type":"b","major":7,"minor":1},{"path":"/dev/b","type":"b","major":7,"minor":2}],
            "resources":{"devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"b","major":7,"minor":1,"access":"rw"},
                       {"allow":true,"type":"b","major":7,"minor":2,"access":"r"},{"allow":true,"type":"c","major":7,"minor":1,"access":"r"}]}}}"#;
        let mut spec: Spec = serde_json::from_str(spec).unwrap();
        assert_eq!(node_of(&mut spec, "/dev/null", (1, 1)), None);
        let host = node_of(&mut spec, "/dev/a", (7, 2)).unwrap();
        let one = Numbers { host, guest: (7, 2) };
        let host = node_of(&mut spec, "/dev/b", (254, 0)).unwrap();
        let other = Numbers { host, guest: (254, 0) };
        assert_eq!((one.host, other.host), ((7, 1), (7, 2)));
        renumber_rules(&mut spec, &[one, other]);
        let linux = spec.linux().as_ref().unwrap();
        let rules = linux.resources().as_ref().unwrap().devices().as_ref().unwrap();
        let numbers: Vec<_> = rules.iter().map(|rule| (rule.major(), rule.minor())).collect();
        let some = |major, minor| (Some(major), Some(minor));
        assert_eq!(numbers, [(None, None), some(7, 2), some(254, 0), some(7, 1)]);
        let nodes: Vec<_> = linux.devices().iter().flatten().map(LinuxDevice::minor).collect();
        assert_eq!(nodes, [3, 2, 0]);
    }
}
