//! `spec`: a config.json to start from, with what runc's has: terminal, no device but the usual
//! ones, and a hostname of our own. A guest always has cgroup namespaces, which runc knows for some
//! hosts only.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};

use anyhow::{Context, Result, bail};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources, Spec, VERSION};
use serde_json::Value;

use crate::cli::SpecArgs;

pub(super) fn run(args: &SpecArgs) -> Result<()> {
    if args.rootless {
        bail!(
            "virtual machines need root, so there is no bundle for somebody else; run without --rootless"
        );
    }
    let path = args.bundle.join("config.json");
    let mut file = match OpenOptions::new().write(true).create_new(true).open(&path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!("File {} exists. Remove it first", path.display())
        }
        opened => opened.with_context(|| format!("cannot create {}", path.display()))?,
    };
    let text = serde_json::to_string_pretty(&sorted(serde_json::to_value(spec())?))?;
    writeln!(file, "{text}").with_context(|| format!("cannot write {}", path.display()))
}

fn spec() -> Spec {
    let mut spec = Spec::default();
    spec.set_version(VERSION.to_owned());
    spec.set_hostname(Some("kata".to_owned()));
    spec.set_annotations(None);
    if let Some(process) = spec.process_mut() {
        process.set_terminal(Some(true));
        let mut capabilities = process.capabilities().clone().unwrap_or_default();
        capabilities.set_inheritable(None).set_ambient(None);
        process.set_capabilities(Some(capabilities));
    }
    if let Some(linux) = spec.linux_mut() {
        let mut none = LinuxDeviceCgroup::default();
        none.set_allow(false).set_access(Some("rwm".to_owned()));
        let mut resources = LinuxResources::default();
        resources.set_devices(Some(vec![none]));
        linux.set_resources(Some(resources));
    }
    spec
}

/// The same with each set of capabilities in one order.
fn sorted(mut spec: Value) -> Value {
    let sets = spec.pointer_mut("/process/capabilities").and_then(Value::as_object_mut);
    for set in sets.into_iter().flat_map(|sets| sets.values_mut()).filter_map(Value::as_array_mut) {
        set.sort_by(|one, other| one.as_str().cmp(&other.as_str()));
    }
    spec
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn capabilities_are_in_one_order() {
        let spec = sorted(serde_json::to_value(spec()).unwrap());
        let capabilities = spec["process"]["capabilities"].as_object().unwrap();
        assert_eq!(capabilities.len(), 3);
        for set in capabilities.values() {
            assert_eq!(set, &json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]));
        }
    }

    #[test]
    fn specification_is_of_the_version_that_is_told_and_lets_no_device_through() {
        let spec = spec();
        assert_eq!(spec.version(), VERSION);
        let resources = spec.linux().as_ref().unwrap().resources().as_ref().unwrap();
        let rules = resources.devices().as_ref().unwrap();
        assert!(rules.len() == 1 && !rules[0].allow(), "{rules:?}");
    }
}
