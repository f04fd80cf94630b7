//! containerd's Task API over a sandbox: one method each, in the order in which a container lives.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use kata_host_runtime::{RuntimeError, process_for_guest, resources_for_guest};
use kata_sandbox::{Placement, ProcessKey, Status};
use kata_shim_api::api::{self, Empty};
use kata_shim_api::{Task, metadata, stand_in, timestamp};
use oci_spec::runtime::{LinuxResources, Process};
use protobuf::MessageField;
use ttrpc::r#async::TtrpcContext;

use crate::creation::Creation;
use crate::error::{Failure, refuse};
use crate::owner::{CreateOrder, Owner, Record};
use crate::stand_in::StandIn;
use crate::{metrics, processes};

/// Serves one sandbox's tasks.
#[derive(Debug)]
pub(crate) struct TaskService {
    pub(crate) owner: Arc<Owner>,
}

/// The process that a request is about: an empty exec id is the init.
fn key(container: &str, exec: &str) -> ProcessKey {
    if exec.is_empty() { ProcessKey::init(container) } else { ProcessKey::exec(container, exec) }
}

/// A create request with what goes along with it.
fn order(context: &TtrpcContext, req: api::CreateTaskRequest) -> CreateOrder {
    let netns = context.metadata.get(metadata::NETWORK_NAMESPACE).and_then(|all| all.first());
    CreateOrder {
        req,
        network_namespace: netns.map(PathBuf::from),
        hooks_are_run: context.metadata.contains_key(metadata::HOOKS_ARE_RUN),
        alone: context.metadata.contains_key(metadata::ALONE),
    }
}

impl TaskService {
    /// Resolves when a watcher's container ran out of memory more often than that one knows, with
    /// how often; never, if the caller is no watcher.
    async fn out_of_memory_again(&self, context: &TtrpcContext, container: &str) -> u64 {
        let known = context.metadata.get(metadata::WATCHER).and_then(|all| all.first());
        match known.and_then(|known| known.parse().ok()) {
            Some(known) => self.owner.events.out_of_memory_beyond(container, known).await,
            None => std::future::pending().await,
        }
    }
}

type Answer<T> = ttrpc::Result<T>;

/// Does all of something, even if its caller goes away meanwhile, with whom the server would drop
/// it halfway.
async fn whole<T, E>(
    request: impl Future<Output = Result<T, E>> + Send + 'static,
) -> Result<T, Failure>
where
    T: Send + 'static,
    E: Into<Failure> + Send + 'static,
{
    tokio::spawn(request).await.map_err(Failure::lost)?.map_err(Into::into)
}

#[async_trait]
impl Task for TaskService {
    async fn create(
        &self,
        context: &TtrpcContext,
        req: api::CreateTaskRequest,
    ) -> Answer<api::CreateTaskResponse> {
        if !req.checkpoint.is_empty() {
            return Err(refuse("containers in a VM cannot be restored from a checkpoint"));
        }
        if context.metadata.contains_key(metadata::CHECK_ONLY) {
            self.owner.check(order(context, req)).await?;
            return Ok(api::CreateTaskResponse::default());
        }
        tracing::info!(id = %req.id, bundle = %req.bundle, "create");
        let made = Creation::begin(Arc::clone(&self.owner), order(context, req)).finish().await?;
        let pid =
            made.inspect_err(|failure| tracing::error!("cannot create the container: {failure}"))?;
        let mut answer = api::CreateTaskResponse { pid, ..Default::default() };
        if !self.owner.sandbox()?.shares_files() {
            stand_in::set_hidden(&mut answer);
        }
        Ok(answer)
    }

    async fn start(&self, _: &TtrpcContext, req: api::StartRequest) -> Answer<api::StartResponse> {
        tracing::info!(id = %req.id, exec = %req.exec_id, "start");
        let owner = Arc::clone(&self.owner);
        let key = key(&req.id, &req.exec_id);
        let started = whole(async move { owner.start(&key).await }).await;
        started.inspect_err(|failure| tracing::error!("cannot start {}: {failure}", req.id))?;
        Ok(api::StartResponse { pid: self.owner.sandbox()?.pid(), ..Default::default() })
    }

    async fn state(&self, _: &TtrpcContext, req: api::StateRequest) -> Answer<api::StateResponse> {
        let key = key(&req.id, &req.exec_id);
        let sandbox = self.owner.sandbox()?;
        let status = sandbox.status(&key).map_err(Failure::from)?;
        let record = self.owner.record(&key)?;
        let mut answer = api::StateResponse {
            id: if req.exec_id.is_empty() { req.id } else { req.exec_id.clone() },
            exec_id: req.exec_id,
            bundle: record.bundle,
            pid: sandbox.pid(),
            stdin: record.stdin,
            stdout: record.stdout,
            stderr: record.stderr,
            terminal: record.terminal,
            status: processes::status(status).into(),
            ..Default::default()
        };
        if let Status::Stopped(exit) = status {
            answer.exit_status = exit.status;
            answer.exited_at = MessageField::some(timestamp(exit.at));
        }
        Ok(answer)
    }

    async fn exec(&self, _: &TtrpcContext, req: api::ExecProcessRequest) -> Answer<Empty> {
        tracing::info!(id = %req.id, exec = %req.exec_id, "exec");
        if req.exec_id.is_empty() {
            return Err(refuse("an exec needs an id"));
        }
        let mut process: Process = serde_json::from_slice(&req.spec.value)
            .map_err(|error| Failure::invalid("exec spec", &error))?;
        process_for_guest(&mut process);
        // CRI-O says it only here.
        process.set_terminal(Some(req.terminal));
        let record = Record {
            bundle: self.owner.record(&ProcessKey::init(&req.id))?.bundle,
            stdin: req.stdin,
            stdout: req.stdout,
            stderr: req.stderr,
            terminal: req.terminal,
            hooks: None,
        };
        self.owner.exec(&ProcessKey::exec(&req.id, &req.exec_id), process, record)?;
        Ok(Empty::new())
    }

    async fn kill(&self, _: &TtrpcContext, req: api::KillRequest) -> Answer<Empty> {
        tracing::info!(id = %req.id, exec = %req.exec_id, signal = req.signal, all = req.all, "kill");
        let key = key(&req.id, &req.exec_id);
        let sandbox = self.owner.sandbox()?.clone();
        whole(async move { sandbox.kill(&key, req.signal, req.all).await }).await?;
        Ok(Empty::new())
    }

    async fn wait(
        &self,
        context: &TtrpcContext,
        req: api::WaitRequest,
    ) -> Answer<api::WaitResponse> {
        let key = key(&req.id, &req.exec_id);
        let sandbox = self.owner.sandbox()?;
        let stand_in = context
            .metadata
            .contains_key(metadata::STAND_IN)
            .then(|| StandIn::new(Arc::clone(&self.owner), key.clone()));
        let more = self.out_of_memory_again(context, &key.container);
        let exit = tokio::select! {
            biased;
            times = more => {
                let mut answer = api::WaitResponse::default();
                stand_in::set_out_of_memory(&mut answer, times);
                return Ok(answer);
            }
            exit = sandbox.wait(&key) => exit,
        };
        let is_stand_in = stand_in.is_some();
        if let Some(stand_in) = stand_in {
            stand_in.done();
        }
        let exit = exit.map_err(Failure::from)?;
        let mut answer = api::WaitResponse {
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..Default::default()
        };
        if is_stand_in && key.exec.is_none() && sandbox.is_out_of_memory(&key.container) {
            stand_in::set_out_of_memory(&mut answer, 1);
        }
        Ok(answer)
    }

    async fn delete(
        &self,
        context: &TtrpcContext,
        req: api::DeleteRequest,
    ) -> Answer<api::DeleteResponse> {
        tracing::info!(id = %req.id, exec = %req.exec_id, "delete");
        let owner = Arc::clone(&self.owner);
        let key = key(&req.id, &req.exec_id);
        let forced = context.metadata.contains_key(metadata::FORCE);
        let (pid, exit) = whole(async move {
            if forced { owner.end(&key).await } else { owner.delete(&key).await }
        })
        .await?;
        Ok(api::DeleteResponse {
            pid,
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..Default::default()
        })
    }

    async fn pids(&self, _: &TtrpcContext, req: api::PidsRequest) -> Answer<api::PidsResponse> {
        let sandbox = self.owner.sandbox()?;
        sandbox.status(&ProcessKey::init(&req.id)).map_err(Failure::from)?;
        let processes = processes::infos(sandbox.pid(), &sandbox.live_execs(&req.id))?;
        Ok(api::PidsResponse { processes, ..Default::default() })
    }

    async fn pause(&self, _: &TtrpcContext, req: api::PauseRequest) -> Answer<Empty> {
        tracing::info!(id = %req.id, "pause");
        let sandbox = self.owner.sandbox()?.clone();
        let id = req.id.clone();
        whole(async move { sandbox.pause(&id).await }).await?;
        self.owner.events.paused(&req.id);
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, req: api::ResumeRequest) -> Answer<Empty> {
        tracing::info!(id = %req.id, "resume");
        let sandbox = self.owner.sandbox()?.clone();
        let id = req.id.clone();
        whole(async move { sandbox.resume(&id).await }).await?;
        self.owner.events.resumed(&req.id);
        Ok(Empty::new())
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: api::CheckpointTaskRequest) -> Answer<Empty> {
        Err(refuse("containers in a VM cannot be checkpointed"))
    }

    async fn resize_pty(&self, _: &TtrpcContext, req: api::ResizePtyRequest) -> Answer<Empty> {
        let key = key(&req.id, &req.exec_id);
        self.owner.sandbox()?.resize(&key, req.height, req.width).await.map_err(Failure::from)?;
        Ok(Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, req: api::CloseIORequest) -> Answer<Empty> {
        if req.stdin {
            let key = key(&req.id, &req.exec_id);
            self.owner.sandbox()?.close_stdin(&key).await.map_err(Failure::from)?;
        }
        Ok(Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, req: api::UpdateTaskRequest) -> Answer<Empty> {
        let mut resources: LinuxResources = serde_json::from_slice(&req.resources.value)
            .map_err(|error| Failure::invalid("resources", &error))?;
        let placement = Placement::take_from(&mut resources)
            .map_err(|error| Failure::from(RuntimeError::from(error)))?;
        resources_for_guest(&mut resources)
            .map_err(|error| Failure::from(RuntimeError::from(error)))?;
        tracing::info!(id = %req.id, "update");
        let sandbox = self.owner.sandbox()?.clone();
        whole(async move { sandbox.update(&req.id, &resources, placement).await }).await?;
        Ok(Empty::new())
    }

    async fn stats(&self, _: &TtrpcContext, req: api::StatsRequest) -> Answer<api::StatsResponse> {
        let stats = self.owner.sandbox()?.stats(&req.id).await.map_err(Failure::from)?;
        Ok(api::StatsResponse {
            stats: MessageField::some(metrics::to_any(&stats)),
            ..Default::default()
        })
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        _: api::ConnectRequest,
    ) -> Answer<api::ConnectResponse> {
        Ok(api::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: self.owner.sandbox().map(|sandbox| sandbox.pid()).unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, req: api::ShutdownRequest) -> Answer<Empty> {
        tracing::info!(id = %req.id, now = req.now, "shutdown");
        let owner = Arc::clone(&self.owner);
        whole(async move {
            owner.shut_down().await;
            Ok::<_, Failure>(())
        })
        .await?;
        Ok(Empty::new())
    }
}
