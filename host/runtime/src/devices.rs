//! Which of a spec's devices the container asks for.
//!
//! To a privileged container engines give all that the host has, each by the host's own path
//! (`docker run --privileged`, `podman run --privileged`, a CRI without
//! `privileged_without_host_devices`). Nobody has named any of them, and a VM is there to keep them
//! from the container: it has those of its VM, and may use all of these. One that somebody names
//! for it comes by another path (`--device /dev/sdb:/dev/disk`), for by its own the engine would
//! have given it anyway.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};
use rustix::fs::makedev;

/// Device nodes of which every guest has its own.
const GUEST_DEVICES: [&str; 12] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/console",
    "/dev/ptmx",
    "/dev/fuse",
    "/dev/kmsg",
    "/dev/loop-control",
    "/dev/net/tun",
];

/// The devices of the spec but for those that a privileged container has only since it is one.
pub(crate) fn asked_for(linux: &Linux) -> Vec<LinuxDevice> {
    without_those_of_all(linux, is_hosts)
}

/// Whether every guest has it by the same path.
pub(crate) fn is_guests(device: &LinuxDevice) -> bool {
    GUEST_DEVICES.iter().any(|known| device.path().as_os_str() == *known)
}

fn without_those_of_all(
    linux: &Linux,
    is_hosts: impl Fn(&LinuxDevice) -> bool,
) -> Vec<LinuxDevice> {
    let mut devices = linux.devices().clone().unwrap_or_default();
    if is_privileged(linux) {
        let all = devices.len();
        devices.retain(|device| is_guests(device) || !is_hosts(device));
        let left_out = all - devices.len();
        tracing::info!(
            left_out,
            "a privileged container has the devices of its VM, not the host's"
        );
    }
    devices
}

/// Whether the container may use every device that there is, in the words that engines have for a
/// privileged one: a rule without a type or a number. (One with a number of -1 comes from
/// `--device-cgroup-rule`, beside devices that somebody has named.)
fn is_privileged(linux: &Linux) -> bool {
    let rules = linux.resources().as_ref().and_then(|resources| resources.devices().as_ref());
    let of_all = |rule: &LinuxDeviceCgroup| {
        rule.allow()
            && rule.typ().is_none_or(|kind| kind == LinuxDeviceType::A)
            && rule.major().is_none()
            && rule.minor().is_none()
            && rule.access().as_deref().is_none_or(|access| access.contains('w'))
    };
    rules.into_iter().flatten().any(of_all)
}

/// Whether the host has this device by this path.
fn is_hosts(device: &LinuxDevice) -> bool {
    let Ok(node) = fs::symlink_metadata(device.path()) else { return false };
    let kind = node.file_type();
    let is_kind = match device.typ() {
        LinuxDeviceType::B => kind.is_block_device(),
        LinuxDeviceType::C | LinuxDeviceType::U => kind.is_char_device(),
        _ => false,
    };
    let number = || {
        let [major, minor] = [device.major(), device.minor()].map(|n| u32::try_from(n).ok());
        Some(makedev(major?, minor?))
    };
    is_kind && number() == Some(node.rdev())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(rules: &str) -> Vec<String> {
        let linux = format!(
            r#"{{"devices":[
                {{"path":"/dev/sda","type":"b","major":8,"minor":0}},
                {{"path":"/dev/fuse","type":"c","major":10,"minor":229}},
                {{"path":"/dev/data","type":"b","major":8,"minor":16}}],
                "resources":{{"devices":[{rules}]}}}}"#
        );
        let linux: Linux = serde_json::from_str(&linux).unwrap();
        let of_all = |device: &LinuxDevice| device.path().as_os_str() != "/dev/data";
        let left = without_those_of_all(&linux, of_all);
        left.iter().map(|device| device.path().display().to_string()).collect()
    }

    #[test]
    fn privileged_container_has_of_the_hosts_devices_what_was_named_by_another_path() {
        let left = ["/dev/fuse", "/dev/data"];
        // Docker's and containerd's, Podman's, CRI-O's.
        assert_eq!(paths(r#"{"allow":true,"access":"rwm"}"#), left);
        assert_eq!(paths(r#"{"allow":false,"access":"rwm"},{"allow":true,"access":"rwm"}"#), left);
        assert_eq!(paths(r#"{"allow":true,"type":"a","access":"rwm"}"#), left);
    }

    #[test]
    fn whoever_may_use_less_has_named_what_it_has() {
        let named = ["/dev/sda", "/dev/fuse", "/dev/data"];
        for rules in [
            "",
            r#"{"allow":false,"access":"rwm"}"#,
            r#"{"allow":true,"type":"b","major":8,"minor":0,"access":"rwm"}"#,
            r#"{"allow":true,"type":"a","major":-1,"minor":-1,"access":"rwm"}"#,
            r#"{"allow":true,"type":"c","access":"m"}"#,
        ] {
            assert_eq!(paths(rules), named, "{rules}");
        }
    }

    #[test]
    fn device_is_the_hosts_by_its_path_kind_and_number() {
        let device = |path: &str, kind: &str, minor: i64| -> LinuxDevice {
            let text = format!(r#"{{"path":"{path}","type":"{kind}","major":1,"minor":{minor}}}"#);
            serde_json::from_str(&text).unwrap()
        };
        assert!(is_hosts(&device("/dev/null", "c", 3)));
        for other in [
            device("/dev/null", "c", 5),
            device("/dev/null", "b", 3),
            device("/dev/none", "c", 3),
            device("/dev/null", "c", -3),
        ] {
            assert!(!is_hosts(&other), "{other:?}");
        }
    }
}
