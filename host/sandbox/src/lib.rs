//! The sandbox: one virtual machine, the agent in it, and the containers that they run.
//!
//! [`Sandbox::boot`] takes a [`SandboxPlan`], in which everything has been decided, and brings the
//! VM to the point where its agent answers. From then on the [`Sandbox`] owns the VM, the agent's
//! channel, the shared directory and its file server, and the [`Ledger`] of processes. Callers ask;
//! what happens by itself comes out through an [`EventSink`].
//!
//! ```text
//!             boot                        stop, or the last container deleted
//!   (plan) ─────────▶ up ──────────────────────────────────────────────▶ gone
//!      │              │  VMM, file server or agent lost                    ▲
//!      │ BootError    └───────────────▶ failed (every process: 137) ──────┘
//!      ▼
//!   (nothing left)
//! ```

// What comes up from the leaves as it is, so that whoever uses a sandbox needs none of them.
pub use kata_agent_client::{
    AgentError, BlockIoStats, BlockIoStatsEntry, ContainerStats, CpuStats, HugePageStats,
    MemoryStats, MemoryUsage, PidsStats, ThrottlingStats,
};
pub use kata_network::Model as NetworkModel;
pub use kata_storage::{ImageCache, RootfsMount};
pub use kata_timeline::{Moment, Recorder, Stage};

mod boot;
mod carry;
mod diagnosis;
mod error;
mod footprint;
mod ledger;
mod memory;
mod network;
mod placement;
mod plan;
mod process;
mod resolv_conf;
mod sandbox;
mod stdio;
mod timing;
mod vcpus;

pub use error::{BootError, BootStage, SandboxError};
pub use footprint::{Footprint, FootprintError, LONGEST_SWEEP, sweep, sweep_of};
pub use ledger::{Deletion, Exit, Ledger, ProcessKey, Refusal, Status};
pub use network::{JoinError, check_network};
pub use placement::{Placement, PlacementError};
pub use plan::{
    ContainerPlan, Deadlines, DiskDevice, DiskRoot, ImagePlan, MemoryPlan, NetworkPlan,
    SandboxMount, SandboxPlan, VcpusPlan,
};
pub use resolv_conf::ResolvConf;
pub use sandbox::Sandbox;
pub use stdio::{
    AttachedStdio, Delivery, EventSink, GuestProcess, SandboxEvent, Stdio, StdioError,
};
