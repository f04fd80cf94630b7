//! The guest's kernel and the agent itself.

use std::time::{SystemTime, UNIX_EPOCH};

use kata_agent_api::agent;
use kata_agent_api::cpu_count_request;
use kata_agent_api::health::CheckRequest;
use kata_agent_api::health::health_check_response::ServingStatus;
use kata_linux::identifier;

use crate::client::request;
use crate::{AgentClient, AgentError, text};

/// The longest name or version that is kept, in bytes.
const MAX_NAME: usize = 256;
/// The most names that a list of abilities may hold.
const MAX_NAMES: usize = 1024;

/// Who answers on the other side.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AgentVersion {
    /// The protocol's version.
    pub protocol: String,
    /// The agent's version.
    pub agent: String,
}

/// What the guest and its agent can do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestDetails {
    /// The size in which memory is hot-plugged, in bytes; 0 where the kernel does not tell.
    pub memory_block_size: u64,
    /// Whether the kernel must be told of hot-plugged memory.
    pub memory_probe: bool,
    /// The agent's version.
    pub version: String,
    /// Whether the agent is PID 1.
    pub is_init: bool,
    /// The storage drivers that it knows.
    pub storage_drivers: Vec<String>,
    /// Whether it applies system call filters.
    pub supports_seccomp: bool,
    /// What it was built with, e.g. `agent-policy`.
    pub extra_features: Vec<String>,
}

impl AgentClient {
    /// Whether the agent takes requests.
    ///
    /// # Errors
    ///
    /// [`AgentError::FailedPrecondition`] when it answers that it does not.
    pub async fn check(&self) -> Result<(), AgentError> {
        let answer = request!(self, health.check, "Check", CheckRequest::new())?;
        if answer.status == ServingStatus::SERVING.into() {
            return Ok(());
        }
        let message = "the guest's agent does not serve".to_owned();
        Err(AgentError::FailedPrecondition { method: "Check", message })
    }

    /// Who answers.
    pub async fn version(&self) -> Result<AgentVersion, AgentError> {
        let answer = request!(self, health.version, "Version", CheckRequest::new())?;
        Ok(AgentVersion {
            protocol: text::one_line(&answer.grpc_version, MAX_NAME),
            agent: text::one_line(&answer.agent_version, MAX_NAME),
        })
    }

    /// What the guest and its agent can do.
    pub async fn get_guest_details(&self) -> Result<GuestDetails, AgentError> {
        let message = agent::GuestDetailsRequest {
            mem_block_size: true,
            mem_hotplug_probe: true,
            ..Default::default()
        };
        let answer = request!(self, agent.get_guest_details, "GetGuestDetails", message)?;
        let details = answer.agent_details.unwrap_or_default();
        let names = |names: Vec<String>| -> Vec<String> {
            names.iter().take(MAX_NAMES).map(|name| text::one_line(name, MAX_NAME)).collect()
        };
        Ok(GuestDetails {
            memory_block_size: answer.mem_block_size_bytes,
            memory_probe: answer.support_mem_hotplug_probe,
            version: text::one_line(&details.version, MAX_NAME),
            is_init: details.init_daemon,
            storage_drivers: names(details.storage_handlers),
            supports_seccomp: details.supports_seccomp,
            extra_features: names(details.extra_features),
        })
    }

    /// Waits, without a deadline, until the kernel has killed a process for want of memory, and
    /// answers its container's id.
    pub async fn get_oom_event(&self) -> Result<String, AgentError> {
        let message = agent::GetOOMEventRequest::new();
        let answer = request!(self, agent.get_oom_event, "GetOOMEvent", message, forever)?;
        if identifier::check("container id", &answer.container_id).is_err() {
            return Err(AgentError::hostile("GetOOMEvent", "a name that is no container's id"));
        }
        Ok(answer.container_id)
    }

    /// The metrics of agent and guest in the Prometheus text format. They are the guest's word,
    /// and nothing in them is checked but their length, 4 MiB.
    pub async fn get_metrics(&self) -> Result<String, AgentError> {
        let message = agent::GetMetricsRequest::new();
        Ok(request!(self, agent.get_metrics, "GetMetrics", message)?.metrics)
    }

    /// Sets the guest's clock. A time before 1970 is read as 1970.
    pub async fn set_guest_date_time(&self, time: SystemTime) -> Result<(), AgentError> {
        let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let message = agent::SetGuestDateTimeRequest {
            Sec: i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX),
            Usec: since_epoch.subsec_micros().into(),
            ..Default::default()
        };
        request!(self, agent.set_guest_date_time, "SetGuestDateTime", message).map(drop)
    }

    /// Feeds the guest's random number generator and reseeds it.
    pub async fn reseed_random_dev(&self, seed: &[u8]) -> Result<(), AgentError> {
        let message = agent::ReseedRandomDevRequest { data: seed.to_owned(), ..Default::default() };
        request!(self, agent.reseed_random_dev, "ReseedRandomDev", message).map(drop)
    }

    /// Makes the guest use `count` processors, at least 1, of which `new` have come and are not in
    /// use yet; others it stops using. Returns when that is done. An agent that is not this
    /// project's takes up the new ones and goes on to use all others.
    pub async fn use_cpus(&self, count: u32, new: u32) -> Result<(), AgentError> {
        let message = cpu_count_request(count, new);
        request!(self, agent.online_cpu_mem, "OnlineCPUMem", message).map(drop)
    }
}
