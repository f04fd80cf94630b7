//! Small, safe faces on Linux: processes that never outlive their parent, mounts, cgroups, the
//! TSC's frequency.
//!
//! Knows no VM and no container.

pub mod bpf;
pub mod capabilities;
pub mod cgroup;
pub mod descriptors;
pub mod directory;
pub mod id_list;
pub mod identifier;
pub mod identity;
pub mod jail;
pub mod landlock;
mod last_words;
pub mod memory;
pub mod mount;
pub mod netns;
pub mod open_files;
pub mod pidfd;
pub mod process;
pub mod program;
pub mod signal_mask;
mod threads;
pub mod tsc;
pub mod user;
