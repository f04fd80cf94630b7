//! The living sandbox: what may be asked of it, and what it does when something dies.

mod dns_relay;
mod files;
mod guest_socket;
mod health;
mod port_forward;
mod room;
mod settle;
mod shared;
mod take_down;
mod updates;
mod watchers;

use std::collections::HashSet;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kata_agent_client::{
    AgentClient, AgentError, ContainerStats, GuestContainer, GuestStorage, ProcessId,
};
use kata_hypervisor::{Hypervisor, LaterDisks, Vm};
use kata_storage::{FileServer, Share, SharedMemory};
use kata_timeline::{Recorder, Stage};
use oci_spec::runtime::{LinuxResources, Process};
use tokio::sync::{Notify, OnceCell, watch};

use crate::boot::{self, Booted};
use crate::carry::Carrier;
use crate::memory::Memory;
use crate::network::SandboxNetwork;
use crate::process::{PendingExec, Processes, Resizing};
use crate::timing::Timing;
use crate::vcpus::Vcpus;
use room::Place;

use crate::{
    BootError, ContainerPlan, Deletion, EventSink, Exit, Footprint, GuestProcess, Placement,
    ProcessKey, Refusal, ResolvConf, SandboxError, SandboxEvent, SandboxPlan, Status, Stdio,
};

/// SIGKILL, which is also what ends every process of a container at once.
const SIGKILL: u32 = 9;

/// One sandbox. Clones are handles on the same one; all methods may be called from several tasks at
/// once.
#[derive(Clone)]
pub struct Sandbox {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sandbox").field("id", &self.shared.id).finish_non_exhaustive()
    }
}

struct Shared {
    id: String,
    single_container: bool,
    vm: Arc<dyn Vm>,
    agent: AgentClient,
    file_server: Option<FileServer>,
    // Mutexes and not an owning task: every change is one short, pure step of the ledger, and
    // nothing is awaited while they are held; events are emitted under the lock, which is what
    // keeps their order.
    /// `None` when it has been taken away, and where there is none.
    share: Mutex<Option<Share>>,
    carrier: Carrier,
    /// Containers that were deleted although the guest still has them. What they have of the host
    /// stays as long as the sandbox, and so their ids are taken.
    undying: Mutex<HashSet<String>>,
    footprint: Footprint,
    timing: Arc<Timing>,
    /// Ports of the guest that people may reach.
    open_ports: Vec<u32>,
    /// How long the guest may take to write out what it holds.
    farewell: Duration,
    /// The first container's.
    resolv_conf: Option<ResolvConf>,
    /// `None` when there is none, and when it has been left. An async one, for the guest is asked
    /// while it is held: at the first start, and never again.
    network: tokio::sync::Mutex<Option<SandboxNetwork>>,
    /// An async one, for VMM and guest are asked while it is held: one change of size at a time.
    memory: tokio::sync::Mutex<Memory>,
    /// The same.
    vcpus: tokio::sync::Mutex<Vcpus>,
    /// The same, for a VM's memory may have to be moved.
    place: tokio::sync::Mutex<Place>,
    /// Held while a container is frozen or thawed: of two requests that are on their way at once
    /// nobody would know which one the guest has done last. One for all containers, for it is the
    /// guest that takes long, if anything does.
    freezing: tokio::sync::Mutex<()>,
    processes: Mutex<Processes>,
    /// A process is no longer on its way: it was made or started, or could not be.
    arrived: Notify,
    events: Arc<dyn EventSink>,
    /// Why the sandbox is gone, once it is.
    gone: watch::Sender<Option<String>>,
    taken_down: OnceCell<()>,
}

impl Sandbox {
    /// Boots the sandbox and returns when its agent has set it up. Blocks on nothing but the VM.
    ///
    /// The calling thread becomes the parent of VMM and file server, which die with it; the calling
    /// process enters the sandbox's cgroup and must have a mount namespace of its own. The stages
    /// of the start are added to `times`; the record is written to the sandbox's directory when its
    /// first container has been started, and when that has written its first byte.
    pub async fn boot(
        plan: SandboxPlan,
        hypervisor: &dyn Hypervisor,
        events: Arc<dyn EventSink>,
        times: Recorder,
    ) -> Result<Self, BootError> {
        let Booted { vm, agent, share, file_server, footprint, network } =
            boot::boot(&plan, hypervisor, &times).await?;
        let timing = Timing { times, sandbox: plan.id.clone(), dir: plan.vm.run_dir };
        let has_disks = !plan.vm.disks.is_empty() || plan.vm.later_disks != LaterDisks::default();
        let farewell = if has_disks { boot::FAREWELL_TO_DISKS } else { boot::FAREWELL };
        let shared = Arc::new(Shared {
            place: tokio::sync::Mutex::new(Place::new(&plan.id, plan.placement)),
            id: plan.id,
            single_container: plan.single_container,
            vm,
            agent,
            file_server,
            share: Mutex::new(share),
            carrier: Carrier::new(plan.images),
            undying: Mutex::default(),
            footprint,
            timing: Arc::new(timing),
            open_ports: plan.open_ports,
            farewell,
            resolv_conf: plan.resolv_conf,
            network: tokio::sync::Mutex::new(network),
            memory: tokio::sync::Mutex::new(Memory::new(plan.memory)),
            vcpus: tokio::sync::Mutex::new(Vcpus::new(plan.vcpus)),
            freezing: tokio::sync::Mutex::default(),
            processes: Mutex::default(),
            arrived: Notify::new(),
            events,
            gone: watch::Sender::new(None),
            taken_down: OnceCell::new(),
        });
        tokio::spawn(watchers::watch_parts(Arc::clone(&shared)));
        tokio::spawn(watchers::watch_agent(Arc::clone(&shared)));
        if let Some(patience) = plan.deadlines.health_check {
            tokio::spawn(health::watch(Arc::clone(&shared), patience));
        }
        guest_socket::open(&shared);
        Ok(Self { shared })
    }

    /// The VMM's process id: the host process that stands for everything in the sandbox.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.shared.vm.pid()
    }

    /// Whether the host's directories are shared with the guest; else it has copies of them.
    #[must_use]
    pub fn shares_files(&self) -> bool {
        self.shared.carrier.images().is_none()
    }

    /// Whether no container is left in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shared.processes().ledger.is_empty()
    }

    /// Makes a container, with its init process waiting to be started and its streams attached.
    pub async fn create(
        &self,
        plan: ContainerPlan,
        stdio: Box<dyn Stdio>,
    ) -> Result<(), SandboxError> {
        let created = self.set_up(plan, stdio).await;
        self.shared.arrived.notify_waiters();
        created
    }

    async fn set_up(&self, plan: ContainerPlan, stdio: Box<dyn Stdio>) -> Result<(), SandboxError> {
        let key = ProcessKey::init(&plan.id);
        if self.shared.undying().contains(&key.container) {
            return Err(Refusal::AlreadyExists(key).into());
        }
        self.shared.processes().add(&key)?;
        let made = match room::make(&self.shared, &plan).await {
            Ok(()) => self.create_in_guest(plan).await,
            no_room => no_room,
        };
        if let Err(error) = made {
            self.shared.carrier.end_tasks(&key.container);
            if let SandboxError::Agent(AgentError::Deadline { .. }) = error {
                tokio::spawn(watchers::remove_late(
                    Arc::clone(&self.shared),
                    key.container.clone(),
                ));
            } else {
                self.shared.remove_copies(&key.container).await;
            }
            self.shared.processes().forget(&key);
            room::leave(&self.shared, &key.container).await;
            self.shared.forget_storage(&key.container).await;
            return Err(error);
        }
        let mut processes = self.shared.processes();
        self.shared.timing.times.stamp(Stage::ContainerCreated);
        processes.ledger.created(&key);
        processes.attach(&key, stdio.attach(self.guest_process(&key)));
        Ok(())
    }

    async fn create_in_guest(&self, mut plan: ContainerPlan) -> Result<(), SandboxError> {
        self.shared.timing.times.stamp(Stage::RoomMade);
        let mut storages = self.shared.bring_files(&mut plan).await?;
        self.shared.timing.times.stamp(Stage::StorageShared);
        storages.extend(plan.mounts.shared_memory.iter().map(memory_storage));
        let devices = self.shared.bring_devices(&plan.id, &plan.devices).await?;
        let container = GuestContainer {
            id: plan.id,
            spec: plan.spec,
            storages,
            devices,
            shared_pid_namespace: plan.shared_pid_namespace,
        };
        self.unless_gone(self.shared.agent.create_container(&container)).await
    }

    /// Registers a process to be added to a running container; [`Sandbox::start`] starts it. In a
    /// sandbox that has ended it is refused with the reason of that.
    pub fn exec(
        &self,
        key: &ProcessKey,
        process: Process,
        stdio: Box<dyn Stdio>,
    ) -> Result<(), SandboxError> {
        if self.shared.gone.borrow().is_some() {
            return Err(self.shared.gone_error());
        }
        let mut processes = self.shared.processes();
        processes.add(key)?;
        processes.hold_exec(key, process, stdio);
        Ok(())
    }

    /// Starts a created process. Its start event is out before this returns. An exec whose start
    /// has failed can only be deleted, and one whose container has ended meanwhile has ended with
    /// it.
    pub async fn start(&self, key: &ProcessKey) -> Result<(), SandboxError> {
        let started = self.bring_up(key).await;
        self.shared.arrived.notify_waiters();
        started
    }

    async fn bring_up(&self, key: &ProcessKey) -> Result<(), SandboxError> {
        self.shared.timing.times.stamp(Stage::StartAsked);
        let mut pending = {
            let mut processes = self.shared.processes();
            processes.ledger.begin_start(key)?;
            processes.take_exec(key)
        };
        let started = match &mut pending {
            None => self.start_init(&key.container).await,
            Some(exec) => self.start_exec(key, exec).await,
        };
        let mut processes = self.shared.processes();
        if let Err(error) = started {
            if pending.is_some()
                && matches!(error, SandboxError::Agent(AgentError::Deadline { .. }))
            {
                tokio::spawn(watchers::kill_late(Arc::clone(&self.shared), key.clone()));
            }
            processes.ledger.start_failed(key);
            return Err(error);
        }
        if !processes.ledger.started(key) {
            return Err(Refusal::AlreadyFinished(key.clone()).into());
        }
        if let Some(exec) = pending {
            processes.attach(key, exec.stdio.attach(self.guest_process(key)));
        }
        self.shared.events.emit(SandboxEvent::Started { process: key.clone() });
        drop(processes);
        self.shared.timing.stamp_and_save(Stage::ProcessExecuted);
        tokio::spawn(watchers::watch_process(Arc::clone(&self.shared), key.clone()));
        Ok(())
    }

    async fn start_init(&self, container: &str) -> Result<(), SandboxError> {
        let is_first = settle::settle_network(&self.shared).await?;
        let started = self.unless_gone(self.shared.agent.start_container(container)).await;
        if is_first {
            // Nobody looks for a port before there is a server, so this can wait.
            tokio::spawn(port_forward::serve(Arc::clone(&self.shared)));
        }
        started
    }

    async fn start_exec(
        &self,
        key: &ProcessKey,
        exec: &mut PendingExec,
    ) -> Result<(), SandboxError> {
        exec.stdio.open().await.map_err(SandboxError::Stdio)?;
        let id = guest_id(key);
        self.unless_gone(self.shared.agent.exec_process(&id, &exec.process)).await
    }

    /// Sends a signal to one process, or with `all` to every process of the container. SIGKILL to a
    /// guest that answers nothing any more ends the sandbox. A container that was sent it counts as
    /// ended a minute later, whatever the guest says, and a sandbox is ended that has no other or
    /// hangs on it.
    pub async fn kill(&self, key: &ProcessKey, signal: u32, all: bool) -> Result<(), SandboxError> {
        let never_started = {
            let processes = self.shared.processes();
            processes.ledger.may_signal(key)?;
            processes.ledger.is_created(key)
        };
        let sent = if all {
            self.unless_gone(self.shared.agent.signal_all(&key.container, signal)).await
        } else {
            self.unless_gone(self.shared.agent.signal_process(&guest_id(key), signal)).await
        };
        match sent {
            // It ended before the signal came, by itself or with its VM, and its exit is on its
            // way.
            Err(SandboxError::Agent(AgentError::NotFound { .. }) | SandboxError::Gone { .. }) => {
                Err(Refusal::AlreadyFinished(key.clone()).into())
            }
            late @ Err(SandboxError::Agent(AgentError::Deadline { .. })) if signal == SIGKILL => {
                if self.shared.end_if_silent().await {
                    Ok(())
                } else {
                    late
                }
            }
            Ok(()) => {
                if never_started {
                    // A process is followed from its start; one that may end without a start, from
                    // here.
                    tokio::spawn(watchers::watch_process(Arc::clone(&self.shared), key.clone()));
                }
                if signal == SIGKILL && key.exec.is_none() {
                    tokio::spawn(watchers::end_undying(Arc::clone(&self.shared), key.clone()));
                }
                Ok(())
            }
            sent => sent,
        }
    }

    /// Ends a process in whatever state it is, once it is no longer on its way there. It can be
    /// deleted then. One that is unknown is no error.
    pub async fn end(&self, key: &ProcessKey) {
        self.arrival(key).await;
        match self.kill(key, SIGKILL, key.exec.is_none()).await {
            Ok(()) | Err(SandboxError::Refused(Refusal::AlreadyFinished(_))) => {
                // Unknown by now is as good.
                let _ = self.wait(key).await;
            }
            // It never ran.
            Err(error) => tracing::debug!("{key}: {error}"),
        }
    }

    /// Resolves when the guest is neither making nor starting the process.
    async fn arrival(&self, key: &ProcessKey) {
        loop {
            let mut arrived = pin!(self.shared.arrived.notified());
            // Before it is looked, so that nothing happens in between.
            arrived.as_mut().enable();
            if !self.shared.processes().ledger.is_on_its_way(key) {
                break;
            }
            arrived.await;
        }
    }

    /// Resolves when the process has ended and its output has been delivered; at once if it has.
    /// May be asked any number of times.
    pub async fn wait(&self, key: &ProcessKey) -> Result<Exit, SandboxError> {
        let mut exit = self.shared.processes().subscribe(key)?;
        let exit = exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
        exit.ok_or_else(|| Refusal::NotFound(key.clone()).into())
    }

    /// Whether the guest's kernel has killed a process of the container for want of memory, as far
    /// as the guest has told. What is told with the end of its init is known when [`Sandbox::wait`]
    /// returns.
    #[must_use]
    pub fn is_out_of_memory(&self, container: &str) -> bool {
        self.shared.processes().ledger.is_out_of_memory(container)
    }

    /// Deletes a process that has ended or never ran; with an init everything of its container, and
    /// with the last container the sandbox. Returns how the process ended; `None` when it never
    /// ran.
    pub async fn delete(&self, key: &ProcessKey) -> Result<Option<Exit>, SandboxError> {
        let Deletion { exit, empties_sandbox } =
            self.shared.processes().ledger.begin_delete(key)?;
        if key.exec.is_some() {
            self.shared.processes().forget(key);
            return Ok(exit);
        }
        if exit.is_some() {
            self.shared.last_output_of(key).await;
        }
        if empties_sandbox {
            self.stop("its last container was deleted").await;
        } else {
            // Copies go with the container, and nobody is to make them anew.
            self.shared.carrier.end_tasks(&key.container);
            let removed =
                self.unless_gone(self.shared.agent.remove_container(&key.container)).await;
            // Its processes may still use what it has: that stays as long as the sandbox.
            let is_in_use =
                matches!(removed, Err(SandboxError::Agent(AgentError::Deadline { .. })));
            if let Err(error) = removed {
                tracing::warn!("{key} is deleted although the guest could not remove it: {error}");
            }
            if is_in_use {
                self.shared.undying().insert(key.container.clone());
            } else {
                self.shared.forget_storage(&key.container).await;
            }
            room::leave(&self.shared, &key.container).await;
        }
        self.shared.processes().forget(key);
        Ok(exit)
    }

    /// Closes a process's stdin, after what is still on its way; before the start it takes effect
    /// with it.
    pub async fn close_stdin(&self, key: &ProcessKey) -> Result<(), SandboxError> {
        let attached = self.shared.processes().close_stdin(key)?;
        if let Some(attached) = attached {
            attached.close_stdin().await;
        }
        Ok(())
    }

    /// Sets the size of a process's terminal. A process that was not started yet is started with
    /// it, one that is on its way is waited for, and after the end it does nothing.
    pub async fn resize(
        &self,
        key: &ProcessKey,
        rows: u32,
        columns: u32,
    ) -> Result<(), SandboxError> {
        let resizing = self.shared.processes().resize(key, rows, columns)?;
        match resizing {
            Resizing::Done => return Ok(()),
            Resizing::Later => self.arrival(key).await,
            Resizing::Now => {}
        }
        let id = guest_id(key);
        let request = self.shared.agent.tty_win_resize(&id, rows, columns);
        match self.unless_gone(request).await {
            // It has ended meanwhile. Clients that set the size right after a start would put the
            // error into the terminal of a process that was quick.
            Err(SandboxError::Agent(AgentError::NotFound { .. })) => Ok(()),
            resized => resized,
        }
    }

    /// Freezes a running container, after whatever freezes or thaws one already. One of which it is
    /// not known whether it is frozen counts as if it were, so that it can be thawed.
    pub async fn pause(&self, container: &str) -> Result<(), SandboxError> {
        let _turn = self.shared.freezing.lock().await;
        {
            let mut processes = self.shared.processes();
            processes.ledger.may_pause(container)?;
            // Already now, so that nothing is started in it while the guest freezes it.
            processes.ledger.set_paused(container, true);
        }
        let paused = self.unless_gone(self.shared.agent.pause_container(container)).await;
        let may_be =
            matches!(paused, Ok(()) | Err(SandboxError::Agent(AgentError::Deadline { .. })));
        self.shared.processes().ledger.set_paused(container, may_be);
        paused
    }

    /// Thaws a frozen container, after whatever freezes or thaws one already.
    pub async fn resume(&self, container: &str) -> Result<(), SandboxError> {
        let _turn = self.shared.freezing.lock().await;
        self.shared.processes().ledger.may_resume(container)?;
        match self.unless_gone(self.shared.agent.resume_container(container)).await {
            // It is not frozen: an earlier request has been late, and has done it.
            Ok(()) | Err(SandboxError::Agent(AgentError::FailedPrecondition { .. })) => {
                self.shared.processes().ledger.set_paused(container, false);
                Ok(())
            }
            error => error,
        }
    }

    /// Sets a container's limits anew, and where on the host it may run. The VM's memory and
    /// virtual CPUs, and its place, follow them.
    pub async fn update(
        &self,
        container: &str,
        resources: &LinuxResources,
        placement: Placement,
    ) -> Result<(), SandboxError> {
        self.shared.processes().ledger.status(&ProcessKey::init(container))?;
        let before = room::change(&self.shared, container, resources, placement).await?;
        let request = self.shared.agent.update_container(container, resources);
        let updated = self.unless_gone(request).await;
        if updated.is_err() {
            room::restore(&self.shared, container, before).await;
        }
        room::take_back(&self.shared).await;
        updated
    }

    /// What a container uses now.
    pub async fn stats(&self, container: &str) -> Result<ContainerStats, SandboxError> {
        self.shared.processes().ledger.status(&ProcessKey::init(container))?;
        self.unless_gone(self.shared.agent.stats_container(container)).await
    }

    /// How a process stands.
    pub fn status(&self, key: &ProcessKey) -> Result<Status, SandboxError> {
        Ok(self.shared.processes().ledger.status(key)?)
    }

    /// The ids of the execs of a container that are alive.
    #[must_use]
    pub fn live_execs(&self, container: &str) -> Vec<String> {
        self.shared.processes().ledger.live_execs(container)
    }

    /// Ends the sandbox: whatever runs is killed, and VM, file server, mounts, cgroup and directory
    /// go. Returns when they are gone; the first call decides the reason.
    pub async fn stop(&self, reason: &str) {
        self.shared.take_down(reason, true).await;
    }

    fn guest_process(&self, key: &ProcessKey) -> GuestProcess {
        GuestProcess::new(self.shared.agent.clone(), guest_id(key), Arc::clone(&self.shared.timing))
    }

    async fn unless_gone<T>(
        &self,
        request: impl Future<Output = Result<T, AgentError>>,
    ) -> Result<T, SandboxError> {
        self.shared.unless_gone(request).await
    }
}

/// A tmpfs that the agent mounts for the first container that needs it, and keeps until the last
/// one goes.
fn memory_storage(memory: &SharedMemory) -> GuestStorage {
    let options = ["nosuid", "noexec", "nodev", "mode=1777"].map(str::to_owned);
    let size = (memory.size > 0).then(|| format!("size={}", memory.size));
    GuestStorage {
        driver: "ephemeral".to_owned(),
        source: "shm".to_owned(),
        fstype: "tmpfs".to_owned(),
        options: options.into_iter().chain(size).collect(),
        mount_point: memory.guest_path.display().to_string(),
        shared: true,
        ..GuestStorage::default()
    }
}

/// How the agent knows a process: an init's exec id is its container's id.
fn guest_id(key: &ProcessKey) -> ProcessId {
    let exec = key.exec.as_ref().unwrap_or(&key.container);
    ProcessId { container: key.container.clone(), exec: exec.clone() }
}
