//! Every configuration in the wire's normal form comes back as it was: what is absent is absent,
//! what is there is neither zero nor empty.

use proptest::collection::{btree_map, hash_set, vec};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value, json};

use super::{carried, parse};

type Values = BoxedStrategy<Value>;

/// An object with some of these fields.
fn some_of(fields: Vec<(&'static str, Values)>) -> Values {
    fields
        .into_iter()
        .fold(Just(Map::new()).boxed(), |object, (name, values)| {
            (object, proptest::option::of(values))
                .prop_map(move |(mut object, value)| {
                    object.extend(value.map(|value| (name.to_owned(), value)));
                    object
                })
                .boxed()
        })
        .prop_map(Value::Object)
        .boxed()
}

/// An object with all of `always` and some of `sometimes`.
fn with(always: Vec<(&'static str, Values)>, sometimes: Vec<(&'static str, Values)>) -> Values {
    let (names, values): (Vec<_>, Vec<_>) = always.into_iter().unzip();
    (values, some_of(sometimes))
        .prop_map(move |(values, mut object)| {
            for (name, value) in names.iter().zip(values) {
                object[*name] = value;
            }
            object
        })
        .boxed()
}

fn text() -> Values {
    "[a-zA-Z0-9/._=-]{1,12}".prop_map(Value::from).boxed()
}

fn texts() -> Values {
    list(text())
}

fn list(values: Values) -> Values {
    vec(values, 1..4).prop_map(Value::from).boxed()
}

fn yes() -> Values {
    Just(Value::Bool(true)).boxed()
}

/// A number that is not zero.
fn count(max: u64) -> Values {
    (1..=max).prop_map(Value::from).boxed()
}

fn amount() -> Values {
    any::<i64>().prop_filter("not zero", |n| *n != 0).prop_map(Value::from).boxed()
}

fn one_of(names: &'static [&'static str]) -> Values {
    select(names).prop_map(Value::from).boxed()
}

fn map() -> Values {
    btree_map("[a-z.]{1,8}", "[a-z0-9]{0,8}", 1..4).prop_map(|map| json!(map)).boxed()
}

fn capabilities() -> Values {
    const NAMES: &[&str] = &["CAP_KILL", "CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_BPF", "CAP_NET_RAW"];
    let set = || hash_set(select(NAMES), 0..4).prop_map(|set| json!(set)).boxed();
    let names = ["bounding", "effective", "inheritable", "permitted", "ambient"];
    with(names.map(|name| (name, set())).to_vec(), vec![])
}

fn process() -> Values {
    const LIMITS: &[&str] = &["RLIMIT_NOFILE", "RLIMIT_CORE", "RLIMIT_AS", "RLIMIT_RTTIME"];
    let any32 = || any::<u32>().prop_map(Value::from).boxed();
    let umask = (0..=0o777).prop_map(Value::from).boxed();
    let user = with(
        vec![("uid", any32()), ("gid", any32())],
        vec![("additionalGids", list(any32())), ("username", text()), ("umask", umask)],
    );
    let any64 = || any::<u64>().prop_map(Value::from).boxed();
    let limit = with(vec![("type", one_of(LIMITS)), ("hard", any64()), ("soft", any64())], vec![]);
    let adjustment = (-1000..=1000).prop_map(Value::from).boxed();
    with(
        vec![("user", user), ("cwd", text()), ("oomScoreAdj", adjustment)],
        vec![
            ("terminal", yes()),
            ("consoleSize", with(vec![("height", any32()), ("width", any32())], vec![])),
            ("args", texts()),
            ("env", texts()),
            ("capabilities", capabilities()),
            ("rlimits", list(limit)),
            ("noNewPrivileges", yes()),
            ("apparmorProfile", text()),
            ("selinuxLabel", text()),
        ],
    )
}

fn resources() -> Values {
    const TYPES: &[&str] = &["a", "b", "c"];
    let big = || count(u64::MAX);
    let rule = with(
        vec![("allow", any::<bool>().prop_map(Value::from).boxed())],
        vec![
            ("type", one_of(TYPES)),
            ("major", count(4095)),
            ("minor", (0..4096).prop_map(Value::from).boxed()),
            ("access", text()),
        ],
    );
    let memory = some_of(vec![
        ("limit", amount()),
        ("reservation", amount()),
        ("swap", amount()),
        ("kernel", amount()),
        ("kernelTCP", amount()),
        ("swappiness", count(100)),
        ("disableOOMKiller", yes()),
    ]);
    let cpu = some_of(vec![
        ("shares", big()),
        ("quota", amount()),
        ("period", big()),
        ("realtimeRuntime", amount()),
        ("realtimePeriod", big()),
        ("cpus", text()),
        ("mems", text()),
    ]);
    let pids = any::<i64>().prop_map(|limit| json!({ "limit": limit })).boxed();
    let huge = (text(), any::<i64>()).prop_map(|(s, n)| json!({ "pageSize": s, "limit": n }));
    let priority = (text(), any::<u32>()).prop_map(|(s, n)| json!({ "name": s, "priority": n }));
    let network =
        some_of(vec![("classID", count(u32::MAX.into())), ("priorities", list(priority.boxed()))]);
    some_of(vec![
        ("devices", list(rule)),
        ("memory", memory),
        ("cpu", cpu),
        ("pids", pids),
        ("blockIO", block_io()),
        ("hugepageLimits", list(huge.boxed())),
        ("network", network),
        (
            "unified",
            btree_map("[a-z.]{1,9}", "[a-z0-9 ]{0,9}", 1..3).prop_map(|all| json!(all)).boxed(),
        ),
    ])
}

fn block_io() -> Values {
    let weight = || count(u16::MAX.into());
    let weighted = with(
        vec![("major", count(255)), ("minor", count(255))],
        vec![("weight", weight()), ("leafWeight", weight())],
    );
    let throttles =
        || list(any::<u64>().prop_map(|n| json!({ "major": 8, "minor": 0, "rate": n })).boxed());
    some_of(vec![
        ("weight", weight()),
        ("leafWeight", weight()),
        ("weightDevice", list(weighted)),
        ("throttleReadBpsDevice", throttles()),
        ("throttleWriteBpsDevice", throttles()),
        ("throttleReadIOPSDevice", throttles()),
        ("throttleWriteIOPSDevice", throttles()),
    ])
}

fn seccomp() -> Values {
    const ERRORS: &[&str] = &["SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"];
    const OTHERS: &[&str] = &["SCMP_ACT_ALLOW", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_LOG"];
    const ARCHES: &[&str] = &["SCMP_ARCH_X86_64", "SCMP_ARCH_MIPSEL64N32", "SCMP_ARCH_S390X"];
    const FLAGS: &[&str] = &["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"];
    const ORDERS: &[&str] = &["SCMP_CMP_NE", "SCMP_CMP_LT", "SCMP_CMP_EQ", "SCMP_CMP_GT"];
    let any64 = || any::<u64>().prop_map(Value::from).boxed();
    let index = || (0..6).prop_map(Value::from).boxed();
    let plain = with(
        vec![("index", index()), ("value", any64()), ("op", one_of(ORDERS))],
        vec![("valueTwo", count(u64::MAX))],
    );
    let masked = with(
        vec![
            ("index", index()),
            ("value", any64()),
            ("valueTwo", any64()),
            ("op", one_of(&["SCMP_CMP_MASKED_EQ"])),
        ],
        vec![],
    );
    let arguments = || list(prop_oneof![plain.clone(), masked.clone()].boxed());
    let erring = with(
        vec![("names", texts()), ("action", one_of(ERRORS)), ("errnoRet", count(4095))],
        vec![("args", arguments())],
    );
    let other =
        with(vec![("names", texts()), ("action", one_of(OTHERS))], vec![("args", arguments())]);
    with(
        vec![("defaultAction", one_of(ERRORS))],
        vec![
            ("architectures", list(one_of(ARCHES))),
            ("flags", list(one_of(FLAGS))),
            ("syscalls", list(prop_oneof![erring, other].boxed())),
        ],
    )
}

fn linux() -> Values {
    const NAMESPACES: &[&str] =
        &["pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time"];
    let mappings = || {
        list(
            any::<(u32, u32, u32)>()
                .prop_map(|(h, c, n)| json!({ "hostID": h, "containerID": c, "size": n }))
                .boxed(),
        )
    };
    let namespace = with(vec![("type", one_of(NAMESPACES))], vec![("path", text())]);
    let device = with(
        vec![
            ("path", text()),
            ("type", one_of(&["b", "c", "u", "p"])),
            ("major", amount()),
            ("minor", amount()),
            ("fileMode", count(0o7777)),
        ],
        vec![("uid", count(u32::MAX.into())), ("gid", count(u32::MAX.into()))],
    );
    some_of(vec![
        ("uidMappings", mappings()),
        ("gidMappings", mappings()),
        ("sysctl", map()),
        ("resources", resources()),
        ("cgroupsPath", text()),
        ("namespaces", list(namespace)),
        ("devices", list(device)),
        ("seccomp", seccomp()),
        ("rootfsPropagation", text()),
        ("maskedPaths", texts()),
        ("readonlyPaths", texts()),
        ("mountLabel", text()),
        ("intelRdt", some_of(vec![("l3CacheSchema", text())])),
    ])
}

fn config() -> Values {
    let mount = with(
        vec![("destination", text())],
        vec![("type", text()), ("source", text()), ("options", texts())],
    );
    let hooks = || {
        list(with(
            vec![("path", text())],
            vec![("args", texts()), ("env", texts()), ("timeout", amount())],
        ))
    };
    let moments =
        ["prestart", "poststart", "poststop", "createRuntime", "createContainer", "startContainer"];
    with(
        vec![("ociVersion", text())],
        vec![
            ("process", process()),
            ("root", with(vec![("path", text())], vec![("readonly", yes())])),
            ("hostname", text()),
            ("mounts", list(mount)),
            ("hooks", some_of(moments.map(|moment| (moment, hooks())).to_vec())),
            ("annotations", map()),
            ("linux", linux()),
        ],
    )
}

proptest! {
    #[test]
    fn what_is_sent_is_received(config in config()) {
        let spec: oci_spec::runtime::Spec = parse(config);
        prop_assert_eq!(carried(&spec), spec);
    }
}
