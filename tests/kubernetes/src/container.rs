//! Containers of a pod.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use kata_e2e::{Deadline, Image};

use crate::messages::{
    ContainerConfig, ContainerMetadata, ContainerState, ContainerStats, ContainerStatsRequest,
    ContainerStatsResponse, ContainerStatus, ContainerStatusRequest, ContainerStatusResponse,
    CreateContainerRequest, CreateContainerResponse, Device, ExecSyncRequest, ExecSyncResponse,
    ImageSpec, LinuxContainerResources, LinuxContainerSecurityContext, Mount, NamespaceMode,
    Nothing, RemoveContainerRequest, StartContainerRequest, StopContainerRequest,
    UpdateContainerResourcesRequest,
};
use crate::pod::Pod;

/// One CreateContainer with its StartContainer: what they are told.
#[derive(Debug)]
#[must_use = "it runs only when start is called"]
pub struct ContainerPlan<'a> {
    pod: &'a Pod<'a>,
    config: ContainerConfig,
}

impl<'a> ContainerPlan<'a> {
    pub(crate) fn new(pod: &'a Pod<'a>, name: &str, command: &[&str]) -> Self {
        let image = ImageSpec { image: Image::busybox().reference(), ..Default::default() };
        let mut config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), ..Default::default() })
                .into(),
            image: Some(image).into(),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            log_path: format!("{name}.log"),
            ..Default::default()
        };
        // Where the kubelet sets them, and where nobody does.
        config
            .linux
            .mut_or_insert_default()
            .security_context
            .mut_or_insert_default()
            .namespace_options = pod.config.linux.security_context.namespace_options.clone();
        Self { pod, config }
    }

    /// The container that takes the place of one that has ended: the second is attempt 1.
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.config.metadata.mut_or_insert_default().attempt = attempt;
        self
    }

    /// With a file or directory of the host.
    pub fn mount(mut self, host: &Path, container: &str, readonly: bool) -> Self {
        let host_path = host.display().to_string();
        let container_path = container.to_owned();
        self.config.mounts.push(Mount {
            container_path,
            host_path,
            readonly,
            ..Default::default()
        });
        self
    }

    /// With a block device of the host, as a kubelet has it passed for `volumeDevices`.
    pub fn device(mut self, host: &str, container: &str, readonly: bool) -> Self {
        self.config.devices.push(Device {
            container_path: container.to_owned(),
            host_path: host.to_owned(),
            permissions: if readonly { "r" } else { "mrw" }.to_owned(),
            ..Default::default()
        });
        self
    }

    /// With these limits.
    pub fn resources(mut self, resources: LinuxContainerResources) -> Self {
        self.config.linux.mut_or_insert_default().resources = Some(resources).into();
        self
    }

    /// With what a `securityContext` says.
    pub fn security(mut self, set: impl FnOnce(&mut LinuxContainerSecurityContext)) -> Self {
        set(self.config.linux.mut_or_insert_default().security_context.mut_or_insert_default());
        self
    }

    /// Which sees the processes of `target` (`kubectl debug --target`).
    pub fn target(self, target: &Container<'_>) -> Self {
        let id = target.id.clone();
        self.security(|security| {
            let options = security.namespace_options.mut_or_insert_default();
            (options.pid, options.target_id) = (NamespaceMode::TARGET.into(), id);
        })
    }

    /// Makes and starts it.
    pub fn start(self) -> Result<Container<'a>> {
        let Self { pod, config } = self;
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config).into(),
            sandbox_config: Some(pod.config.clone()).into(),
            ..Default::default()
        };
        let answer: CreateContainerResponse = pod.node.call("CreateContainer", &request)?;
        pod.node.containerd().answer_for(&answer.container_id);
        let container = Container { pod, id: answer.container_id };
        let request = StartContainerRequest { container_id: container.id(), ..Default::default() };
        pod.node.call::<Nothing>("StartContainer", &request)?;
        Ok(container)
    }
}

/// What a command in a container has said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// Its exit code.
    pub code: i32,
}

/// A container of a pod.
#[derive(Debug)]
pub struct Container<'a> {
    pod: &'a Pod<'a>,
    id: String,
}

impl Container<'_> {
    fn id(&self) -> String {
        self.id.clone()
    }

    /// Runs a shell with `script` in it. Waits for `seconds`, without an end if that is 0; then the
    /// command is killed, which is an error.
    pub fn exec(&self, script: &str, seconds: i64) -> Result<Said> {
        let cmd = ["sh", "-c", script].map(str::to_owned).into();
        let request = ExecSyncRequest {
            container_id: self.id(),
            cmd,
            timeout: seconds,
            ..Default::default()
        };
        let answer: ExecSyncResponse = self.pod.node.call("ExecSync", &request)?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let (stdout, stderr) = (text(answer.stdout), text(answer.stderr));
        Ok(Said { stdout, stderr, code: answer.exit_code })
    }

    /// What a shell with `script` prints in it, without the last line end. It has to end well.
    pub fn says(&self, script: &str) -> Result<String> {
        let said = self.exec(script, 0)?;
        ensure!(said.code == 0, "{script}: {said:?}");
        Ok(said.stdout.trim_end().to_owned())
    }

    /// Changes its limits.
    pub fn update(&self, resources: LinuxContainerResources) -> Result<()> {
        let linux = Some(resources).into();
        let request = UpdateContainerResourcesRequest {
            container_id: self.id(),
            linux,
            ..Default::default()
        };
        self.pod.node.call::<Nothing>("UpdateContainerResources", &request).map(drop)
    }

    /// What it uses.
    pub fn stats(&self) -> Result<ContainerStats> {
        let request = ContainerStatsRequest { container_id: self.id(), ..Default::default() };
        let answer: ContainerStatsResponse = self.pod.node.call("ContainerStats", &request)?;
        answer.stats.into_option().context("the engine has no statistics")
    }

    /// Asks it to end, kills it after `seconds`, and says how it ended.
    pub fn stop(&self, seconds: i64) -> Result<i32> {
        let request = StopContainerRequest {
            container_id: self.id(),
            timeout: seconds,
            ..Default::default()
        };
        self.pod.node.call::<Nothing>("StopContainer", &request)?;
        Ok(self.status()?.exit_code)
    }

    /// Whether it runs.
    pub fn is_running(&self) -> Result<bool> {
        Ok(self.status()?.state == ContainerState::CONTAINER_RUNNING.into())
    }

    /// Waits until it has ended by itself, and says how.
    pub fn ends(&self) -> Result<i32> {
        let deadline = Deadline::for_command();
        loop {
            let status = self.status()?;
            if status.state == ContainerState::CONTAINER_EXITED.into() {
                return Ok(status.exit_code);
            }
            ensure!(!deadline.remaining().is_zero(), "it does not end: {status:?}");
        }
    }

    /// What the engine knows of it.
    pub fn status(&self) -> Result<ContainerStatus> {
        let request = ContainerStatusRequest { container_id: self.id(), ..Default::default() };
        let answer: ContainerStatusResponse = self.pod.node.call("ContainerStatus", &request)?;
        answer.status.into_option().context("the engine says nothing of the container")
    }

    /// Removes it; its process has to have ended.
    pub fn remove(self) -> Result<()> {
        let request = RemoveContainerRequest { container_id: self.id(), ..Default::default() };
        self.pod.node.call::<Nothing>("RemoveContainer", &request).map(drop)
    }
}
