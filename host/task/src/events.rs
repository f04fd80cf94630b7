//! What containerd is told without having asked.

mod publisher;
mod task_events;

pub(crate) use publisher::Publisher;
pub(crate) use task_events::TaskEvents;
