//! What an administrator may set about Cloud Hypervisor.

use std::path::PathBuf;
use std::time::Duration;

/// Settings that are the same for all VMs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudHypervisorSettings {
    /// The VMM's program: a path, or a name that is looked for in the usual directories.
    pub program: PathBuf,
    /// Whether the VMM filters its own system calls.
    pub seccomp: bool,
    /// The file that the guest's random numbers come from, like `/dev/urandom`.
    pub entropy_source: PathBuf,
    /// The time between two tries to reach an agent that does not listen yet.
    pub dial_again: Duration,
}

impl Default for CloudHypervisorSettings {
    fn default() -> Self {
        Self {
            program: "cloud-hypervisor".into(),
            seccomp: true,
            entropy_source: "/dev/urandom".into(),
            dial_again: Duration::from_millis(10),
        }
    }
}
