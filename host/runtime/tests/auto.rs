//! Which hypervisor "auto" means, with network namespaces of all kinds: needs root and ip(8).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kata_host_runtime::{FirstContainer, Runtime};
use kata_hypervisor::kvm_obstacle;
use oci_spec::runtime::Spec;
use tempfile::TempDir;

/// A named network namespace.
struct Netns(String);

impl Netns {
    fn new(name: &str) -> Self {
        let netns = Self(format!("kata-test-{name}-{}", std::process::id()));
        ip(&["netns", "add", &netns.0]);
        netns
    }

    fn with_an_interface(name: &str) -> Self {
        let netns = Self::new(name);
        for words in ["link add eth0 type veth peer name other", "link set eth0 up"] {
            let mut args = vec!["-n", netns.0.as_str()];
            args.extend(words.split(' '));
            ip(&args);
        }
        netns
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        ip(&["netns", "delete", &self.0]);
    }
}

fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).output().unwrap();
    assert!(output.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Which hypervisor runs a sandbox in that namespace, by a configuration of these lines and with a
/// kernel that krun boots.
fn chosen(lines: &str, namespace: Option<PathBuf>) -> &'static str {
    let directory = TempDir::new().unwrap();
    let kernel = directory.path().join("vmlinux");
    fs::write(&kernel, b"\x7fELF virtio_mmio.device\0").unwrap();
    chosen_with(lines, namespace, &kernel)
}

fn chosen_with(lines: &str, namespace: Option<PathBuf>, kernel: &Path) -> &'static str {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("configuration.toml");
    let kernel = format!("kernel = \"{}\"\n", kernel.display());
    let text = format!("[hypervisor.krun]\n{kernel}[hypervisor.qemu]\n{kernel}{lines}");
    fs::write(&file, text).unwrap();
    let namespace = match namespace {
        Some(path) => serde_json::json!({ "type": "network", "path": path }),
        None => serde_json::json!({ "type": "network" }),
    };
    let spec = serde_json::json!({ "ociVersion": "1.0.2", "linux": { "namespaces": [namespace] } });
    let spec: Spec = serde_json::from_value(spec).unwrap();
    let first = FirstContainer { spec: &spec, rootfs_mounts: &[] };
    Runtime::load(Some(&file), Some(first)).unwrap().hypervisor().name()
}

/// The one for sandboxes that krun can run: that is krun where KVM works.
fn best() -> &'static str {
    if kvm_obstacle().is_none() { "krun" } else { "qemu" }
}

#[test]
fn sandbox_whose_interfaces_are_there_gets_krun() {
    let netns = Netns::with_an_interface("filled");
    assert_eq!(chosen("", Some(netns.path())), best());
    // With settings that both sections have, too.
    let directory = TempDir::new().unwrap();
    let distributions = directory.path().join("vmlinux");
    fs::write(&distributions, b"\x7fELF").unwrap();
    assert_eq!(chosen_with("", Some(netns.path()), &distributions), "qemu");
}

#[test]
fn sandbox_whose_interfaces_may_come_late_gets_qemu() {
    assert_eq!(chosen("", None), "qemu");
    let netns = Netns::new("empty");
    assert_eq!(chosen("", Some(netns.path())), "qemu");
    let without = "[runtime]\ninternetworking_model = \"none\"\n";
    assert_eq!(chosen(without, Some(netns.path())), best());
}

#[test]
fn settings_of_qemu_alone_ask_for_qemu() {
    let netns = Netns::with_an_interface("asked");
    assert_eq!(chosen("default_memory = 1024\n", Some(netns.path())), "qemu");
    assert_eq!(chosen("machine_type = \"q35\"\n", Some(netns.path())), "qemu");
}

#[test]
fn name_that_is_chosen_stays() {
    for name in ["krun", "qemu", "clh"] {
        assert_eq!(chosen(&format!("[runtime]\nhypervisor_name = \"{name}\"\n"), None), name);
    }
}
