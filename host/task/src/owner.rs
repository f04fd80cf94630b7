//! What the task service owns: the sandbox once there is one, what the engine told of each process,
//! and the events that it is told.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use kata_host_runtime::{
    ContainerRole, FirstContainer, Runtime, RuntimeError, are_of_cri_o, make_single, role_of,
};
use kata_sandbox::{
    ContainerPlan, Exit, ProcessKey, Recorder, RootfsMount, Sandbox, SandboxPlan, Stage,
};
use kata_shim_api::api::{CreateTaskRequest, Mount};
use kata_shim_api::options::RuntimeOptions;
use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};
use tokio::sync::Notify;

use crate::adapter::HostStdio;
use crate::error::Failure;
use crate::events::TaskEvents;
use crate::hooks::{ContainerHooks, EnginesView};
use crate::rest::Rest;
use crate::stdio::{StdioIds, StdioSpec};

/// How long an engine may take from the deletion of the last container to its shutdown, which it
/// sends next.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// The signal that nothing outlives (signal(7)).
const SIGKILL: u32 = 9;

/// What the engine told of a process, to be told back.
#[derive(Debug, Clone, Default)]
pub(crate) struct Record {
    pub(crate) bundle: String,
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
    /// An init's, as far as this process runs them.
    pub(crate) hooks: Option<Arc<ContainerHooks>>,
}

/// A container to create.
#[derive(Debug)]
pub(crate) struct CreateOrder {
    pub(crate) req: CreateTaskRequest,
    /// The namespace that was made for the container, where its spec asks for a new one.
    pub(crate) network_namespace: Option<PathBuf>,
    /// The caller runs the hooks that belong to the host.
    pub(crate) hooks_are_run: bool,
    /// The sandbox is the container's own, whatever its annotations say.
    pub(crate) alone: bool,
}

/// What an order asks for.
struct Asked {
    id: String,
    bundle: PathBuf,
    spec: Spec,
    role: ContainerRole,
    rootfs_mounts: Vec<RootfsMount>,
    options: RuntimeOptions,
}

impl Asked {
    fn of(order: &CreateOrder) -> Result<Self, Failure> {
        let req = &order.req;
        let bundle = PathBuf::from(&req.bundle);
        let mut spec = read_spec(&bundle)?;
        if let Some(path) = &order.network_namespace {
            fill_in_network_namespace(&mut spec, path);
        }
        if order.hooks_are_run {
            forget_host_hooks(&mut spec);
        }
        if let Some(annotations) = spec.annotations_mut().as_mut().filter(|_| order.alone) {
            make_single(annotations);
        }
        let options = RuntimeOptions::from_any(req.options.as_ref())
            .map_err(|error| Failure::invalid("options", &error))?;
        let role = role_of(spec.annotations().as_ref()).map_err(RuntimeError::from)?;
        let rootfs_mounts = req.rootfs.iter().map(rootfs_mount).collect();
        Ok(Self { id: req.id.clone(), bundle, spec, role, rootfs_mounts, options })
    }

    /// The sandbox that this container needs. Whatever the container's own plan refuses is refused
    /// here, before anything has started.
    fn sandbox(&self) -> Result<(Runtime, SandboxPlan), Failure> {
        let Self { id, spec, rootfs_mounts, .. } = self;
        if self.role.sandbox_of(id) != id {
            return Err(Failure::second_sandbox(id));
        }
        let config = Some(self.options.config_path.as_str()).filter(|path| !path.is_empty());
        let first = FirstContainer { spec, rootfs_mounts };
        let runtime = Runtime::load(config.map(Path::new), Some(first))?;
        let plan = runtime.plan_sandbox(id, spec, rootfs_mounts)?;
        self.container(&runtime)?;
        Ok((runtime, plan))
    }

    fn container(&self, runtime: &Runtime) -> Result<ContainerPlan, Failure> {
        let (spec, mounts) = (self.spec.clone(), self.rootfs_mounts.clone());
        Ok(runtime.plan_container(&self.id, spec, &self.bundle, mounts)?)
    }
}

/// A sandbox that was booted.
struct Up {
    /// That of its first container.
    id: String,
    runtime: Runtime,
    sandbox: Sandbox,
}

/// The state behind one task service.
pub(crate) struct Owner {
    namespace: String,
    pub(crate) events: Arc<TaskEvents>,
    times: Recorder,
    view: EnginesView,
    sandbox: OnceLock<Up>,
    /// Held while the sandbox boots, so that it boots once and a shutdown waits for it.
    booting: tokio::sync::Mutex<()>,
    // A mutex and not a channel: a look-up that is never held over an await.
    records: Mutex<HashMap<ProcessKey, Record>>,
    pub(crate) ended: Notify,
    rest: Rest,
    /// No container is left: the sandbox has ended with its last one, or the first was refused
    /// before there was a sandbox.
    emptied: Notify,
}

impl std::fmt::Debug for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Owner").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Owner {
    pub(crate) fn new(
        namespace: String,
        events: Arc<TaskEvents>,
        times: Recorder,
        view: EnginesView,
    ) -> Self {
        Self {
            namespace,
            events,
            times,
            view,
            sandbox: OnceLock::new(),
            booting: tokio::sync::Mutex::default(),
            records: Mutex::default(),
            ended: Notify::new(),
            rest: Rest::default(),
            emptied: Notify::new(),
        }
    }

    /// The sandbox; before there is one, every process is unknown.
    pub(crate) fn sandbox(&self) -> Result<&Sandbox, Failure> {
        self.sandbox.get().map(|up| &up.sandbox).ok_or_else(Failure::no_sandbox)
    }

    /// What the engine told of a process.
    pub(crate) fn record(&self, key: &ProcessKey) -> Result<Record, Failure> {
        self.records().get(key).cloned().ok_or_else(|| Failure::unknown(key))
    }

    /// Makes a container, and for the first one its sandbox. Returns the pid that stands for it.
    pub(crate) async fn create(&self, order: CreateOrder) -> Result<u32, Failure> {
        let created = self.make(order).await;
        if created.is_err() && self.is_empty() {
            self.emptied.notify_one();
        }
        created
    }

    async fn make(&self, order: CreateOrder) -> Result<u32, Failure> {
        self.times.stamp(Stage::CreateAsked);
        let asked = Asked::of(&order)?;
        let is_by_hand = order.hooks_are_run;
        let req = order.req;
        let key = ProcessKey::init(&req.id);
        let record = Record {
            bundle: req.bundle.clone(),
            stdin: req.stdin.clone(),
            stdout: req.stdout.clone(),
            stderr: req.stderr.clone(),
            terminal: req.terminal,
            hooks: ContainerHooks::of(&asked.spec, &req.id, &asked.bundle),
        };
        let stdio = self.stdio(&key, &record).opened().await;
        let stdio = stdio.map_err(|error| Failure::invalid("stdio", &error))?;
        let Up { runtime, sandbox, .. } = self.sandbox_for(&asked).await?;
        if record.hooks.is_some() {
            // What would be refused after them is refused before.
            asked.container(runtime)?;
        }
        let made = async {
            if let Some(hooks) = &record.hooks {
                hooks.before(&self.view, sandbox.pid()).await?;
            }
            let plan = asked.container(runtime)?;
            sandbox.create(plan, Box::new(stdio)).await.map_err(Failure::create)
        };
        if let Err(error) = made.await {
            if sandbox.is_empty() {
                sandbox.stop("its first container could not be created").await;
            }
            if let Some(hooks) = &record.hooks {
                hooks.deleted(&self.view).await;
            }
            return Err(error);
        }
        // Where conmon is between, that writes it.
        if !is_by_hand && are_of_cri_o(asked.spec.annotations().as_ref()) {
            self.events.tell_by_file(&req.id, &asked.bundle);
        }
        self.records().insert(key, record);
        self.events.created(&req, sandbox.pid());
        Ok(sandbox.pid())
    }

    /// Whether [`Owner::create`] would refuse the container before it does anything.
    pub(crate) async fn check(&self, order: CreateOrder) -> Result<(), Failure> {
        let asked = Asked::of(&order)?;
        let _booting = self.booting.lock().await;
        if let Some(up) = self.up_for(&asked)? {
            return asked.container(&up.runtime).map(drop);
        }
        let (_, plan) = asked.sandbox()?;
        Ok(kata_sandbox::check_network(&plan)?)
    }

    /// The sandbox that the container belongs to; `None` when there is none yet.
    fn up_for(&self, asked: &Asked) -> Result<Option<&Up>, Failure> {
        let Some(up) = self.sandbox.get() else { return Ok(None) };
        match &asked.role {
            ContainerRole::PodMember(sandbox) if *sandbox == up.id => Ok(Some(up)),
            _ => Err(Failure::second_sandbox(&asked.id)),
        }
    }

    async fn sandbox_for(&self, asked: &Asked) -> Result<&Up, Failure> {
        let _booting = self.booting.lock().await;
        if let Some(up) = self.up_for(asked)? {
            return Ok(up);
        }
        let (runtime, plan) = asked.sandbox()?;
        self.times.stamp(Stage::PlanReady);
        let events = Arc::clone(&self.events);
        let times = self.times.clone();
        let sandbox = Sandbox::boot(plan, runtime.hypervisor(), events, times).await?;
        self.events.set_pid(sandbox.pid());
        Ok(self.sandbox.get_or_init(|| Up { id: asked.id.clone(), runtime, sandbox }))
    }

    /// Starts a process that was created or registered.
    pub(crate) async fn start(&self, key: &ProcessKey) -> Result<(), Failure> {
        let sandbox = self.sandbox()?;
        sandbox.start(key).await?;
        self.rest.come_soon();
        // One that has ended and was deleted meanwhile is beyond that.
        let Ok(Record { hooks: Some(hooks), .. }) = self.record(key) else { return Ok(()) };
        if let Err(failure) = hooks.started(&self.view, sandbox.pid()).await {
            // That it has ended by itself is as good.
            let _ = sandbox.kill(key, SIGKILL, true).await;
            let _ = sandbox.wait(key).await;
            return Err(failure);
        }
        Ok(())
    }

    /// Registers a process to be added to a container.
    pub(crate) fn exec(
        &self,
        key: &ProcessKey,
        process: Process,
        record: Record,
    ) -> Result<(), Failure> {
        let stdio = self.stdio(key, &record);
        self.sandbox()?.exec(key, process, Box::new(stdio))?;
        self.records().insert(key.clone(), record);
        self.events.exec_added(key);
        Ok(())
    }

    /// Deletes a process, and with an init its container.
    pub(crate) async fn delete(&self, key: &ProcessKey) -> Result<(u32, Exit), Failure> {
        let sandbox = self.sandbox()?;
        let exit = sandbox.delete(key).await?.unwrap_or_else(Exit::killed);
        self.rest.come_soon();
        let hooks = self.record(key).ok().and_then(|record| record.hooks);
        self.records().retain(|one, _| match key.exec {
            None => one.container != key.container,
            Some(_) => one != key,
        });
        if let Some(hooks) = hooks {
            hooks.deleted(&self.view).await;
        }
        self.events.deleted(key, sandbox.pid(), exit);
        if sandbox.is_empty() {
            self.emptied.notify_one();
        }
        Ok((sandbox.pid(), exit))
    }

    /// Deletes a process whatever it does: one that runs, or is about to, is killed first.
    pub(crate) async fn end(&self, key: &ProcessKey) -> Result<(u32, Exit), Failure> {
        self.sandbox()?.end(key).await;
        self.delete(key).await
    }

    /// Waits until the engine has had its last container deleted, or its first refused, and for far
    /// longer than it takes to say shut down then. It says nothing more if it was killed in
    /// between, and containerd 1.6 does not look for such a shim when it is started again.
    pub(crate) async fn forgotten(&self) {
        loop {
            self.emptied.notified().await;
            tokio::time::sleep(SHUTDOWN).await;
            let _booting = self.booting.lock().await;
            if self.is_empty() {
                return;
            }
        }
    }

    /// Whether there is no container, and no sandbox that one is being made in.
    fn is_empty(&self) -> bool {
        self.sandbox.get().is_none_or(|up| up.sandbox.is_empty())
    }

    /// Ends the service if no container is left, and the sandbox with it.
    pub(crate) async fn shut_down(&self) {
        let _booting = self.booting.lock().await;
        if let Some(Up { sandbox, .. }) = self.sandbox.get() {
            if !sandbox.is_empty() {
                return;
            }
            sandbox.stop("it was shut down").await;
        }
        self.ended.notify_one();
    }

    /// Ends the sandbox whatever runs in it.
    pub(crate) async fn stop(&self, reason: &str) {
        let _booting = self.booting.lock().await;
        if let Some(Up { sandbox, .. }) = self.sandbox.get() {
            sandbox.stop(reason).await;
        }
    }

    fn stdio(&self, key: &ProcessKey, record: &Record) -> HostStdio {
        let spec = StdioSpec {
            stdin: record.stdin.clone(),
            stdout: record.stdout.clone(),
            stderr: record.stderr.clone(),
            terminal: record.terminal,
        };
        let id = key.exec.as_ref().unwrap_or(&key.container).clone();
        HostStdio::new(spec, StdioIds { id, namespace: self.namespace.clone() })
    }

    fn records(&self) -> MutexGuard<'_, HashMap<ProcessKey, Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_spec(bundle: &Path) -> Result<Spec, Failure> {
    let path = bundle.join("config.json");
    Spec::load(&path)
        .map_err(|error| Failure::invalid(&format!("bundle's {}", path.display()), &error))
}

/// Says where the network namespace is that the spec asks for.
fn fill_in_network_namespace(spec: &mut Spec, path: &Path) {
    let namespaces = spec.linux_mut().as_mut().and_then(|linux| linux.namespaces_mut().as_mut());
    for one in namespaces.into_iter().flatten() {
        if one.typ() == LinuxNamespaceType::Network && one.path().is_none() {
            one.set_path(Some(path.to_owned()));
        }
    }
}

/// Leaves only the hooks that would have to run in the guest.
fn forget_host_hooks(spec: &mut Spec) {
    let Some(hooks) = spec.hooks_mut() else { return };
    hooks.set_prestart(None);
    hooks.set_create_runtime(None);
    hooks.set_poststart(None);
    hooks.set_poststop(None);
}

fn rootfs_mount(mount: &Mount) -> RootfsMount {
    RootfsMount {
        fstype: mount.type_.clone(),
        source: mount.source.clone(),
        target: mount.target.clone(),
        options: mount.options.clone(),
    }
}
