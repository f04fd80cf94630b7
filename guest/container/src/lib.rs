//! Containers in the guest.
//!
//! A container's init is made by `libcontainer`, its further processes by [`exec`]; both run in a
//! forked child of the agent ([`fork`]), because joining namespaces, changing ids and installing
//! seccomp filters cannot be undone, and because the agent is single-threaded so that it may fork.
//!
//! ```text
//!  agent ──fork──▶ maker ──libcontainer──▶ intermediate ──▶ init (waits for start)
//!    ▲               │ pid, pidfd                            │
//!    └───────────────┘      maker exits: init becomes the agent's child
//!
//!  agent ──clone3 into the cgroup and pid namespace──▶ process ──setns, drop, exec──▶ command
//! ```
//!
//! What libcontainer is not asked to do, and why:
//! - cgroup limits ([`cgroup`]): create and update must do the same, and its arithmetic overflows
//!   for block I/O weights;
//! - exec: it would drop the container's seccomp profile, join namespaces through a pid that may
//!   have been recycled, and reads the whole bundle again for every process;
//! - `$HOME`: it asks the C library, which in a static binary loads name service modules out of the
//!   container's own file system.

pub mod cgroup;
pub mod command;
mod console;
mod copy_up;
pub mod create;
mod cwd;
mod descriptor;
pub mod environment;
pub mod exec;
mod executor;
pub mod fork;
mod links;
pub mod namespaces;
pub mod process;
mod report;
pub mod spec;
mod start_hooks;
pub mod stdio;
