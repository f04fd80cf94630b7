//! Conversions between the specification and the wire.

mod fixtures;
mod round_trip;

use oci_spec::runtime as spec;
use protobuf::Message;
use serde_json::{Value, json};

use super::*;
use crate::oci;

fn parse<T: serde::de::DeserializeOwned>(json: Value) -> T {
    serde_json::from_value(json).unwrap()
}

/// Over the wire and back, through the encoding.
fn carried(spec: &spec::Spec) -> spec::Spec {
    let bytes = spec_to_wire(spec).unwrap().write_to_bytes().unwrap();
    spec_from_wire(oci::Spec::parse_from_bytes(&bytes).unwrap()).unwrap()
}

/// The field that the conversion of containerd's configuration with `change` names.
fn refused(change: Value) -> String {
    let mut config = fixtures::containerd_config();
    merge(&mut config, change);
    spec_to_wire(&parse(config)).unwrap_err().to_string()
}

fn merge(into: &mut Value, change: Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (key, value) in change {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, change) => *into = change,
    }
}

#[test]
fn containerds_configuration_survives() {
    let spec: spec::Spec = parse(fixtures::containerd_config());
    let mut expected = spec.clone();
    // containerd leaves the adjustment out; the agent must not lend its own.
    expected.process_mut().as_mut().unwrap().set_oom_score_adj(Some(0));
    // What goes without saying is not said.
    expected.root_mut().as_mut().unwrap().set_readonly(None);
    assert_eq!(carried(&spec), expected);
}

#[test]
fn docker_like_filter_survives() {
    let spec: spec::Spec = parse(json!({
        "ociVersion": "1.2.0",
        "linux": { "seccomp": fixtures::seccomp_profile() },
    }));
    let back = carried(&spec);
    let rules = back.linux().as_ref().unwrap().seccomp().as_ref().unwrap().syscalls();
    let rules = rules.as_ref().unwrap();
    assert_eq!(rules[0].errno_ret(), None, "an allowing rule returns no error");
    assert_eq!(rules[1].args().as_ref().unwrap()[0].value_two(), Some(0));
    assert_eq!(rules[2].errno_ret(), Some(38));
    assert_eq!(rules[3].errno_ret(), Some(1), "EPERM is said aloud");
}

#[test]
fn an_empty_message_is_an_empty_configuration() {
    let back = spec_from_wire(oci::Spec::new()).unwrap();
    assert_eq!(back, parse(json!({ "ociVersion": "" })));

    let mut wire = oci::Spec::new();
    wire.Linux = Some(oci::Linux::new()).into();
    wire.Process = Some(oci::Process::new()).into();
    let back = spec_from_wire(wire).unwrap();
    assert_eq!(
        back,
        parse(json!({
            "ociVersion": "",
            "linux": {},
            "process": { "cwd": "", "user": {}, "oomScoreAdj": 0 },
        }))
    );
}

#[test]
fn a_capability_set_without_names_is_empty_not_absent() {
    let mut wire = oci::Process::new();
    wire.Capabilities = Some(oci::LinuxCapabilities::new()).into();
    let process = process_from_wire(wire).unwrap();
    let capabilities = process.capabilities().as_ref().unwrap();
    assert_eq!(capabilities.bounding(), &Some(spec::Capabilities::new()));
    assert_eq!(capabilities.ambient(), &Some(spec::Capabilities::new()));
}

#[test]
fn spellings_of_other_runtimes_are_read() {
    let mut wire = oci::Process::new();
    let names = ["KILL", "CAP_CHOWN", "\"CAP_SYS_ADMIN\""].map(str::to_owned).to_vec();
    wire.Capabilities =
        Some(oci::LinuxCapabilities { Bounding: names, ..Default::default() }).into();
    let process = process_from_wire(wire).unwrap();
    let bounding = process.capabilities().as_ref().unwrap().bounding().clone().unwrap();
    assert_eq!(bounding.len(), 3);

    for (text, typ) in [
        ("mnt", spec::LinuxNamespaceType::Mount),
        ("net", spec::LinuxNamespaceType::Network),
        ("network", spec::LinuxNamespaceType::Network),
    ] {
        let namespace = oci::LinuxNamespace { Type: text.into(), ..Default::default() };
        let linux = oci::Linux { Namespaces: vec![namespace], ..Default::default() };
        let wire = oci::Spec { Linux: Some(linux).into(), ..Default::default() };
        let back = spec_from_wire(wire).unwrap();
        let namespaces = back.linux().as_ref().unwrap().namespaces().clone().unwrap();
        assert_eq!(namespaces[0].typ(), typ);
    }
}

#[test]
fn device_numbers_of_a_rule_may_be_wild() {
    let read = |major, minor| {
        let rule = oci::LinuxDeviceCgroup { Major: major, Minor: minor, ..Default::default() };
        let wire = oci::LinuxResources { Devices: vec![rule], ..Default::default() };
        let rule = resources_from_wire(wire).unwrap().devices().as_ref().unwrap()[0].clone();
        (rule.major(), rule.minor())
    };
    assert_eq!(read(-1, -1), (None, None));
    assert_eq!(read(0, 0), (None, None));
    assert_eq!(read(5, 0), (Some(5), Some(0)));
    assert_eq!(read(136, -1), (Some(136), None));
    assert_eq!(read(-1, 0), (None, Some(0)));
}

#[test]
fn what_the_protocol_cannot_carry_is_refused_by_name() {
    for (field, change) in fixtures::not_carried() {
        let error = refused(change);
        assert_eq!(
            error,
            format!(
                "the agent protocol cannot carry {field}; \
                 remove it from the container's configuration"
            )
        );
    }
}

#[test]
fn the_default_error_arrives_where_it_counts() {
    for (seccomp, arrives) in [
        (json!({ "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38 }), Some(38)),
        (json!({ "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1 }), None),
        (json!({ "defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 38 }), None),
    ] {
        let spec: spec::Spec = parse(json!({ "linux": { "seccomp": seccomp } }));
        let guest = spec_from_wire(spec_to_wire(&spec).unwrap()).unwrap();
        let seccomp = guest.linux().as_ref().unwrap().seccomp().as_ref().unwrap();
        assert_eq!(seccomp.default_errno_ret(), arrives);
    }
}

#[test]
fn values_without_meaning_are_named() {
    let wire = oci::Process { OOMScoreAdj: i64::MAX, ..Default::default() };
    assert_eq!(
        process_from_wire(wire).unwrap_err().to_string(),
        "process.oomScoreAdj cannot be \"9223372036854775807\""
    );

    let limit = oci::POSIXRlimit { Type: "é".repeat(100), ..Default::default() };
    let wire = oci::Process { Rlimits: vec![limit], ..Default::default() };
    assert_eq!(
        process_from_wire(wire).unwrap_err(),
        ConvertError::BadValue { field: "process.rlimits[].type", value: "é".repeat(64) }
    );
}
