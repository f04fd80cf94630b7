//! What the guest needs before and beside its containers: the duties of PID 1, kernel modules,
//! the way to the host, devices that come and go, clock, entropy and network.
//!
//! Nothing in here knows a container or the agent protocol. Everything is called from the agent's
//! single thread, so no function blocks for longer than a system call does.

pub mod boot;
pub mod channel;
pub mod clock;
pub mod cmdline;
pub mod entropy;
pub mod free_memory;
pub mod hotplug;
pub mod modules;
pub mod mounts;
pub mod network;
pub mod open_files;
mod pci;
pub mod power;
pub mod reaper;
pub mod root;
pub mod serial;
pub mod uevent;
pub mod vsock_peers;
