//! The words of QMP that this driver speaks and understands.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

/// The longest reason that is kept of what QEMU says.
const MAX_REASON: usize = 512;

/// A command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    /// Leave the negotiation mode.
    QmpCapabilities,
    /// Stop the CPUs.
    Stop,
    /// Let the CPUs run.
    Cont,
    /// Keep the descriptor that comes with this command under a name.
    GetFd(String),
    /// Close the descriptor that is kept under this name.
    CloseFd(String),
    /// Keep the descriptor that comes with this command in the set of this number.
    AddFd(u64),
    /// Give up the set of descriptors of this number.
    RemoveFd(u64),
    /// Add a node of a disk with these options.
    BlockdevAdd(Value),
    /// Give a node of a disk these options.
    BlockdevReopen(Value),
    /// Remove the node of a disk of this name, which nothing may use.
    BlockdevDel(String),
    /// Add a network back end with these arguments.
    NetdevAdd(Value),
    /// Remove the network back end of this name, which no device may use.
    NetdevDel(String),
    /// Add a device with these arguments.
    DeviceAdd(Value),
    /// Ask the guest to let go of the device of this name.
    DeviceDel(String),
    /// List the places for virtual CPUs.
    QueryHotpluggableCpus,
    /// Set a number of an object.
    QomSet { path: &'static str, property: &'static str, value: u64 },
    /// Tell a number of an object.
    QomGet { path: &'static str, property: &'static str },
    /// Switch on what the migration of a guest can do besides.
    MigrateSetCapabilities(&'static [&'static str]),
    /// Save the guest into the descriptor that is kept under this name, and stop it.
    Migrate { fd: &'static str },
    /// Let a guest go on whose saved state comes from the descriptor that is kept under this name.
    MigrateIncoming { fd: &'static str },
    /// Tell how far either is.
    QueryMigrate,
}

impl Command {
    /// Its name in the protocol.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::QmpCapabilities => "qmp_capabilities",
            Self::Stop => "stop",
            Self::Cont => "cont",
            Self::GetFd(_) => "getfd",
            Self::CloseFd(_) => "closefd",
            Self::AddFd(_) => "add-fd",
            Self::RemoveFd(_) => "remove-fd",
            Self::BlockdevAdd(_) => "blockdev-add",
            Self::BlockdevReopen(_) => "blockdev-reopen",
            Self::BlockdevDel(_) => "blockdev-del",
            Self::NetdevAdd(_) => "netdev_add",
            Self::NetdevDel(_) => "netdev_del",
            Self::DeviceAdd(_) => "device_add",
            Self::DeviceDel(_) => "device_del",
            Self::QueryHotpluggableCpus => "query-hotpluggable-cpus",
            Self::QomSet { .. } => "qom-set",
            Self::QomGet { .. } => "qom-get",
            Self::MigrateSetCapabilities(_) => "migrate-set-capabilities",
            Self::Migrate { .. } => "migrate",
            Self::MigrateIncoming { .. } => "migrate-incoming",
            Self::QueryMigrate => "query-migrate",
        }
    }

    fn arguments(&self) -> Option<Value> {
        match self {
            Self::QmpCapabilities
            | Self::Stop
            | Self::Cont
            | Self::QueryHotpluggableCpus
            | Self::QueryMigrate => None,
            Self::GetFd(name) | Self::CloseFd(name) => Some(json!({ "fdname": name })),
            Self::AddFd(set) | Self::RemoveFd(set) => Some(json!({ "fdset-id": set })),
            Self::BlockdevAdd(arguments)
            | Self::NetdevAdd(arguments)
            | Self::DeviceAdd(arguments) => Some(arguments.clone()),
            Self::BlockdevReopen(options) => Some(json!({ "options": [options] })),
            Self::BlockdevDel(node) => Some(json!({ "node-name": node })),
            Self::NetdevDel(name) | Self::DeviceDel(name) => Some(json!({ "id": name })),
            Self::QomSet { path, property, value } => {
                Some(json!({ "path": path, "property": property, "value": value }))
            }
            Self::QomGet { path, property } => Some(json!({ "path": path, "property": property })),
            Self::MigrateSetCapabilities(names) => {
                let on = |name| json!({ "capability": name, "state": true });
                Some(json!({ "capabilities": names.iter().map(on).collect::<Vec<_>>() }))
            }
            Self::Migrate { fd } | Self::MigrateIncoming { fd } => {
                Some(json!({ "uri": format!("fd:{fd}") }))
            }
        }
    }

    /// The line that sends it.
    pub(super) fn line(&self) -> String {
        let name = self.name();
        match self.arguments() {
            None => format!("{{\"execute\":\"{name}\"}}\n"),
            Some(arguments) => format!("{{\"execute\":\"{name}\",\"arguments\":{arguments}}}\n"),
        }
    }
}

/// What QEMU may say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Incoming {
    /// Its first line.
    Greeting,
    /// The outcome of a command: what it tells, or an error in words.
    Answer(Result<Value, String>),
    /// The guest is at its end, for this reason.
    End(String),
    /// The device of this name is not there any more.
    Deleted(String),
    /// The guest has opened a serial port.
    PortOpened,
    /// The guest's state has been saved, or read.
    Migrated,
    /// Anything else, which later versions may add to.
    Other,
}

#[derive(Deserialize)]
struct Message {
    #[serde(rename = "QMP")]
    greeting: Option<IgnoredAny>,
    #[serde(rename = "return")]
    returned: Option<Value>,
    error: Option<Refusal>,
    event: Option<String>,
    data: Option<EventData>,
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

#[derive(Deserialize, Default)]
struct EventData {
    reason: Option<String>,
    device: Option<String>,
    open: Option<bool>,
    status: Option<String>,
}

/// What a line says. One that is no message of the protocol says nothing.
pub(super) fn parse(line: &[u8]) -> Incoming {
    let Ok(message) = serde_json::from_slice::<Message>(line) else { return Incoming::Other };
    if message.greeting.is_some() {
        return Incoming::Greeting;
    }
    if let Some(returned) = message.returned {
        return Incoming::Answer(Ok(returned));
    }
    if let Some(refusal) = message.error {
        return Incoming::Answer(Err(readable(&refusal.desc)));
    }
    let data = message.data.unwrap_or_default();
    let EventData { reason, device, open, status } = data;
    match (message.event.as_deref(), device) {
        (Some("SHUTDOWN" | "RESET"), _) => {
            Incoming::End(readable(reason.as_deref().unwrap_or("guest-shutdown")))
        }
        (Some("GUEST_PANICKED"), _) => Incoming::End("guest-panic".to_owned()),
        (Some("DEVICE_DELETED"), Some(device)) => Incoming::Deleted(device),
        (Some("VSERPORT_CHANGE"), _) if open == Some(true) => Incoming::PortOpened,
        (Some("MIGRATION"), _) if status.as_deref() == Some("completed") => Incoming::Migrated,
        _ => Incoming::Other,
    }
}

/// Cut to size, and without characters that are obeyed and not shown: it ends in logs and on
/// terminals.
fn readable(text: &str) -> String {
    text.chars().take(MAX_REASON).map(|c| if kata_log::is_hidden(c) { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_of_qemu_are_understood() {
        let greeting = br#"{"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": ["oob"]}}"#;
        assert_eq!(parse(greeting), Incoming::Greeting);
        assert_eq!(parse(br#"{"return": {}}"#), Incoming::Answer(Ok(json!({}))));
        assert_eq!(parse(br#"{"return": 805306368}"#), Incoming::Answer(Ok(json!(805_306_368))));
        assert_eq!(
            parse(br#"{"error": {"class": "CommandNotFound", "desc": "no such command"}}"#),
            Incoming::Answer(Err("no such command".into()))
        );
        assert_eq!(
            parse(br#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}"#),
            Incoming::End("guest-reset".into())
        );
        assert_eq!(parse(br#"{"event": "STOP"}"#), Incoming::Other);
        let deleted = br#"{"event": "DEVICE_DELETED", "data": {"device": "disk-later1", "path": "/machine/peripheral/disk-later1"}}"#;
        assert_eq!(parse(deleted), Incoming::Deleted("disk-later1".into()));
        let part = br#"{"event": "DEVICE_DELETED", "data": {"path": "/machine/peripheral/disk-later1/virtio-backend"}}"#;
        assert_eq!(parse(part), Incoming::Other);
        assert_eq!(
            parse(br#"{"event": "GUEST_PANICKED", "data": {"action": "pause"}}"#),
            Incoming::End("guest-panic".into())
        );
        let opened =
            br#"{"event": "VSERPORT_CHANGE", "data": {"open": true, "id": "serial0-port"}}"#;
        assert_eq!(parse(opened), Incoming::PortOpened);
        for other in [
            br#"{"event": "VSERPORT_CHANGE", "data": {"open": false}}"#.as_slice(),
            br#"{"event": "MIGRATION", "data": {"status": "active"}}"#,
        ] {
            assert_eq!(parse(other), Incoming::Other);
        }
        let migrated = br#"{"event": "MIGRATION", "data": {"status": "completed"}}"#;
        assert_eq!(parse(migrated), Incoming::Migrated);
    }

    #[test]
    fn reasons_are_bounded_and_printable() {
        let line = format!("{{\"error\": {{\"desc\": \"\\u001b{}\"}}}}", "x".repeat(5000));
        let Incoming::Answer(Err(reason)) = parse(line.as_bytes()) else { panic!("no error") };
        assert_eq!(reason.chars().count(), MAX_REASON);
        assert!(reason.starts_with("?xxx"));
    }

    proptest! {
        #[test]
        fn no_line_makes_the_parser_panic(line: Vec<u8>) {
            let _ = parse(&line);
        }
    }
}
