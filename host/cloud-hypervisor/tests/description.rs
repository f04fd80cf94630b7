//! The client's types against the API's published description: every field that is sent is there,
//! has its type, and none is missing that must not be. The facts are those of version 54's
//! description (API version 0.3.0).

use std::fmt::Debug;

use kata_cloud_hypervisor::api::*;
use serde::Serialize;
use serde_json::Value;

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
    /// Not below this.
    Integer(i64),
    /// One of these.
    Word(&'static [&'static str]),
    Object(&'static [Field]),
    List(&'static [Field]),
}
use Type::{Bool, Integer, List, Object, Text, Word};

const CONSOLE_MODE: Type = Word(&["Off", "Pty", "Tty", "File", "Socket", "Null"]);

const CPUS: &[Field] = &[
    ("boot_vcpus", Integer(1), Yes),
    ("max_vcpus", Integer(1), Yes),
    ("kvm_hyperv", Bool, No),
    ("max_phys_bits", Integer(0), No),
    ("nested", Bool, No),
];
const MEMORY: &[Field] = &[
    ("size", Integer(0), Yes),
    ("hotplug_size", Integer(0), No),
    ("hotplugged_size", Integer(0), No),
    ("mergeable", Bool, No),
    ("hotplug_method", Text, No),
    ("shared", Bool, No),
    ("hugepages", Bool, No),
    ("hugepage_size", Integer(0), No),
    ("prefault", Bool, No),
    ("thp", Bool, No),
];
const PAYLOAD: &[Field] =
    &[("firmware", Text, No), ("kernel", Text, No), ("cmdline", Text, No), ("initramfs", Text, No)];
const DISK: &[Field] = &[
    ("path", Text, No),
    ("readonly", Bool, No),
    ("direct", Bool, No),
    ("num_queues", Integer(0), No),
    ("queue_size", Integer(0), No),
    ("id", Text, No),
    ("serial", Text, No),
    ("image_type", Word(&["FixedVhd", "Qcow2", "Raw", "Vhdx", "Unknown"]), No),
];
const NET: &[Field] = &[
    ("tap", Text, No),
    ("mac", Text, No),
    ("host_mac", Text, No),
    ("mtu", Integer(0), No),
    ("num_queues", Integer(0), No),
    ("queue_size", Integer(0), No),
    ("id", Text, No),
];
const RNG: &[Field] = &[("src", Text, Yes), ("iommu", Bool, No)];
const FS: &[Field] = &[
    ("tag", Text, Yes),
    ("socket", Text, Yes),
    ("num_queues", Integer(0), Yes),
    ("queue_size", Integer(0), Yes),
    ("id", Text, No),
];
const CONSOLE: &[Field] =
    &[("file", Text, No), ("socket", Text, No), ("mode", CONSOLE_MODE, Yes), ("iommu", Bool, No)];
const SERIAL: &[Field] = &[("file", Text, No), ("socket", Text, No), ("mode", CONSOLE_MODE, Yes)];
const VSOCK: &[Field] = &[("cid", Integer(3), Yes), ("socket", Text, Yes), ("id", Text, No)];
const LANDLOCK: &[Field] = &[("path", Text, Yes), ("access", Text, Yes)];
const VM: &[Field] = &[
    ("cpus", Object(CPUS), No),
    ("memory", Object(MEMORY), No),
    ("payload", Object(PAYLOAD), Yes),
    ("disks", List(DISK), No),
    ("net", List(NET), No),
    ("rng", Object(RNG), No),
    ("fs", List(FS), No),
    ("serial", Object(SERIAL), No),
    ("console", Object(CONSOLE), No),
    ("vsock", Object(VSOCK), No),
    ("iommu", Bool, No),
    ("watchdog", Bool, No),
    ("pvpanic", Bool, No),
    ("landlock_enable", Bool, No),
    ("landlock_rules", List(LANDLOCK), No),
];
const REMOVED: &[Field] = &[("id", Text, No)];
const RESIZE: &[Field] = &[
    ("desired_vcpus", Integer(1), No),
    ("desired_ram", Integer(0), No),
    ("desired_balloon", Integer(0), No),
];

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
            Some((_, kind, _)) => found.extend(type_faults(&path, value, *kind)),
        }
    }
    found
}

fn type_faults(path: &str, value: &Value, kind: Type) -> Vec<String> {
    let fits = match kind {
        Object(schema) => return faults(path, value, schema),
        List(schema) => {
            let Some(list) = value.as_array() else { return vec![format!("{path} is no list")] };
            return list.iter().flat_map(|value| faults(path, value, schema)).collect();
        }
        Text => value.is_string(),
        Bool => value.is_boolean(),
        Integer(least) => value.as_i64().is_some_and(|number| number >= least),
        Word(words) => value.as_str().is_some_and(|word| words.contains(&word)),
    };
    if fits { Vec::new() } else { vec![format!("{path} = {value} is no {kind:?}")] }
}

fn assert_described(value: &(impl Serialize + Debug), schema: &[Field]) {
    let rendered = serde_json::to_value(value).expect("it is what requests are made of");
    let faults = faults("", &rendered, schema);
    assert!(faults.is_empty(), "{value:?}: {faults:#?}");
}

fn disk() -> DiskConfig {
    DiskConfig {
        id: "disk0".into(),
        path: "/dev/dm-0".into(),
        readonly: true,
        image_type: ImageType::Raw,
        serial: Some("root".into()),
    }
}

fn share() -> FsConfig {
    FsConfig {
        id: "share0".into(),
        tag: "kataShared".into(),
        socket: "/run/fs.sock".into(),
        num_queues: 1,
        queue_size: 1024,
    }
}

/// With every field.
fn machine() -> VmConfig {
    VmConfig {
        cpus: CpusConfig { boot_vcpus: 1, max_vcpus: 4 },
        memory: MemoryConfig {
            size: 256 << 20,
            shared: true,
            hotplug_size: Some(128 << 20),
            hotplug_method: Some(HotplugMethod::VirtioMem),
        },
        payload: PayloadConfig {
            kernel: "/vmlinux".into(),
            cmdline: "quiet".into(),
            initramfs: Some("/initrd".into()),
        },
        disks: vec![disk()],
        rng: RngConfig { src: "/dev/urandom".into() },
        fs: vec![share()],
        serial: ConsoleConfig { mode: ConsoleMode::Tty },
        console: ConsoleConfig { mode: ConsoleMode::Off },
        vsock: Some(VsockConfig { cid: 3, socket: "/run/vsock".into() }),
        pvpanic: true,
        landlock_enable: true,
        landlock_rules: vec![LandlockConfig { path: "/run/disks".into(), access: "rw".into() }],
    }
}

#[test]
fn requests_are_as_described() {
    assert_described(&machine(), VM);
    let smallest = VmConfig {
        payload: PayloadConfig { initramfs: None, ..machine().payload },
        disks: Vec::new(),
        fs: Vec::new(),
        vsock: None,
        ..machine()
    };
    assert_described(&smallest, VM);
    assert_described(&disk(), DISK);
    assert_described(&share(), FS);
    let nic = NetConfig { id: "eth0".into(), mac: "02:42:ac:11:00:02".into(), num_queues: 2 };
    assert_described(&nic, NET);
    assert_described(&VmResize { desired_vcpus: Some(2), desired_ram: Some(1 << 30) }, RESIZE);
    assert_described(&VmResize::default(), RESIZE);
    assert_described(&DeviceRef { id: "disk0".into() }, REMOVED);
}

#[test]
fn test_finds_what_does_not_fit() {
    let wrong = serde_json::json!({ "mode": "Serial", "colour": 1 });
    let found = faults("", &wrong, CONSOLE);
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(faults("", &serde_json::json!({}), CPUS).len(), 2);
    assert_eq!(faults("", &serde_json::json!({ "cid": 2, "socket": "/s" }), VSOCK).len(), 1);
}

#[test]
fn responses_as_described_are_understood() {
    // With the required fields only, and with more than this client knows.
    let ping: VmmPing = serde_json::from_str(r#"{"version": "54.0.0"}"#).unwrap();
    assert_eq!(ping.version, "54.0.0");
    let info = r#"{"config": {"memory": {"size": 134217728, "hotplugged_size": 134217728}},
        "state": "Running", "memory_actual_size": 268435456,
        "device_tree": {"disk0": {"id": "disk0", "children": []}}}"#;
    let info: VmInfo = serde_json::from_str(info).unwrap();
    assert_eq!(info.memory_actual_size, Some(256 << 20));
    assert_eq!(info.config.memory.wanted(), 256 << 20);
    assert!(info.has_device("disk0") && !info.has_device("disk1"));
    let created: VmInfo =
        serde_json::from_str(r#"{"config": {"memory": {"size": 1}}, "state": "Created"}"#).unwrap();
    assert_eq!(created.memory_actual_size, None);
}
