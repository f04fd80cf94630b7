//! A kubelet's side of a pod: what it says to the engine over CRI, in words for tests.
//!
//! ```text
//!   node(|node| {                                       a containerd that speaks CRI, on a node of its own
//!       let pod = node.pod("web").start()?                PodPlan ─▶ Pod: RunPodSandbox
//!       let server = pod.shell("…").start()?              ContainerPlan ─▶ Container: CreateContainer, StartContainer
//!       server.exec(["cat", "/etc/hosts"])?               ExecSync
//!       pod.forward(80)?.send(b"…")?                     PortForward
//!       pod.remove()                                      StopPodSandbox, RemovePodSandbox
//!   })                                                  the leak check, after pods that a failed test has left are removed
//! ```

mod container;
mod forward;
mod grpc;
mod node;
mod pod;

pub use container::{Container, ContainerPlan, Said};
pub use forward::Forward;
pub use node::{Node, node, node_under, node_with};
pub use pod::{Pod, PodPlan};

/// The messages of CRI, described where CRI is.
#[allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::needless_pass_by_value,
    clippy::semicolon_if_nothing_returned,
    clippy::too_many_lines,
    clippy::unwrap_used,
    reason = "generated code"
)]
pub mod messages {
    include!(concat!(env!("OUT_DIR"), "/modules.rs"));
    pub use cri::*;
}
