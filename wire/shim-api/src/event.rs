//! Which topic and which type name each task event has.

use std::time::SystemTime;

use protobuf::Message;
use protobuf::well_known_types::any::Any;

use crate::events::{
    TaskCheckpointed, TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM,
    TaskPaused, TaskResumed, TaskStart,
};
use crate::timestamp;

pub use containerd_shim_protos::api::ForwardRequest;
pub use containerd_shim_protos::shim::event::Envelope;
pub use containerd_shim_protos::shim_async::{Events, EventsClient, create_events};

/// A message that containerd takes as an event.
pub trait TaskEvent: Message {
    /// The topic that subscribers filter by.
    const TOPIC: &'static str;
    /// The message's full name: containerd wants it bare in [`Any`], without
    /// `type.googleapis.com/`.
    const TYPE_NAME: &'static str;

    /// The event, packed the way containerd unpacks it.
    fn to_any(&self) -> Any {
        let value =
            self.write_to_bytes().expect("a message that lives in memory can be written to memory");
        Any { type_url: Self::TYPE_NAME.to_owned(), value, ..Any::default() }
    }

    /// The event as it travels: dated `at`, in containerd's `namespace`.
    fn to_envelope(&self, namespace: &str, at: SystemTime) -> Envelope {
        Envelope {
            timestamp: Some(timestamp(at)).into(),
            namespace: namespace.to_owned(),
            topic: Self::TOPIC.to_owned(),
            event: Some(self.to_any()).into(),
            ..Envelope::default()
        }
    }
}

macro_rules! topics {
    ($($message:ident => $topic:literal),* $(,)?) => {$(
        impl TaskEvent for $message {
            const TOPIC: &'static str = $topic;
            const TYPE_NAME: &'static str = concat!("containerd.events.", stringify!($message));
        }
    )*};
}

topics! {
    TaskCreate => "/tasks/create",
    TaskStart => "/tasks/start",
    TaskOOM => "/tasks/oom",
    TaskExit => "/tasks/exit",
    TaskDelete => "/tasks/delete",
    TaskExecAdded => "/tasks/exec-added",
    TaskExecStarted => "/tasks/exec-started",
    TaskPaused => "/tasks/paused",
    TaskResumed => "/tasks/resumed",
    TaskCheckpointed => "/tasks/checkpointed",
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use protobuf::MessageFull;

    use super::*;

    fn assert_named<E: TaskEvent + MessageFull>() {
        assert_eq!(E::TYPE_NAME, E::descriptor().full_name());
    }

    #[test]
    fn type_names_are_those_of_the_messages() {
        assert_named::<TaskCreate>();
        assert_named::<TaskStart>();
        assert_named::<TaskOOM>();
        assert_named::<TaskExit>();
        assert_named::<TaskDelete>();
        assert_named::<TaskExecAdded>();
        assert_named::<TaskExecStarted>();
        assert_named::<TaskPaused>();
        assert_named::<TaskResumed>();
        assert_named::<TaskCheckpointed>();
    }

    #[test]
    fn an_envelope_carries_namespace_topic_time_and_the_event_itself() {
        let exit = TaskExit { container_id: "c".into(), exit_status: 137, ..TaskExit::default() };
        let at = SystemTime::UNIX_EPOCH + Duration::new(5, 7);
        let envelope = exit.to_envelope("k8s.io", at);
        assert_eq!(
            (envelope.namespace.as_str(), envelope.topic.as_str()),
            ("k8s.io", "/tasks/exit")
        );
        assert_eq!((envelope.timestamp.seconds, envelope.timestamp.nanos), (5, 7));
        assert_eq!(envelope.event.type_url, "containerd.events.TaskExit");
        assert_eq!(TaskExit::parse_from_bytes(&envelope.event.value).unwrap(), exit);
    }
}
