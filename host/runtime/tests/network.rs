//! Hypervisors without network devices, and network namespaces with interfaces: needs root and ip(8).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use std::path::Path;
use std::process::Command;

use kata_host_runtime::{Runtime, RuntimeError};
use oci_spec::runtime::Spec;

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

/// Why a sandbox in that namespace is not planned. The kernel is missing, which is found after all that is in question here.
fn refusal(hypervisor: &str, model: &str, netns: &Netns) -> RuntimeError {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("configuration.toml");
    let text = format!(
        "[hypervisor.{hypervisor}]\nkernel = \"/no/such/kernel\"\n[runtime]\ninternetworking_model = \"{model}\"\n"
    );
    std::fs::write(&file, text).unwrap();
    let namespace = Path::new("/run/netns").join(&netns.0);
    let spec = serde_json::json!({
        "ociVersion": "1.0.2",
        "linux": { "namespaces": [{ "type": "network", "path": namespace }] },
    });
    let spec: Spec = serde_json::from_value(spec).unwrap();
    Runtime::load(Some(&file), None).unwrap().plan_sandbox("c1", &spec).unwrap_err()
}

#[test]
fn interfaces_are_refused_by_who_takes_none() {
    let netns = Netns::with_an_interface("refused");
    for hypervisor in ["krun", "clh"] {
        assert_eq!(
            refusal(hypervisor, "tcfilter", &netns).to_string(),
            format!(
                "the hypervisor {hypervisor} takes no network devices, and the network namespace /run/netns/{} has eth0; \
                 choose qemu with `hypervisor_name` in the section runtime, or set `internetworking_model` to \"none\"",
                netns.0
            )
        );
    }
}

#[test]
fn interfaces_that_are_not_wanted_are_nobodys_matter() {
    let netns = Netns::with_an_interface("unwanted");
    let error = refusal("krun", "none", &netns);
    assert!(matches!(error, RuntimeError::Asset { key: "kernel", .. }), "{error}");
}

#[test]
fn empty_namespace_is_no_network() {
    let netns = Netns::new("empty");
    let error = refusal("krun", "tcfilter", &netns);
    assert!(matches!(error, RuntimeError::Asset { key: "kernel", .. }), "{error}");
}

#[test]
fn qemu_takes_interfaces() {
    let netns = Netns::with_an_interface("taken");
    let error = refusal("qemu", "tcfilter", &netns);
    assert!(matches!(error, RuntimeError::Asset { key: "kernel", .. }), "{error}");
}
