//! What device rules allow. The kernel's log is the one device that every machine has, that does no
//! harm, and that no container has by itself.

use kata_e2e::Spec;
use serde_json::{Value, json};

use crate::compare::Probe;

/// Every way to open it.
pub(crate) const LOG: &[Probe] = &[
    Probe::new(
        "writing a device",
        "mknod /dev/log c 1 11; echo '<7>a test' > /dev/log && echo written",
    ),
    Probe::new("reading a device", "exec 3</dev/log && echo opened"),
    Probe::new("reading and writing a device", "exec 3<>/dev/log && echo opened"),
    Probe::new("null", "mknod /dev/none c 1 3; echo x > /dev/none && cat /dev/none && echo null"),
];

/// Rules with a word on what they mean.
pub(crate) fn tables() -> [(&'static str, Value); 3] {
    let nothing = json!({ "allow": false, "access": "rwm" });
    let everything = json!({ "allow": true, "access": "rwm" });
    let writing =
        |allow| json!({ "allow": allow, "type": "c", "major": 1, "minor": 11, "access": "w" });
    [
        ("only writing", json!([nothing, writing(true)])),
        ("all but writing", json!([everything, writing(false)])),
        ("everything, as if privileged", json!([nothing, everything])),
    ]
}

/// Allowed to make nodes, and to read the log as far as capabilities go.
pub(crate) fn with_rules(spec: Spec, rules: &Value) -> Spec {
    let capabilities = json!(["CAP_MKNOD", "CAP_SYSLOG"]);
    ["bounding", "effective", "permitted"]
        .into_iter()
        .fold(spec, |spec, set| {
            spec.set(&format!("/process/capabilities/{set}"), capabilities.clone())
        })
        .set("/linux/resources/devices", rules.clone())
}
