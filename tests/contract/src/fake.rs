//! A driver without a machine: its VMM is a process that waits, and its guest an agent that is a
//! task of the tests' own.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use kata_agent_api::agent::{CopyFileRequest, CreateSandboxRequest, UpdateInterfaceRequest};
use kata_agent_api::agent_ttrpc::{AgentService, create_agent_service};
use kata_agent_api::empty::Empty;
use kata_agent_api::health::{CheckRequest, HealthCheckResponse, health_check_response};
use kata_agent_api::health_ttrpc::{Health, create_health};
use kata_channel::{AGENT_PORT, ChannelStream};
use kata_hypervisor::{
    Capabilities, Disks, Finding, GuestRoot, Hypervisor, HypervisorError, NicSpec, Pause,
    ShareSource, SharedFileSystem, Vm, VmExit, VmSpec, Vmm,
};
use kata_linux::process::Spawn;
use tokio::io::DuplexStream;
use tokio::sync::watch;
use ttrpc::Code;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};

const NAME: &str = "fake";

/// How much a stream holds.
const STREAM: usize = 64 * 1024;

/// The driver. It shares directories, and can do nothing else that is left to drivers.
#[derive(Debug)]
pub struct Fake {
    /// Whether its VMs can be paused. It is of the version that cannot, if one is named.
    pub pause: Pause,
}

#[async_trait]
impl Hypervisor for Fake {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            emulation: true,
            image: false,
            disks: Disks::None,
            named_taps: None,
            shared_file_system: SharedFileSystem::Inline,
            max_vcpus: 2,
            pause: self.pause,
            vhost_net: false,
            hot_plug: false,
            more_memory: false,
            more_vcpus: false,
            templates: false,
        }
    }

    fn program(&self) -> &Path {
        Path::new("sleep")
    }

    fn check(&self, _kernel: &Path) -> Vec<Finding> {
        Vec::new()
    }

    async fn boot(&self, spec: &VmSpec) -> Result<Box<dyn Vm>, HypervisorError> {
        spec.refuse_hot_plug(NAME)?;
        spec.refuse_more_memory(NAME)?;
        spec.refuse_more_vcpus(NAME)?;
        spec.refuse_disks(NAME)?;
        if let GuestRoot::Image(_) = spec.root {
            return Err(unsupported("images"));
        }
        let mut shared = None;
        for share in &spec.shares {
            match &share.source {
                ShareSource::Directory(directory) => shared = Some(directory.clone()),
                ShareSource::Server(_) => return Err(unsupported("a file server")),
            }
        }
        let spawn = Spawn::new("sleep").title(format!("sandbox-{}", spec.sandbox));
        let child = spawn.args(["infinity"]).spawn();
        let child =
            child.map_err(|error| HypervisorError::not_spawned("sleep".to_owned(), error))?;
        let vmm = Vmm::new(Arc::new(child), &b"kata-agent is a task\n"[..]);
        let running = watch::Sender::new(true);
        let agent = Arc::new(FakeAgent { shared, running: running.subscribe() });
        Ok(Box::new(FakeVm { vmm, pause: self.pause, running, agent }))
    }
}

fn unsupported(what: &'static str) -> HypervisorError {
    HypervisorError::Unsupported { driver: NAME, what }
}

struct FakeVm {
    vmm: Vmm,
    pause: Pause,
    running: watch::Sender<bool>,
    agent: Arc<FakeAgent>,
}

impl FakeVm {
    fn run(&self, run: bool) -> Result<(), HypervisorError> {
        match self.pause {
            Pause::Always => {}
            Pause::Never => return Err(unsupported("pausing")),
            Pause::Except(version) => return Err(unsupported(version)),
        }
        if self.vmm.child().exit().is_some() {
            let reason = "it has ended".to_owned();
            return Err(HypervisorError::Control { command: "run", reason });
        }
        self.running.send_replace(run);
        Ok(())
    }
}

#[async_trait]
impl Vm for FakeVm {
    fn vmm(&self) -> &Vmm {
        &self.vmm
    }

    async fn dial(&self, port: u32) -> Result<ChannelStream, HypervisorError> {
        if self.vmm.child().exit().is_some() {
            return Err(HypervisorError::ChannelClosed);
        }
        if port != AGENT_PORT {
            return Err(HypervisorError::Dial { port, source: io::ErrorKind::NotFound.into() });
        }
        let (stream, mut host_end) = tokio::io::duplex(STREAM);
        let (mut guest_end, served) = tokio::io::duplex(STREAM);
        let server = serve(self.agent.clone(), served).await;
        let server = server.map_err(|_| HypervisorError::ChannelClosed)?;
        let vmm = Arc::clone(self.vmm.child());
        tokio::spawn(async move {
            let _server = server;
            tokio::select! {
                _ = vmm.exited() => {}
                _ = tokio::io::copy_bidirectional(&mut host_end, &mut guest_end) => {}
            }
        });
        Ok(Box::new(stream))
    }

    async fn exited(&self) -> VmExit {
        VmExit::of(self.vmm.exited().await, None)
    }

    async fn pause(&self) -> Result<(), HypervisorError> {
        self.run(false)
    }

    async fn resume(&self) -> Result<(), HypervisorError> {
        self.run(true)
    }

    async fn add_nic(&self, _nic: &NicSpec) -> Result<(), HypervisorError> {
        Err(unsupported("network devices that come late"))
    }
}

impl fmt::Debug for FakeVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeVm").field("pid", &self.pid()).finish_non_exhaustive()
    }
}

async fn serve(agent: Arc<FakeAgent>, stream: DuplexStream) -> ttrpc::Result<Server> {
    let connection = futures::stream::iter([Ok::<_, io::Error>(stream)]);
    let mut server = Server::new()
        .add_listener(Listener::new(connection.chain(futures::stream::pending())))
        .register_service(create_agent_service(agent.clone()))
        .register_service(create_health(agent));
    server.start().await?;
    Ok(server)
}

/// Answers as long as its machine runs.
struct FakeAgent {
    shared: Option<PathBuf>,
    running: watch::Receiver<bool>,
}

impl FakeAgent {
    async fn runs(&self) {
        // Without the sender the machine is gone, and nobody hears the answer.
        let _ = self.running.clone().wait_for(|running| *running).await;
    }
}

#[async_trait]
impl AgentService for FakeAgent {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        _: CreateSandboxRequest,
    ) -> ttrpc::Result<Empty> {
        self.runs().await;
        Ok(Empty::new())
    }

    async fn copy_file(&self, _: &TtrpcContext, file: CopyFileRequest) -> ttrpc::Result<Empty> {
        self.runs().await;
        let name = Path::new(&file.path).file_name();
        match (&self.shared, name) {
            (Some(shared), Some(name)) => fs::write(shared.join(name), file.data)
                .map(|()| Empty::new())
                .map_err(|error| refusal(&error.to_string())),
            _ => Err(refusal("nothing is shared")),
        }
    }

    async fn update_interface(
        &self,
        _: &TtrpcContext,
        _: UpdateInterfaceRequest,
    ) -> ttrpc::Result<kata_agent_api::types::Interface> {
        Err(refusal("there is no network"))
    }
}

#[async_trait]
impl Health for FakeAgent {
    async fn check(&self, _: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<HealthCheckResponse> {
        self.runs().await;
        let status = health_check_response::ServingStatus::SERVING.into();
        Ok(HealthCheckResponse { status, ..Default::default() })
    }
}

fn refusal(message: &str) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(Code::INTERNAL, message))
}
