//! The agent's service: every method of the protocol, and where it is done.
//!
//! What makes or removes processes runs to its end even if the host's connection breaks meanwhile,
//! so that nothing is left half-made.

use std::sync::Arc;

use async_trait::async_trait;
use kata_agent_api::agent::*;
use kata_agent_api::agent_ttrpc::AgentService;
use kata_agent_api::convert::resources_from_wire;
use kata_agent_api::csi::VolumeStatsResponse;
use kata_agent_api::empty::Empty;
use kata_agent_api::types;
use kata_agent_api::{BootStamps, say_out_of_memory};
use kata_guest_container::cgroup::DeviceRules;
use kata_guest_container::stdio::Output;
use kata_guest_setup::boot::Clocks;
use kata_guest_setup::{boot, clock, entropy};
use ttrpc::Code;
use ttrpc::r#async::TtrpcContext;

use crate::agent::Agent;
use crate::status::{Tell, invalid, not_found, refuse, unimplemented};
use crate::{files, metrics, stats};

/// Most bytes of output in one answer.
const MAX_OUTPUT: usize = 1 << 20;

/// What to do about requests that are for the memory agent.
const NO_MEMORY_AGENT: &str = "set `mem_agent_enable = false` on the host: it has no memory agent";

type Done = ttrpc::Result<Empty>;

/// The service over an agent.
pub(crate) struct Service {
    pub(crate) agent: Arc<Agent>,
}

impl Service {
    /// Runs `work` as a task of its own, which goes on when the caller has gone.
    async fn whole<F>(&self, work: impl FnOnce(Arc<Agent>) -> F) -> Done
    where
        F: Future<Output = ttrpc::Result<()>> + Send + 'static,
    {
        let task = tokio::spawn(work(Arc::clone(&self.agent)));
        let result = task.await.unwrap_or_else(|error| {
            Err(refuse(Code::INTERNAL, format!("the agent failed: {error}")))
        });
        result.map(|()| Empty::new())
    }

    async fn read(
        &self,
        request: ReadStreamRequest,
        output: Output,
    ) -> ttrpc::Result<ReadStreamResponse> {
        let container = self.agent.container(&request.container_id)?;
        let process = self.agent.process(&container, &request.exec_id)?;
        let limit = match usize::try_from(request.len) {
            Ok(wanted) if wanted > 0 => wanted.min(MAX_OUTPUT),
            _ => MAX_OUTPUT,
        };
        let mut response = ReadStreamResponse::new();
        response.data = process.read(output, limit).await.map_err(Tell::tell)?;
        if response.data.is_empty() {
            container.read_to_end(&request.exec_id);
        }
        Ok(response)
    }

    fn close_stdin_of(&self, container_id: &str, exec_id: &str) -> ttrpc::Result<()> {
        let container = self.agent.container(container_id)?;
        self.agent.process(&container, exec_id)?.stdio().close_stdin();
        Ok(())
    }
}

#[async_trait]
impl AgentService for Service {
    async fn create_container(&self, _: &TtrpcContext, request: CreateContainerRequest) -> Done {
        tracing::debug!(container = request.container_id, "CreateContainer");
        self.whole(|agent| async move { agent.create_container(request).await }).await
    }

    async fn start_container(&self, _: &TtrpcContext, request: StartContainerRequest) -> Done {
        tracing::debug!(container = request.container_id, "StartContainer");
        self.agent.start_container(&request.container_id).map(|()| Empty::new())
    }

    async fn remove_container(&self, _: &TtrpcContext, request: RemoveContainerRequest) -> Done {
        tracing::debug!(container = request.container_id, "RemoveContainer");
        self.whole(|agent| async move { agent.remove_container(&request).await }).await
    }

    async fn exec_process(&self, _: &TtrpcContext, request: ExecProcessRequest) -> Done {
        tracing::debug!(container = request.container_id, id = request.exec_id, "ExecProcess");
        self.whole(|agent| async move { agent.exec_process(request).await }).await
    }

    async fn signal_process(&self, _: &TtrpcContext, request: SignalProcessRequest) -> Done {
        self.whole(|agent| async move {
            agent.signal_process(&request.container_id, &request.exec_id, request.signal).await
        })
        .await
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: WaitProcessRequest,
    ) -> ttrpc::Result<WaitProcessResponse> {
        let mut response = WaitProcessResponse::new();
        let ended = self.agent.wait_process(&request.container_id, &request.exec_id).await?;
        response.status = ended.status;
        if ended.out_of_memory {
            say_out_of_memory(&mut response);
        }
        Ok(response)
    }

    async fn update_container(&self, _: &TtrpcContext, request: UpdateContainerRequest) -> Done {
        let container = self.agent.container(&request.container_id)?;
        let resources = request.resources.into_option();
        let resources = resources.ok_or_else(|| invalid("the request has no resources"))?;
        let resources = resources_from_wire(resources).map_err(Tell::tell)?;
        let plan = &container.plan;
        // Most updates are not about devices, and leave them as they are.
        if let Some(devices) = resources.devices().as_deref().filter(|list| !list.is_empty()) {
            let rules = DeviceRules::new(devices).map_err(Tell::tell)?;
            plan.device_filter.enforce(&plan.cgroup, &rules).map_err(Tell::tell)?;
        }
        plan.cgroup.apply(&resources).map_err(Tell::tell)?;
        Ok(Empty::new())
    }

    async fn stats_container(
        &self,
        _: &TtrpcContext,
        request: StatsContainerRequest,
    ) -> ttrpc::Result<StatsContainerResponse> {
        let container = self.agent.container(&request.container_id)?;
        Ok(stats::to_wire(&container.plan.cgroup.stats()))
    }

    async fn pause_container(&self, _: &TtrpcContext, request: PauseContainerRequest) -> Done {
        self.whole(|agent| async move { agent.set_paused(&request.container_id, true).await }).await
    }

    async fn resume_container(&self, _: &TtrpcContext, request: ResumeContainerRequest) -> Done {
        self.whole(|agent| async move { agent.set_paused(&request.container_id, false).await })
            .await
    }

    async fn write_stdin(
        &self,
        _: &TtrpcContext,
        request: WriteStreamRequest,
    ) -> ttrpc::Result<WriteStreamResponse> {
        let mut response = WriteStreamResponse::new();
        if request.data.is_empty() {
            self.close_stdin_of(&request.container_id, &request.exec_id)?;
            return Ok(response);
        }
        let container = self.agent.container(&request.container_id)?;
        let process = self.agent.process(&container, &request.exec_id)?;
        process.stdio().write(&request.data).await.map_err(|error| match error.kind() {
            std::io::ErrorKind::BrokenPipe => not_found("the process's standard input is closed"),
            _ => error.tell(),
        })?;
        // A request's length is bounded by ttrpc's message size.
        response.len = u32::try_from(request.data.len()).unwrap_or(u32::MAX);
        Ok(response)
    }

    async fn read_stdout(
        &self,
        _: &TtrpcContext,
        request: ReadStreamRequest,
    ) -> ttrpc::Result<ReadStreamResponse> {
        self.read(request, Output::Stdout).await
    }

    async fn read_stderr(
        &self,
        _: &TtrpcContext,
        request: ReadStreamRequest,
    ) -> ttrpc::Result<ReadStreamResponse> {
        self.read(request, Output::Stderr).await
    }

    async fn close_stdin(&self, _: &TtrpcContext, request: CloseStdinRequest) -> Done {
        self.close_stdin_of(&request.container_id, &request.exec_id)?;
        Ok(Empty::new())
    }

    async fn tty_win_resize(&self, _: &TtrpcContext, request: TtyWinResizeRequest) -> Done {
        let size = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
        // A container without a name means the debug consoles. It is an addition to the protocol,
        // which no other runtime makes use of.
        if request.container_id.is_empty() {
            let size = (size(request.row), size(request.column));
            self.agent.console_size.send_replace(Some(size));
            return Ok(Empty::new());
        }
        let container = self.agent.container(&request.container_id)?;
        let process = self.agent.process(&container, &request.exec_id)?;
        let resized = process.stdio().resize(size(request.row), size(request.column));
        resized.map_err(|error| match error.kind() {
            std::io::ErrorKind::Unsupported => invalid("the process has no terminal"),
            _ => error.tell(),
        })?;
        Ok(Empty::new())
    }

    async fn update_interface(
        &self,
        _: &TtrpcContext,
        request: UpdateInterfaceRequest,
    ) -> ttrpc::Result<types::Interface> {
        self.agent.update_interface(request.interface.as_ref()).await
    }

    async fn update_routes(
        &self,
        _: &TtrpcContext,
        request: UpdateRoutesRequest,
    ) -> ttrpc::Result<Routes> {
        let wanted = request.routes.into_option().unwrap_or_default();
        let mut routes = Routes::new();
        routes.Routes = self.agent.update_routes(&wanted.Routes).await?;
        Ok(routes)
    }

    async fn list_interfaces(
        &self,
        _: &TtrpcContext,
        _: ListInterfacesRequest,
    ) -> ttrpc::Result<Interfaces> {
        let mut interfaces = Interfaces::new();
        interfaces.Interfaces = self.agent.list_interfaces().await?;
        Ok(interfaces)
    }

    async fn list_routes(&self, _: &TtrpcContext, _: ListRoutesRequest) -> ttrpc::Result<Routes> {
        let mut routes = Routes::new();
        routes.Routes = self.agent.list_routes().await?;
        Ok(routes)
    }

    async fn add_arp_neighbors(&self, _: &TtrpcContext, request: AddARPNeighborsRequest) -> Done {
        let neighbours = request.neighbors.into_option().unwrap_or_default();
        self.agent.add_neighbours(&neighbours.ARPNeighbors).await?;
        Ok(Empty::new())
    }

    async fn get_metrics(&self, _: &TtrpcContext, _: GetMetricsRequest) -> ttrpc::Result<Metrics> {
        let mut response = Metrics::new();
        response.metrics = metrics::collect();
        Ok(response)
    }

    async fn create_sandbox(&self, _: &TtrpcContext, request: CreateSandboxRequest) -> Done {
        let taken = boot::clock();
        self.whole(|agent| async move { agent.create_sandbox(request).await }).await?;
        let (now, started) = (Clocks::now(), self.agent.settings.started);
        let stamps = BootStamps {
            kernel_done: boot::kernel_done(),
            agent_started: started.kernel,
            agent_ready: self.agent.settings.ready,
            taken,
            given: now.kernel,
            machine_age: now.machine_age(started),
        };
        Ok(stamps.to_answer())
    }

    async fn destroy_sandbox(&self, _: &TtrpcContext, _: DestroySandboxRequest) -> Done {
        self.whole(|agent| async move {
            agent.take_all_away().await;
            agent.destroy();
            Ok(())
        })
        .await
    }

    async fn online_cpu_mem(&self, _: &TtrpcContext, request: OnlineCPUMemRequest) -> Done {
        self.agent.online(&request).await?;
        Ok(Empty::new())
    }

    async fn reseed_random_dev(&self, _: &TtrpcContext, request: ReseedRandomDevRequest) -> Done {
        entropy::reseed(&request.data).map_err(Tell::tell)?;
        Ok(Empty::new())
    }

    async fn get_guest_details(
        &self,
        _: &TtrpcContext,
        request: GuestDetailsRequest,
    ) -> ttrpc::Result<GuestDetailsResponse> {
        Ok(self.agent.details(&request))
    }

    async fn set_guest_date_time(
        &self,
        _: &TtrpcContext,
        request: SetGuestDateTimeRequest,
    ) -> Done {
        clock::set(request.Sec, request.Usec).map_err(Tell::tell)?;
        Ok(Empty::new())
    }

    async fn copy_file(&self, _: &TtrpcContext, request: CopyFileRequest) -> Done {
        files::copy(&request)?;
        Ok(Empty::new())
    }

    async fn get_oom_event(
        &self,
        _: &TtrpcContext,
        _: GetOOMEventRequest,
    ) -> ttrpc::Result<OOMEvent> {
        let mut events = self.agent.oom_events.lock().await;
        let mut event = OOMEvent::new();
        // The agent has a sender itself, so there is always a next event to wait for.
        event.container_id = events.recv().await.unwrap_or_default();
        Ok(event)
    }

    async fn update_ephemeral_mounts(
        &self,
        _: &TtrpcContext,
        _: UpdateEphemeralMountsRequest,
    ) -> Done {
        Err(unimplemented("UpdateEphemeralMounts", "create the container again, with other limits"))
    }

    async fn remove_stale_virtiofs_share_mounts(
        &self,
        _: &TtrpcContext,
        _: RemoveStaleVirtiofsShareMountsRequest,
    ) -> Done {
        let remedy = "delete the container that the mounts belong to, and they go with it";
        Err(unimplemented("RemoveStaleVirtiofsShareMounts", remedy))
    }

    async fn get_diagnostic_data(
        &self,
        _: &TtrpcContext,
        _: GetDiagnosticDataRequest,
    ) -> ttrpc::Result<GetDiagnosticDataResponse> {
        Err(unimplemented("GetDiagnosticData", "read the file from the container's file system"))
    }

    async fn get_ip_tables(
        &self,
        _: &TtrpcContext,
        _: GetIPTablesRequest,
    ) -> ttrpc::Result<GetIPTablesResponse> {
        Err(unimplemented("GetIPTables", "filter packets on the host"))
    }

    async fn set_ip_tables(
        &self,
        _: &TtrpcContext,
        _: SetIPTablesRequest,
    ) -> ttrpc::Result<SetIPTablesResponse> {
        Err(unimplemented("SetIPTables", "filter packets on the host"))
    }

    async fn mem_agent_memcg_set(&self, _: &TtrpcContext, _: MemAgentMemcgConfig) -> Done {
        Err(unimplemented("MemAgentMemcgSet", NO_MEMORY_AGENT))
    }

    async fn mem_agent_compact_set(&self, _: &TtrpcContext, _: MemAgentCompactConfig) -> Done {
        Err(unimplemented("MemAgentCompactSet", NO_MEMORY_AGENT))
    }

    async fn mem_hotplug_by_probe(&self, _: &TtrpcContext, _: MemHotplugByProbeRequest) -> Done {
        Err(unimplemented("MemHotplugByProbe", "use a machine that announces new memory itself"))
    }

    async fn add_swap(&self, _: &TtrpcContext, _: AddSwapRequest) -> Done {
        Err(unimplemented("AddSwap", "give the guest more memory"))
    }

    async fn add_swap_path(&self, _: &TtrpcContext, _: AddSwapPathRequest) -> Done {
        Err(unimplemented("AddSwapPath", "give the guest more memory"))
    }

    async fn get_volume_stats(
        &self,
        _: &TtrpcContext,
        _: VolumeStatsRequest,
    ) -> ttrpc::Result<VolumeStatsResponse> {
        Err(unimplemented("GetVolumeStats", "measure the volume on the host"))
    }

    async fn resize_volume(&self, _: &TtrpcContext, _: ResizeVolumeRequest) -> Done {
        Err(unimplemented("ResizeVolume", "resize the volume on the host"))
    }

    async fn set_policy(&self, _: &TtrpcContext, _: SetPolicyRequest) -> Done {
        Err(unimplemented("SetPolicy", "send no policy: it grants whatever the host asks for"))
    }
}
