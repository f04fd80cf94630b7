//! What a shim and containerd say to each other: the invocation, the task service, events, and
//! metrics.
//!
//! The messages are those of `containerd-shim-protos`; this crate gives them one place with stable
//! names, serves one implementation of [`Task`] to every generation of containerd, and holds the
//! rules that no message definition states: how the socket's address is made, how `start` must
//! answer, who may connect.
//!
//! Only types and codecs: the few functions that touch the file system say so.

pub mod address;
pub mod blocking;
pub mod bootstrap;
mod event;
mod info;
mod listener;
pub mod metadata;
pub mod metrics;
pub mod options;
pub mod stand_in;
mod task;
mod timestamp;

pub use event::{Envelope, Events, EventsClient, ForwardRequest, TaskEvent, create_events};
pub use info::{DeleteResponse, RuntimeInfo, features_any, runtime_info};
pub use listener::listener;
pub use task::{Task, TaskClient, api, task_services};
pub use timestamp::timestamp;

pub use protobuf;
pub use protobuf::well_known_types::any::Any;
pub use ttrpc;

/// Events of tasks, as containerd's clients receive them. [`TaskEvent`] gives each its topic.
pub mod events {
    pub use containerd_shim_protos::events::task::{
        TaskCheckpointed, TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO,
        TaskOOM, TaskPaused, TaskResumed, TaskStart,
    };
}
