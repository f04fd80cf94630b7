//! Containers.

use kata_agent_api::{agent, convert};
use oci_spec::runtime::{LinuxNamespaceType, LinuxResources, Spec};

use crate::client::request;
use crate::sandbox::storage_message;
use crate::{AgentClient, AgentError, ContainerStats, GuestStorage};

/// The longest that the agent may take to clean up after a container, in seconds.
const REMOVE_TIMEOUT_SECS: u32 = 10;

/// A container to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestContainer {
    /// Names the container, and its init process.
    pub id: String,
    /// Its configuration with the guest's paths. What only the host is to know must be gone.
    /// Without a PID namespace it sees the guest's processes, with an agent of this project.
    pub spec: Spec,
    /// What to mount for it, in this order.
    pub storages: Vec<GuestStorage>,
    /// Disks that it uses itself, of which its specification has device nodes with the host's
    /// numbers.
    pub devices: Vec<GuestDevice>,
    /// Whether it joins the sandbox's shared PID namespace, or that of another container which
    /// it is to look into: the agent finds out which.
    pub shared_pid_namespace: bool,
}

/// A disk for a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestDevice {
    /// The agent's driver, `blk` or `mmioblk`.
    pub driver: String,
    /// Where the driver finds it.
    pub address: String,
    /// Its node in the container.
    pub container_path: String,
}

impl AgentClient {
    /// Makes a container whose init process waits for [`Self::start_container`].
    ///
    /// # Errors
    ///
    /// [`AgentError::Convert`] when the specification says what the protocol cannot carry,
    /// [`AgentError::InvalidArgument`] when its process has a umask, or its limits name files of
    /// version 2 of cgroups, and the agent is another project's.
    pub async fn create_container(&self, container: &GuestContainer) -> Result<(), AgentError> {
        if let Some(process) = container.spec.process() {
            self.check_umask("CreateContainer", process)?;
        }
        let linux = container.spec.linux().as_ref();
        if let Some(resources) = linux.and_then(|linux| linux.resources().as_ref()) {
            self.check_unified("CreateContainer", resources)?;
        }
        let message = agent::CreateContainerRequest {
            container_id: container.id.clone(),
            exec_id: container.id.clone(),
            storages: container.storages.iter().map(storage_message).collect(),
            OCI: Some(convert::spec_to_wire(&container.spec)?).into(),
            devices: container.devices.iter().map(device_message).collect(),
            sandbox_pidns: container.shared_pid_namespace,
            guest_pidns: !has_pid_namespace(&container.spec),
            ..Default::default()
        };
        request!(self, agent.create_container, "CreateContainer", message).map(drop)
    }

    /// Lets a created container run the user's program.
    pub async fn start_container(&self, id: &str) -> Result<(), AgentError> {
        let message =
            agent::StartContainerRequest { container_id: id.to_owned(), ..Default::default() };
        request!(self, agent.start_container, "StartContainer", message).map(drop)
    }

    /// Kills what is left of a container and removes it.
    pub async fn remove_container(&self, id: &str) -> Result<(), AgentError> {
        let message = agent::RemoveContainerRequest {
            container_id: id.to_owned(),
            timeout: REMOVE_TIMEOUT_SECS,
            ..Default::default()
        };
        request!(self, agent.remove_container, "RemoveContainer", message).map(drop)
    }

    /// Changes a container's limits; what is absent stays.
    pub async fn update_container(
        &self,
        id: &str,
        resources: &LinuxResources,
    ) -> Result<(), AgentError> {
        self.check_unified("UpdateContainer", resources)?;
        let message = agent::UpdateContainerRequest {
            container_id: id.to_owned(),
            resources: Some(convert::resources_to_wire(resources)?).into(),
            ..Default::default()
        };
        request!(self, agent.update_container, "UpdateContainer", message).map(drop)
    }

    /// Reads a container's cgroup counters. They are the guest's word, and only their number and
    /// the length of their names are checked.
    pub async fn stats_container(&self, id: &str) -> Result<ContainerStats, AgentError> {
        let message =
            agent::StatsContainerRequest { container_id: id.to_owned(), ..Default::default() };
        let answer = request!(self, agent.stats_container, "StatsContainer", message)?;
        ContainerStats::read(answer.cgroup_stats.unwrap_or_default())
    }

    /// Freezes all processes of a container.
    pub async fn pause_container(&self, id: &str) -> Result<(), AgentError> {
        let message =
            agent::PauseContainerRequest { container_id: id.to_owned(), ..Default::default() };
        request!(self, agent.pause_container, "PauseContainer", message).map(drop)
    }

    /// Thaws a paused container.
    pub async fn resume_container(&self, id: &str) -> Result<(), AgentError> {
        let message =
            agent::ResumeContainerRequest { container_id: id.to_owned(), ..Default::default() };
        request!(self, agent.resume_container, "ResumeContainer", message).map(drop)
    }
}

fn has_pid_namespace(spec: &Spec) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    namespaces.into_iter().flatten().any(|one| one.typ() == LinuxNamespaceType::Pid)
}

/// A path is what the host knows of the guest's, anything else is an address in the driver's terms.
fn device_message(device: &GuestDevice) -> agent::Device {
    let (id, vm_path) = match device.address.starts_with('/') {
        true => (String::new(), device.address.clone()),
        false => (device.address.clone(), String::new()),
    };
    agent::Device {
        id,
        type_: device.driver.clone(),
        vm_path,
        container_path: device.container_path.clone(),
        ..Default::default()
    }
}
