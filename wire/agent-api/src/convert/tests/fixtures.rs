//! Configurations as container engines write them.

use serde_json::{Value, json};

/// What containerd writes for `ctr run` of an ordinary image.
pub(super) fn containerd_config() -> Value {
    let capabilities = json!([
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETFCAP",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_KILL",
        "CAP_AUDIT_WRITE"
    ]);
    json!({
        "ociVersion": "1.0.2-dev",
        "process": {
            "user": { "uid": 0, "gid": 0, "additionalGids": [0, 10] },
            "args": ["sh", "-c", "echo hello"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
                "inheritable": [], "ambient": []
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true
        },
        "root": { "path": "rootfs", "readonly": false },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc",
              "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/run", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] }
        ],
        "linux": {
            "resources": {
                "devices": [
                    { "allow": false, "access": "rwm" },
                    { "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm" },
                    { "allow": true, "type": "c", "major": 5, "minor": 0, "access": "rwm" },
                    { "allow": true, "type": "c", "major": 136, "access": "rwm" }
                ],
                "memory": { "limit": 268435456, "swap": -1 },
                "cpu": { "shares": 1024, "quota": -1, "period": 100000 },
                "pids": { "limit": 0 }
            },
            "cgroupsPath": "/default/hello",
            "namespaces": [
                { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
                { "type": "network", "path": "/run/netns/hello" }, { "type": "cgroup" }
            ],
            "maskedPaths": ["/proc/acpi", "/proc/kcore"],
            "readonlyPaths": ["/proc/bus", "/proc/sys"]
        }
    })
}

/// The shape of the default filter of containerd and Docker.
pub(super) fn seccomp_profile() -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [
            { "names": ["read", "write"], "action": "SCMP_ACT_ALLOW" },
            { "names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [
                { "index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ" }
            ]},
            { "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 },
            { "names": ["reboot"], "action": "SCMP_ACT_ERRNO" }
        ]
    })
}

/// Fields and the changes of a configuration that set them.
pub(super) fn not_carried() -> Vec<(&'static str, Value)> {
    let linux = |field: &str, value: Value| json!({ "linux": { field: value } });
    let resources = |field: &str, value: Value| linux("resources", json!({ field: value }));
    let process = |field: &str, value: Value| json!({ "process": { field: value } });
    let mapping = json!([{ "hostID": 1000, "containerID": 0, "size": 1 }]);
    vec![
        ("domainname", json!({ "domainname": "example.org" })),
        (
            "mounts[].uidMappings",
            json!({ "mounts": [
                { "destination": "/m", "uidMappings": mapping, "gidMappings": mapping }
            ]}),
        ),
        ("process.scheduler", process("scheduler", json!({ "policy": "SCHED_FIFO" }))),
        ("process.ioPriority", process("ioPriority", json!({ "class": "IOPRIO_CLASS_IDLE" }))),
        ("process.execCPUAffinity", process("execCPUAffinity", json!({ "initial": "0-1" }))),
        ("linux.personality", linux("personality", json!({ "domain": "LINUX32" }))),
        ("linux.timeOffsets", linux("timeOffsets", json!({ "boottime": { "secs": 1 } }))),
        ("linux.netDevices", linux("netDevices", json!({ "eth0": {} }))),
        ("linux.intelRdt.closID", linux("intelRdt", json!({ "closID": "guaranteed" }))),
        (
            "a linux.devices[].fileMode of 0",
            linux(
                "devices",
                json!([
                    { "path": "/dev/x", "type": "c", "major": 1, "minor": 3, "fileMode": 0 }
                ]),
            ),
        ),
        ("linux.resources.rdma", resources("rdma", json!({ "mlx5_0": { "hcaHandles": 1 } }))),
        ("linux.resources.cpu.idle", resources("cpu", json!({ "idle": 1 }))),
        ("linux.resources.cpu.burst", resources("cpu", json!({ "burst": 1000 }))),
        (
            "a linux.resources.memory.swappiness of 0",
            resources("memory", json!({ "swappiness": 0 })),
        ),
        (
            "linux.resources.memory.checkBeforeUpdate",
            resources("memory", json!({ "checkBeforeUpdate": true })),
        ),
        (
            "a linux.resources.devices[].major of 0",
            resources(
                "devices",
                json!([
                    { "allow": true, "type": "c", "major": 0, "minor": 0 }
                ]),
            ),
        ),
        (
            "linux.seccomp.listenerPath",
            linux(
                "seccomp",
                json!({
                    "defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/run/listener.sock"
                }),
            ),
        ),
        (
            "a linux.seccomp.syscalls[].errnoRet of 0",
            linux(
                "seccomp",
                json!({
                    "defaultAction": "SCMP_ACT_ALLOW",
                    "syscalls": [{ "names": ["reboot"], "action": "SCMP_ACT_ERRNO", "errnoRet": 0 }]
                }),
            ),
        ),
    ]
}
