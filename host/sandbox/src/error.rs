//! What can go wrong, in sentences that reach the engine's user as they are.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use kata_agent_client::AgentError;
use kata_hypervisor::HypervisorError;
use kata_linux::cgroup::CgroupError;
use kata_storage::StorageError;
use thiserror::Error;

use crate::{FootprintError, JoinError, Refusal};

/// Why a sandbox or one of its processes could not do what was asked.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// The request does not fit the state.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The agent said no.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// A directory could not be shared, or a root file system not be mounted.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The VM did not take a disk with a root file system.
    #[error("cannot give the VM a container's root file system")]
    Disk(#[from] HypervisorError),
    /// An interface that came after the boot could not be joined.
    #[error(transparent)]
    Network(#[from] JoinError),
    /// The VM cannot run where the container may.
    #[error(transparent)]
    Footprint(#[from] FootprintError),
    /// The VM, its file server or its agent is gone.
    #[error("the sandbox {id} is gone: {reason}")]
    Gone {
        /// The sandbox's id.
        id: String,
        /// What happened.
        reason: String,
    },
    /// The host's side of the process's streams cannot be used.
    #[error("cannot open the process's stdio")]
    Stdio(#[source] crate::StdioError),
    /// The spec lacks something that every container has.
    #[error("the container's spec has no {0}")]
    Incomplete(&'static str),
}

/// How far a boot came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootStage {
    /// The VMM runs; the guest's kernel has not handed over to the agent.
    Kernel,
    /// The agent has started and has not answered.
    Agent,
}

impl fmt::Display for BootStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "the guest's kernel did not reach the agent",
            Self::Agent => "the guest's agent started but did not answer",
        })
    }
}

/// Why a sandbox could not be booted. Nothing of it is left then.
#[derive(Debug, Error)]
pub enum BootError {
    /// The sandbox's directory or its record could not be made.
    #[error(transparent)]
    Footprint(#[from] FootprintError),
    /// The host's cgroup could not be made or entered.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The shared directory or its file server could not be set up.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The network could not be joined.
    #[error(transparent)]
    Network(#[from] JoinError),
    /// The driver could not start the VM, or not in time.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// A stage took longer than it may.
    #[error("{stage} within {} s (`reconnect_timeout_ms`); {last_words}", after.as_secs())]
    Late {
        /// The stage that did not end.
        stage: BootStage,
        /// Its deadline.
        after: Duration,
        /// What the VMM and the console said last, and what to do about it.
        last_words: String,
    },
    /// The VM ended before its agent answered.
    #[error("{stage}: {cause}; {last_words}")]
    Died {
        /// How far it had come.
        stage: BootStage,
        /// Why it ended, as far as that can be told.
        cause: String,
        /// What the VMM and the console said last, and what to do about it.
        last_words: String,
    },
    /// The file server ended while the VM was booting.
    #[error("the file server {program} ended during the boot: {last_words}")]
    FileServer {
        /// Its program.
        program: PathBuf,
        /// What it said last.
        last_words: String,
    },
    /// There are no random numbers for a guest from a template.
    #[error("cannot read random numbers for the guest")]
    Entropy(#[source] std::io::Error),
    /// The agent answered, and refused to set the sandbox up.
    #[error("the guest's agent could not set up the sandbox: {0}")]
    Agent(#[source] AgentError),
}
