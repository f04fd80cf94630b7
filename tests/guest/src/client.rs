//! The agent under test, as a client sees it, and the processes that it is asked to run.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kata_agent_api::agent::*;
use kata_agent_api::agent_ttrpc::AgentServiceClient;
use kata_agent_api::convert::{process_to_wire, spec_to_wire};
use kata_channel::ChannelStream;
use oci_spec::runtime::{Process, Spec};
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use ttrpc::context::Context;

use crate::machine::Machine;

/// Long enough for an emulated guest on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// As long may a stream be silent.
const SILENCE: Duration = Duration::from_secs(30);

/// The circumstances of a request: how long it may take.
#[must_use]
pub fn context() -> Context {
    ttrpc::context::with_duration(PATIENCE)
}

/// A guest with a sandbox. An init's exec id is its container's id.
pub struct Guest {
    /// Its agent, for requests that have no method here.
    pub agent: AgentServiceClient,
    /// The machine that it runs on.
    pub machine: Machine,
    /// A root file system with busybox; all containers have the same.
    pub rootfs: String,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest").field("machine", &self.machine).finish_non_exhaustive()
    }
}

/// What a process has left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: Vec<u8>,
    /// Its exit status, or 128 and the signal.
    pub status: i32,
}

impl Output {
    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

impl Guest {
    fn spec(&self, id: &str, process: &serde_json::Value) -> Result<Spec> {
        let mut spec = json!({
            "ociVersion": "1.0.2",
            "root": {"path": self.rootfs},
            "hostname": "box",
            "process": process,
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                    "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                    "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
                {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                    "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs",
                    "options": ["nosuid", "noexec", "nodev", "ro"]},
                {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                    "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}
            ],
            "linux": {
                "cgroupsPath": format!("/default/{id}"),
                "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                    {"type": "cgroup"}, {"type": "network"}],
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
                "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"],
                "resources": {"memory": {"limit": 64 << 20}, "pids": {"limit": 100},
                    "cpu": {"shares": 1024, "quota": 200_000, "period": 100_000}}
            }
        });
        spec["process"]["capabilities"] = capabilities();
        Ok(serde_json::from_value(spec)?)
    }

    /// Makes a container, whose specification `change` may change.
    pub async fn create_with(&self, id: &str, change: impl FnOnce(&mut Spec)) -> Result<()> {
        let mut spec = self.spec(id, &process(&["true"]))?;
        change(&mut spec);
        let mut request = CreateContainerRequest::new();
        (request.container_id, request.exec_id) = (id.into(), id.into());
        request.OCI = Some(spec_to_wire(&spec)?).into();
        self.agent.create_container(context(), &request).await?;
        Ok(())
    }

    /// Makes a container that is to run `process`.
    pub async fn create(&self, id: &str, process: serde_json::Value) -> Result<()> {
        let process: Process = serde_json::from_value(process)?;
        let capabilities = serde_json::from_value(capabilities())?;
        self.create_with(id, |spec| {
            let mut process = process;
            process.set_capabilities(Some(capabilities));
            spec.set_process(Some(process));
        })
        .await
    }

    /// Starts a container's init.
    pub async fn start(&self, id: &str) -> Result<()> {
        let request = StartContainerRequest { container_id: id.into(), ..Default::default() };
        self.agent.start_container(context(), &request).await?;
        Ok(())
    }

    /// Runs one more process in a container.
    pub async fn exec(&self, id: &str, exec_id: &str, process: serde_json::Value) -> Result<()> {
        let mut process: Process = serde_json::from_value(process)?;
        process.set_capabilities(Some(serde_json::from_value(capabilities())?));
        let mut request = ExecProcessRequest::new();
        (request.container_id, request.exec_id) = (id.into(), exec_id.into());
        request.process = Some(process_to_wire(&process)?).into();
        self.agent.exec_process(context(), &request).await?;
        Ok(())
    }

    /// Sends a signal to a process, or with an empty exec id to all of the container.
    pub async fn signal(&self, id: &str, exec_id: &str, signal: u32) -> Result<()> {
        let mut request = SignalProcessRequest::new();
        (request.container_id, request.exec_id, request.signal) =
            (id.into(), exec_id.into(), signal);
        self.agent.signal_process(context(), &request).await?;
        Ok(())
    }

    /// Waits for a process to end, and tells its status.
    pub async fn wait(&self, id: &str, exec_id: &str) -> Result<i32> {
        let mut request = WaitProcessRequest::new();
        (request.container_id, request.exec_id) = (id.into(), exec_id.into());
        Ok(self.agent.wait_process(context(), &request).await?.status)
    }

    /// Writes to a process's standard input; nothing closes it.
    pub async fn write(&self, id: &str, exec_id: &str, data: &[u8]) -> Result<()> {
        let mut request = WriteStreamRequest::new();
        (request.container_id, request.exec_id) = (id.into(), exec_id.into());
        request.data = data.to_vec();
        self.agent.write_stdin(context(), &request).await?;
        Ok(())
    }

    /// Reads what has come of a process's output, at its end nothing.
    pub async fn read(&self, id: &str, exec_id: &str, stderr: bool) -> Result<Vec<u8>> {
        let mut request = ReadStreamRequest::new();
        (request.container_id, request.exec_id) = (id.into(), exec_id.into());
        request.len = 1 << 20;
        let response = if stderr {
            self.agent.read_stderr(context(), &request).await?
        } else {
            self.agent.read_stdout(context(), &request).await?
        };
        Ok(response.data)
    }

    async fn read_all(&self, id: &str, exec_id: &str, stderr: bool) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            let data = self.read(id, exec_id, stderr).await?;
            if data.is_empty() {
                return Ok(all);
            }
            all.extend(data);
        }
    }

    /// Reads a process's output to the end, and waits for its status.
    pub async fn output(&self, id: &str, exec_id: &str) -> Result<Output> {
        let (stdout, stderr, status) = tokio::join!(
            self.read_all(id, exec_id, false),
            self.read_all(id, exec_id, true),
            self.wait(id, exec_id)
        );
        Ok(Output { stdout: stdout?, stderr: stderr?, status: status? })
    }

    /// Kills what is left of a container and removes it.
    pub async fn remove(&self, id: &str) -> Result<()> {
        let request = RemoveContainerRequest { container_id: id.into(), ..Default::default() };
        self.agent.remove_container(context(), &request).await?;
        Ok(())
    }

    /// A container from creation to removal.
    pub async fn run(&self, id: &str, process: serde_json::Value) -> Result<Output> {
        self.create(id, process).await?;
        self.start(id).await?;
        let output = self.output(id, id).await?;
        self.remove(id).await?;
        Ok(output)
    }

    /// One more process, from its start to its end.
    pub async fn exec_output(&self, id: &str, exec_id: &str, args: &[&str]) -> Result<Output> {
        self.exec(id, exec_id, process(args)).await?;
        self.output(id, exec_id).await
    }
}

/// A process of the specification that runs this command as root.
#[must_use]
pub fn process(args: &[&str]) -> serde_json::Value {
    json!({"args": args, "cwd": "/", "env": ["PATH=/bin:/sbin", "B=1", "A=2"],
        "user": {"uid": 0, "gid": 0}, "noNewPrivileges": true})
}

/// A process that runs a script.
#[must_use]
pub fn sh(script: &str) -> serde_json::Value {
    process(&["sh", "-c", script])
}

/// The few capabilities that all processes of these tests have.
#[must_use]
pub fn capabilities() -> serde_json::Value {
    let set = json!(["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_SETUID", "CAP_SETGID"]);
    json!({"bounding": set, "effective": set, "permitted": set})
}

/// What an error of the agent says, without its code.
#[must_use]
pub fn sentence(error: &anyhow::Error) -> String {
    match error.downcast_ref::<ttrpc::Error>() {
        Some(ttrpc::Error::RpcStatus(status)) => status.message().to_owned(),
        _ => error.to_string(),
    }
}

/// Reads what a port of the agent says until it has said `wanted`, and gives all of it.
///
/// # Errors
///
/// When it ends, or is silent for half a minute, before.
pub async fn read_until(stream: &mut ChannelStream, wanted: &str) -> Result<String> {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.contains(wanted) {
        let read = tokio::time::timeout(SILENCE, stream.read(&mut buffer)).await;
        let length = read.with_context(|| format!("no {wanted:?} in {text}"))??;
        ensure!(length > 0, "it ended: {text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    Ok(text)
}
