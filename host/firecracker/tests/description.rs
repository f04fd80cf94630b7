//! The client's types against the API's published description: every field that is sent is there,
//! has its type, and none is missing that must not be. The facts are those of version 1.17's
//! description.

use std::fmt::Debug;

use kata_firecracker::api::*;
use serde::Serialize;
use serde_json::{Value, json};

/// A field of a schema: its name, its type, and whether it must be there.
type Field = (&'static str, Type, Required);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Required {
    Yes,
    No,
}
use Required::{No, Yes};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Type {
    Text,
    Bool,
    /// From the first to the second.
    Integer(i64, i64),
    /// One of these.
    Word(&'static [&'static str]),
    Object(&'static [Field]),
}
use Type::{Bool, Integer, Object, Text, Word};

const ANY: i64 = i64::MAX;

const BUCKET: &[Field] = &[
    ("size", Integer(0, ANY), Yes),
    ("refill_time", Integer(0, ANY), Yes),
    ("one_time_burst", Integer(0, ANY), No),
];
const LIMITER: &[Field] = &[("bandwidth", Object(BUCKET), No), ("ops", Object(BUCKET), No)];
const MACHINE: &[Field] = &[
    ("vcpu_count", Integer(1, 32), Yes),
    ("mem_size_mib", Integer(0, ANY), Yes),
    ("smt", Bool, No),
    ("track_dirty_pages", Bool, No),
    ("cpu_template", Text, No),
    ("huge_pages", Word(&["None", "Transparent", "2M"]), No),
];
const BOOT_SOURCE: &[Field] =
    &[("kernel_image_path", Text, Yes), ("initrd_path", Text, No), ("boot_args", Text, No)];
const DRIVE: &[Field] = &[
    ("drive_id", Text, Yes),
    ("is_root_device", Bool, Yes),
    ("path_on_host", Text, No),
    ("is_read_only", Bool, No),
    ("partuuid", Text, No),
    ("socket", Text, No),
    ("cache_type", Word(&["Unsafe", "Writeback"]), No),
    ("io_engine", Word(&["Sync", "Async"]), No),
    ("rate_limiter", Object(LIMITER), No),
];
const PARTIAL_DRIVE: &[Field] =
    &[("drive_id", Text, Yes), ("path_on_host", Text, No), ("rate_limiter", Object(LIMITER), No)];
const NIC: &[Field] = &[
    ("iface_id", Text, Yes),
    ("host_dev_name", Text, Yes),
    ("guest_mac", Text, No),
    ("mtu", Integer(68, 65535), No),
    ("rx_rate_limiter", Object(LIMITER), No),
    ("tx_rate_limiter", Object(LIMITER), No),
];
const VSOCK: &[Field] =
    &[("guest_cid", Integer(3, ANY), Yes), ("uds_path", Text, Yes), ("vsock_id", Text, No)];
const ENTROPY: &[Field] = &[("rate_limiter", Object(LIMITER), No)];
const ACTION: &[Field] =
    &[("action_type", Word(&["FlushMetrics", "InstanceStart", "SendCtrlAltDel"]), Yes)];
const VM: &[Field] = &[("state", Word(&["Paused", "Resumed"]), Yes)];

/// What is wrong with `value` as an object of `schema`, by the path of the field.
fn faults(path: &str, value: &Value, schema: &[Field]) -> Vec<String> {
    let Some(object) = value.as_object() else { return vec![format!("{path} is no object")] };
    let required = schema.iter().filter(|field| field.2 == Yes);
    let mut found: Vec<String> = required
        .filter(|field| !object.contains_key(field.0))
        .map(|field| format!("{path}.{} is missing", field.0))
        .collect();
    for (name, value) in object {
        let path = format!("{path}.{name}");
        match schema.iter().find(|field| field.0 == name) {
            None => found.push(format!("{path} is not in the description")),
            Some((_, Object(schema), _)) => found.extend(faults(&path, value, schema)),
            Some((_, kind, _)) if fits(value, *kind) => {}
            Some((_, kind, _)) => found.push(format!("{path} = {value} is no {kind:?}")),
        }
    }
    found
}

fn fits(value: &Value, kind: Type) -> bool {
    match kind {
        Text => value.is_string(),
        Bool => value.is_boolean(),
        Integer(least, most) => {
            value.as_i64().is_some_and(|number| (least..=most).contains(&number))
        }
        Word(words) => value.as_str().is_some_and(|word| words.contains(&word)),
        Object(_) => value.is_object(),
    }
}

fn assert_described(value: &(impl Serialize + Debug), schema: &[Field]) {
    let rendered = serde_json::to_value(value).expect("it is what requests are made of");
    let faults = faults("", &rendered, schema);
    assert!(faults.is_empty(), "{value:?}: {faults:#?}");
}

fn limiter() -> Option<RateLimiter> {
    let bandwidth = TokenBucket::per_second(1 << 20, 4096);
    Some(RateLimiter { bandwidth, ops: TokenBucket::per_second(100, 0) })
}

#[test]
fn requests_are_as_described() {
    assert_described(&MachineConfiguration { vcpu_count: 32, mem_size_mib: 2048 }, MACHINE);
    let boot = BootSource {
        kernel_image_path: "/vmlinux".into(),
        initrd_path: Some("/initrd".into()),
        boot_args: "quiet".into(),
    };
    assert_described(&boot, BOOT_SOURCE);
    assert_described(&BootSource { initrd_path: None, ..boot }, BOOT_SOURCE);
    let drive = Drive {
        drive_id: "disk0".into(),
        path_on_host: "/dev/dm-0".into(),
        is_root_device: false,
        is_read_only: true,
        rate_limiter: limiter(),
    };
    assert_described(&drive, DRIVE);
    assert_described(&Drive { rate_limiter: None, ..drive }, DRIVE);
    let patch = PartialDrive { drive_id: "disk0".into(), path_on_host: "/image".into() };
    assert_described(&patch, PARTIAL_DRIVE);
    let nic = NetworkInterface {
        iface_id: "nic2".into(),
        host_dev_name: "tap2_kata".into(),
        guest_mac: "02:42:ac:11:00:02".into(),
        rx_rate_limiter: limiter(),
        tx_rate_limiter: limiter(),
    };
    assert_described(&nic, NIC);
    assert_described(
        &NetworkInterface { rx_rate_limiter: None, tx_rate_limiter: None, ..nic },
        NIC,
    );
    assert_described(&Vsock { guest_cid: 3, uds_path: "/run/vsock".into() }, VSOCK);
    assert_described(&EntropyDevice {}, ENTROPY);
    for action_type in [ActionType::InstanceStart, ActionType::FlushMetrics] {
        assert_described(&InstanceActionInfo { action_type }, ACTION);
    }
    for state in [TargetState::Paused, TargetState::Resumed] {
        assert_described(&Vm { state }, VM);
    }
}

#[test]
fn test_finds_what_does_not_fit() {
    let wrong =
        json!({ "drive_id": 1, "colour": 1, "cache_type": "None", "rate_limiter": { "ops": {} } });
    let found = faults("", &wrong, DRIVE);
    assert_eq!(found.len(), 6, "{found:?}");
    assert_eq!(faults("", &json!({ "vcpu_count": 33, "mem_size_mib": 1 }), MACHINE).len(), 1);
}

#[test]
fn responses_as_described_are_understood() {
    for (word, state) in [
        ("Not started", InstanceState::NotStarted),
        ("Running", InstanceState::Running),
        ("Paused", InstanceState::Paused),
    ] {
        let info =
            json!({ "app_name": "Firecracker", "id": "x", "state": word, "vmm_version": "1.17.0" });
        let info: InstanceInfo = serde_json::from_value(info).expect("it is what is described");
        assert_eq!((info.state, info.vmm_version.as_str()), (state, "1.17.0"));
    }
}
