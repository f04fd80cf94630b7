//! What the host may ask of the guest: the agent's ttrpc services, and the state behind them.
//!
//! ```text
//!  serve ── streams by port ──▶ ttrpc ──▶ rpc (one method each: check, convert, call)
//!    │                                     │
//!    ├── log (port 1025)                   ▼
//!    ├── shell (port 1026)               agent ── sandbox ── container ── processes
//!    ├── dns_relay (port 1053)             │
//!    └── port_forward (port 1080)          └── storage, files, network, guest ...
//! ```
//!
//! Everything runs on one thread, since the agent forks (see `kata-guest-container`). Nothing
//! blocks it but short system calls.

mod agent;
mod container;
mod devices;
mod disk;
mod dns_relay;
mod files;
mod guest;
mod health;
mod id;
pub mod log;
mod metrics;
mod modprobe;
mod network;
mod path;
mod port_forward;
mod processes;
mod rpc;
mod sandbox;
pub mod serve;
mod shell;
mod stats;
mod status;
mod storage;

pub use agent::{Agent, Settings};

/// The version that the agent tells the host.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
