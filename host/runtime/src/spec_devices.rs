//! Which of a spec's devices the container asks for.
//!
//! To a privileged container engines give all that the host has, each by the host's own path
//! (`docker run --privileged`, `podman run --privileged`, a CRI without
//! `privileged_without_host_devices`). Nobody has named any of them, and a VM is there to keep them
//! from the container. One that somebody names for it comes a second time, by another path
//! (`--device /dev/sdb:/dev/data`): by its own the engine has given it already.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

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
    without_host_devices(linux, is_hosts)
}

/// Whether every guest has it by the same path.
pub(crate) fn is_guests(device: &LinuxDevice) -> bool {
    GUEST_DEVICES.iter().any(|known| device.path().as_os_str() == *known)
}

fn without_host_devices(
    linux: &Linux,
    is_hosts: impl Fn(&LinuxDevice) -> bool,
) -> Vec<LinuxDevice> {
    let all = linux.devices().clone().unwrap_or_default();
    if !has_all_of_host(linux, &all) {
        return all;
    }
    // Those that had come or gone, or had other numbers, when the engine made its list are nobody's
    // wish either: a number may be another disk's by now.
    let hosts: Vec<_> = all.iter().filter(|device| is_hosts(device)).collect();
    let number = |device: &LinuxDevice| (device.typ(), device.major(), device.minor());
    let is_named = |device: &LinuxDevice| {
        let is_twice =
            |other: &&LinuxDevice| other.path() != device.path() && number(other) == number(device);
        let hides_hosts =
            |other: &&LinuxDevice| other.path() == device.path() && number(other) != number(device);
        hosts.iter().any(is_twice) && (!is_node(device.path()) || hosts.iter().any(hides_hosts))
    };
    all.iter().filter(|device| is_guests(device) || is_named(device)).cloned().collect()
}

/// Whether an engine has given the container all that the host has: it may use every device that
/// there is, in the words that engines have for a privileged one (a rule without a type or a
/// number; those of `--device-cgroup-rule` have a type), and one is listed that every runtime makes
/// by itself.
fn has_all_of_host(linux: &Linux, devices: &[LinuxDevice]) -> bool {
    let rules = linux.resources().as_ref().and_then(|resources| resources.devices().as_ref());
    let of_all = |rule: &LinuxDeviceCgroup| {
        rule.allow()
            && rule.typ().is_none()
            && rule.major().is_none()
            && rule.minor().is_none()
            && rule.access().as_deref().is_none_or(|access| access.contains('w'))
    };
    rules.into_iter().flatten().any(of_all)
        && devices.iter().any(|device| device.path().as_os_str() == "/dev/null")
}

/// Whether the host has any device by this path.
fn is_node(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|node| {
        let kind = node.file_type();
        kind.is_block_device() || kind.is_char_device()
    })
}

/// Whether the host has this device by the path that the container is to have it by.
fn is_hosts(device: &LinuxDevice) -> bool {
    is_at(device, device.path())
}

/// Whether the host has this device at `path`.
pub(crate) fn is_at(device: &LinuxDevice, path: &Path) -> bool {
    let Ok(node) = fs::symlink_metadata(path) else { return false };
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

    const ALL: &str = r#"{"allow":true,"access":"rwm"}"#;

    /// What is left of these, which the host has all but `/dev/data` and `/dev/lost`.
    fn left_of(devices: &[(&str, &str, i64)], rules: &str) -> Vec<String> {
        let entries: Vec<_> = devices
            .iter()
            .map(|(path, kind, minor)| {
                format!(r#"{{"path":"{path}","type":"{kind}","major":8,"minor":{minor}}}"#)
            })
            .collect();
        let devices = entries.join(",");
        let linux = format!(r#"{{"devices":[{devices}],"resources":{{"devices":[{rules}]}}}}"#);
        let linux: Linux = serde_json::from_str(&linux).unwrap();
        let of_all = |device: &LinuxDevice| {
            let path = device.path().to_str().unwrap();
            !["/dev/data", "/dev/lost"].contains(&path) && (path, device.minor()) != (DISK.0, 1)
        };
        let left = without_host_devices(&linux, of_all);
        left.iter().map(|device| device.path().display().to_string()).collect()
    }

    const NULL: (&str, &str, i64) = ("/dev/null", "c", 3);
    const DISK: (&str, &str, i64) = ("/dev/no-disk", "b", 0);
    const FUSE: (&str, &str, i64) = ("/dev/fuse", "c", 229);
    const NAMED: (&str, &str, i64) = ("/dev/data", "b", 0);

    #[test]
    fn privileged_container_has_of_the_hosts_devices_what_was_named_by_another_path() {
        let lost = ("/dev/lost", "b", 7);
        let all = [NULL, DISK, FUSE, NAMED, lost];
        let rules = [ALL, r#"{"allow":false,"access":"rwm"},{"allow":true,"access":"rwm"}"#];
        for rules in rules {
            assert_eq!(left_of(&all, rules), ["/dev/null", "/dev/fuse", "/dev/data"], "{rules}");
        }
        // By the path of another one of the host's, which it takes the place of.
        let other = ("/dev/no-other", "b", 1);
        assert_eq!(left_of(&[NULL, DISK, other, (DISK.0, "b", 1)], ALL), [NULL.0, DISK.0]);
        // The number is that of a device of another kind.
        assert_eq!(left_of(&[NULL, ("/dev/lost", "b", 3)], ALL), ["/dev/null"]);
    }

    #[test]
    fn whoever_may_use_less_or_was_not_given_all_has_named_what_it_has() {
        let named = ["/dev/null", "/dev/no-disk"];
        for rules in [
            "",
            r#"{"allow":false,"access":"rwm"}"#,
            r#"{"allow":true,"type":"b","major":8,"minor":0,"access":"rwm"}"#,
            r#"{"allow":true,"type":"a","access":"rwm"}"#,
            r#"{"allow":true,"type":"a","major":-1,"minor":-1,"access":"rwm"}"#,
            r#"{"allow":true,"access":"m"}"#,
        ] {
            assert_eq!(left_of(&[NULL, DISK], rules), named, "{rules}");
        }
        assert_eq!(left_of(&[DISK, NAMED], ALL), ["/dev/no-disk", "/dev/data"]);
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
