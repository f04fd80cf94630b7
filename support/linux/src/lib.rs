//! Small, safe faces on Linux: processes that never outlive their parent, mounts, cgroups, the TSC's frequency.
//!
//! Knows no VM and no container.

pub mod cgroup;
pub mod jail;
pub mod mount;
pub mod process;
pub mod tsc;
