//! An OCI runtime specification of a test's own, for what `ctr run` has no flag for.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// A specification like the one that `ctr` makes, with changes.
#[derive(Debug, Clone)]
pub struct Spec(Value);

impl Spec {
    /// A container on the root file system in `rootfs`, which runs `command`.
    pub fn new(rootfs: &Path, command: &[&str]) -> Self {
        let mut spec = base();
        spec["root"] = json!({ "path": rootfs, "readonly": false });
        spec["process"]["args"] = json!(command);
        Self(spec)
    }

    /// With the value at `pointer` (RFC 6901), like `/process/cwd`, replaced; missing parts on the
    /// way are made.
    ///
    /// # Panics
    /// When the pointer leads through something that is not an object.
    #[must_use]
    pub fn set(mut self, pointer: &str, value: Value) -> Self {
        let mut place = &mut self.0;
        for part in pointer.split('/').skip(1) {
            place = &mut place[part];
        }
        *place = value;
        self
    }

    /// With one more entry in the array at `pointer`.
    ///
    /// # Panics
    /// When there is no array.
    #[must_use]
    pub fn push(mut self, pointer: &str, value: Value) -> Self {
        let array = self.0.pointer_mut(pointer).and_then(Value::as_array_mut);
        array.unwrap_or_else(|| panic!("there is no array at {pointer}")).push(value);
        self
    }

    /// In the network namespace at `path`.
    #[must_use]
    pub fn in_network(self, path: &str) -> Self {
        let own = ["pid", "ipc", "uts", "mount"].map(|kind| json!({ "type": kind }));
        let network = json!({ "type": "network", "path": path });
        let all: Vec<Value> = own.into_iter().chain([network]).collect();
        self.set("/linux/namespaces", all.into())
    }

    pub(crate) fn write(&self, file: &Path, namespace: &str, id: &str) -> Result<()> {
        let mut spec = self.0.clone();
        spec["linux"]["cgroupsPath"] = json!(format!("/{namespace}/{id}"));
        fs::write(file, spec.to_string())
            .with_context(|| format!("cannot write {}", file.display()))
    }
}

fn base() -> Value {
    let capabilities =
        json!(["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_SETGID", "CAP_SETUID"]);
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    json!({
        "ociVersion": "1.0.2",
        "hostname": "own-spec",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "cwd": "/",
            "env": ["PATH=/usr/bin:/bin"],
            "noNewPrivileges": true,
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
        },
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": {
            "namespaces": [
                { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
                { "type": "network" },
            ],
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/irq", "/proc/sys"],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_reach_where_they_point() {
        let spec = Spec::new(Path::new("/rootfs"), &["true"])
            .set("/linux/sysctl/kernel.msgmax", json!("9000"))
            .push("/mounts", json!({ "destination": "/mnt" }));
        assert_eq!(spec.0["linux"]["sysctl"]["kernel.msgmax"], "9000");
        assert_eq!(spec.0["mounts"].as_array().unwrap().len(), 6);
        assert_eq!(spec.0["root"]["path"], "/rootfs");
    }
}
