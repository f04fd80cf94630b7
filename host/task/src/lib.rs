//! containerd's Task API for one sandbox: what the shim serves, and what is left to do when the
//! shim is dead.
//!
//! [`serve`] answers requests until the engine says shut down; [`cleanup`] removes what a killed
//! shim left behind.
//!
//! ```text
//!   ttrpc ─▶ service (one method each) ─▶ owner (sandbox, records) ─▶ kata-sandbox
//!                                            ▲   │ stdio: fifos, files, log programs
//!   containerd ◀─ events (queue, retry) ─────┘   ▼
//! ```

mod adapter;
mod creation;
mod error;
mod events;
mod hooks;
mod metrics;
mod owner;
mod processes;
mod rest;
mod serve;
mod service;
mod stand_in;
mod stdio;

pub use kata_sandbox::{LONGEST_SWEEP, Moment};
pub use serve::{ServeOptions, cleanup, make_up_for_hooks, serve};
