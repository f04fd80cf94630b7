//! The agent in the guest, as the host calls it: one method per request, plain types in and out.
//!
//! The guest is not trusted. What it answers is bounded and checked here, so that callers may use
//! it: a read never returns more than was asked for, texts have no control characters and an end,
//! ids are ids. A message is never longer than 4 MiB.
//!
//! Every request has the deadline given to [`AgentClient::new`], except those that wait for
//! something to happen in the guest, which say so.
//!
//! Dropping the future of a call does not take the request back: it is sent, and the answer is
//! thrown away. (To cut a message off in the middle would end the connection for everyone.)

mod client;
mod container;
mod error;
mod file;
mod guest;
mod network;
mod process;
mod sandbox;
mod stats;
#[cfg(test)]
mod tests;
mod text;

pub use client::AgentClient;
pub use container::{GuestContainer, GuestDevice};
pub use error::AgentError;
pub use file::{FileContent, GuestFile};
pub use guest::{AgentVersion, GuestDetails};
pub use kata_agent_api::BootStamps;
pub use network::{GuestAddress, GuestInterface, GuestNeighbour, GuestRoute, IpFamily};
pub use process::{ProcessEnd, ProcessId};
pub use sandbox::{GuestSandbox, GuestStorage, GuestStorageGroup};
pub use stats::{
    BlockIoStats, BlockIoStatsEntry, ContainerStats, CpuStats, HugePageStats, MemoryStats,
    MemoryUsage, PidsStats, ThrottlingStats,
};
