//! Containers and their processes, from the making to the end.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use kata_agent_api::agent::{
    CreateContainerRequest, ExecProcessRequest, RemoveContainerRequest, StringUser,
};
use kata_agent_api::convert::{process_from_wire, spec_from_wire};
use kata_guest_container::create;
use kata_guest_container::exec::{Target, exec};
use kata_guest_container::process::Process;
use kata_guest_container::spec::Plan;
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Spec};
use ttrpc::Code;

use crate::agent::Agent;
use crate::container::{Container, Ended, OomTask, Phase, Pids};
use crate::sandbox::{Sandbox, lock};
use crate::status::{Tell, invalid, not_found, refuse};
use crate::storage;
use crate::{devices, files, id};

/// How long the processes of a container may take to die when the host does not say.
const REMOVAL: Duration = Duration::from_secs(10);

/// The time between two looks at a container that dies late, where its end cannot be watched.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// `SIGKILL` of signal(7).
const SIGKILL: i32 = 9;

/// Annotations with which containerd and CRI-O name a kubelet's container; Podman may have CRI-O's,
/// too, and has its own name in another one.
const NAME_BY_KUBELET: [&str; 2] =
    ["io.kubernetes.cri.container-name", "io.kubernetes.cri-o.ContainerName"];

impl Agent {
    /// Makes a container, whose init then waits.
    pub(crate) async fn create_container(
        &self,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<()> {
        let id = id::check("container", &request.container_id)?.to_owned();
        refuse_passed_descriptors(request.stdin_port, request.stdout_port, request.stderr_port)?;
        refuse_named_user(request.string_user.as_ref())?;
        self.sandbox().reserve(&id)?;
        let made = self.make_container(&id, request).await;
        let (made, result) = match made {
            Ok(container) => (Some(Arc::new(container)), Ok(())),
            Err(error) => {
                files::forget(&id);
                (None, Err(error))
            }
        };
        self.sandbox().settle(&id, made);
        result
    }

    async fn make_container(
        &self,
        id: &str,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<Container> {
        let wire = request.OCI.into_option().ok_or_else(|| invalid("the request has no OCI"))?;
        let mut spec = spec_from_wire(wire).map_err(Tell::tell)?;
        if !request.guest_pidns {
            fence_pids(&mut spec);
        }
        devices::settle(&mut spec, &request.devices).await?;
        storage::await_disks(&request.storages).await?;
        let (plan, joined, storages) = {
            let mut sandbox = self.sandbox();
            let joined = sandbox.namespaces_for(request.sandbox_pidns, is_kubelets(&spec))?;
            let plan = Plan::new(spec, id, &joined.namespaces).map_err(Tell::tell)?;
            let mut storages = sandbox.storages.add(&request.storages)?;
            storages.extend(sandbox.storages.step_onto(&plan.spec));
            (plan, joined, storages)
        };
        let init = match self.make_init(id, &plan).await {
            Ok(init) => init,
            Err(error) => {
                self.sandbox().storages.release(&storages);
                return Err(error);
            }
        };
        self.keep_pid_namespace(&init);
        // Who sees the guest's has none of its own that another container could be let look into.
        let pids = if request.guest_pidns { Pids::Sandbox } else { joined.pids };
        let container = Container::new(id, plan, pids, init, storages);
        kill_with_init(&container);
        Ok(container)
    }

    /// Keeps the first container's process ids for those that are to share them.
    fn keep_pid_namespace(&self, init: &Process) {
        let mut sandbox = self.sandbox();
        if sandbox.namespaces.pid.is_some() {
            return;
        }
        if let Err(error) = sandbox.namespaces.share_pid(init) {
            // Whoever wants to share them will be told.
            tracing::warn!(error = &error as &dyn std::error::Error, "a pid namespace is not kept");
        }
    }

    async fn make_init(&self, id: &str, plan: &Plan) -> ttrpc::Result<Process> {
        // Until the pid is known and claimed, no status may be thrown away.
        let _hold = self.reaper.hold();
        let ended = |pid| self.reaper.claim(pid);
        let spawned = create::create(id, plan, self.settings.pipe_size, ended).await;
        let spawned = spawned.map_err(Tell::tell)?;
        let exit = self.exit_of(spawned.pid);
        Ok(Process::new(spawned, exit))
    }

    /// Lets a container's init run, and begins to listen for the out-of-memory killer.
    pub(crate) fn start_container(&self, id: &str) -> ttrpc::Result<()> {
        let container = self.container(id)?;
        if container.phase() != Phase::Created {
            let text = format!("container {id:?} has been started already, or is paused");
            return Err(refuse(Code::FAILED_PRECONDITION, text));
        }
        container.set_oom_watch(self.watch_oom(&container));
        if let Err(error) = create::start(id) {
            container.set_oom_watch(None);
            return Err(error.tell());
        }
        container.set_phase(Phase::Running);
        Ok(())
    }

    fn watch_oom(&self, container: &Container) -> Option<OomTask> {
        // Without a memory controller there is nothing to hear of.
        let mut watch = container.plan.cgroup.watch_oom().ok()?;
        let (id, events) = (container.id.clone(), self.oom_sender.clone());
        let task = tokio::spawn(async move {
            while watch.killed().await.is_ok() {
                tracing::info!(container = id, "the out-of-memory killer was here");
                // A host that does not listen must not fill the guest's memory.
                let _ = events.try_send(id.clone());
            }
        });
        Some(OomTask(task.abort_handle()))
    }

    /// Runs another process in a running container.
    pub(crate) async fn exec_process(&self, request: ExecProcessRequest) -> ttrpc::Result<()> {
        let container = self.container(&request.container_id)?;
        let exec_id = id::check("process", &request.exec_id)?;
        refuse_passed_descriptors(request.stdin_port, request.stdout_port, request.stderr_port)?;
        refuse_named_user(request.string_user.as_ref())?;
        let process = request.process.into_option();
        let process = process.ok_or_else(|| invalid("the request has no process"))?;
        let process = process_from_wire(process).map_err(Tell::tell)?;
        match container.phase() {
            // One that waits to be started has its namespaces and files already, and runc enters
            // it, too.
            Phase::Created | Phase::Running if container.init.status().is_none() => {}
            Phase::Paused { .. } => {
                let text = "cannot exec in a paused container (use --ignore-paused to override)";
                return Err(refuse(Code::FAILED_PRECONDITION, text));
            }
            Phase::Created | Phase::Running => {
                let text = "cannot exec in a container that is not running";
                return Err(refuse(Code::FAILED_PRECONDITION, text));
            }
        }
        if !container.reserve(exec_id) {
            let text = format!("there is a process {exec_id:?} in the container already");
            return Err(refuse(Code::ALREADY_EXISTS, text));
        }
        let made = self.make_process(&container, &process).await;
        let (made, result) = match made {
            Ok(process) => (Some(process), Ok(())),
            Err(error) => (None, Err(error)),
        };
        container.settle(exec_id, made);
        result
    }

    async fn make_process(
        &self,
        container: &Container,
        process: &oci_spec::runtime::Process,
    ) -> ttrpc::Result<Process> {
        // As for an init.
        let _hold = self.reaper.hold();
        let target = Target {
            init: &container.init,
            cgroup: &container.plan.cgroup,
            inherited: &container.plan.inherited,
        };
        let spawned = exec(&target, process, self.settings.pipe_size).await.map_err(Tell::tell)?;
        let exit = self.exit_of(spawned.pid);
        Ok(Process::new(spawned, exit))
    }

    /// Sends a signal to one process, or with an empty exec id to all of the container.
    pub(crate) async fn signal_process(
        &self,
        container_id: &str,
        exec_id: &str,
        signal: u32,
    ) -> ttrpc::Result<()> {
        let signal = i32::try_from(signal).map_err(|_| invalid("there is no such signal"))?;
        let container = self.container(container_id)?;
        if !exec_id.is_empty() {
            return self.process(&container, exec_id)?.signal(signal).map_err(Tell::tell);
        }
        if signal == SIGKILL {
            return container.plan.cgroup.kill().map_err(Tell::tell);
        }
        signal_all(&container, signal).await
    }

    /// Waits for a process to end and yields how it did.
    pub(crate) async fn wait_process(
        &self,
        container_id: &str,
        exec_id: &str,
    ) -> ttrpc::Result<Ended> {
        let container = self.container(container_id)?;
        let process = self.process(&container, exec_id)?;
        let status = process.wait().await;
        tracing::debug!(container = container_id, id = exec_id, ?status, "a process has ended");
        container.waited(exec_id);
        let status =
            status.ok_or_else(|| refuse(Code::INTERNAL, "the process's status was lost"))?;
        // A group without a memory controller kills nobody.
        let killed = || container.plan.cgroup.oom_kills().unwrap_or(0);
        Ok(Ended { status, out_of_memory: container.is_init(exec_id) && killed() > 0 })
    }

    /// Kills what is left of a container and takes it away.
    pub(crate) async fn remove_container(
        &self,
        request: &RemoveContainerRequest,
    ) -> ttrpc::Result<()> {
        let container = self.container(&request.container_id)?;
        let patience = match request.timeout {
            0 => REMOVAL,
            seconds => Duration::from_secs(seconds.into()),
        };
        self.take_away(&container, patience).await
    }

    /// Processes that do not die in time, for they wait for a disk or a file server, hold up the
    /// request no longer. The container is taken away when they have died.
    async fn take_away(&self, container: &Arc<Container>, patience: Duration) -> ttrpc::Result<()> {
        let cgroup = &container.plan.cgroup;
        cgroup.kill().map_err(Tell::tell)?;
        match tokio::time::timeout(patience, cgroup.emptied()).await {
            Ok(emptied) => emptied.map_err(Tell::tell)?,
            Err(_elapsed) => {
                if container.mourn() {
                    tokio::spawn(clear_when_dead(self.shared_sandbox(), Arc::clone(container)));
                }
                let id = &container.id;
                let text =
                    format!("processes of container {id:?} are still alive after {patience:?}");
                return Err(refuse(Code::DEADLINE_EXCEEDED, text));
            }
        }
        clear(&mut self.sandbox(), container);
        Ok(())
    }

    /// Takes every container away, and what the sandbox has mounted, and writes out what is cached:
    /// the host may stop the machine as soon as it is told that this is done.
    pub(crate) async fn take_all_away(&self) {
        let containers = self.sandbox().containers();
        // Each kills first and then waits, so that all are killed before any is waited for, and one
        // patience is enough for all.
        let removals = containers.iter().map(|container| async {
            if let Err(error) = self.take_away(container, REMOVAL).await {
                tracing::warn!(container = container.id, %error, "a container is left");
            }
        });
        join_all(removals).await;
        {
            let mut sandbox = self.sandbox();
            let mounted: Vec<PathBuf> = std::mem::take(&mut sandbox.own_storages);
            sandbox.storages.release(&mounted);
            sandbox.namespaces.unpin();
        }
        rustix::fs::sync();
    }

    /// Freezes or thaws a container, when what was asked for before is done.
    pub(crate) async fn set_paused(&self, id: &str, paused: bool) -> ttrpc::Result<()> {
        let container = self.container(id)?;
        let _turn = container.freezing.lock().await;
        let after = match (container.phase(), paused) {
            (Phase::Created, true) => Ok(Phase::Paused { started: false }),
            (Phase::Running, true) => Ok(Phase::Paused { started: true }),
            (Phase::Paused { started: false }, false) => Ok(Phase::Created),
            (Phase::Paused { started: true }, false) => Ok(Phase::Running),
            (Phase::Paused { .. }, true) => Err("container not running"),
            (Phase::Created | Phase::Running, false) => Err("container not paused"),
        };
        let after = after.map_err(|words| refuse(Code::FAILED_PRECONDITION, words))?;
        container.plan.cgroup.freeze(paused).await.map_err(Tell::tell)?;
        container.set_phase(after);
        Ok(())
    }

    /// A container by a checked id.
    pub(crate) fn container(&self, id: &str) -> ttrpc::Result<Arc<Container>> {
        self.sandbox().container(id::check("container", id)?)
    }

    /// A process of it.
    pub(crate) fn process(
        &self,
        container: &Container,
        exec_id: &str,
    ) -> ttrpc::Result<Arc<Process>> {
        let id = &container.id;
        container.process(exec_id).ok_or_else(|| {
            not_found(format!("there is no process {exec_id:?} in container {id:?}"))
        })
    }
}

/// Takes away what a container without processes has, unless that has been done.
fn clear(sandbox: &mut Sandbox, container: &Arc<Container>) {
    if sandbox.remove(container) {
        container.set_oom_watch(None);
        create::remove(&container.id, &container.plan);
        files::forget(&container.id);
        sandbox.storages.release(&container.storages);
    }
}

/// As above, as soon as it has no processes.
async fn clear_when_dead(sandbox: Arc<Mutex<Sandbox>>, container: Arc<Container>) {
    // It cannot be watched where inotify has run out.
    while let Err(error) = container.plan.cgroup.emptied().await {
        tracing::debug!(container = container.id, error = &error as &dyn std::error::Error);
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    tracing::info!(container = container.id, "its last process has died late");
    clear(&mut lock(&sandbox), &container);
}

/// With its pid namespace a container's processes end when its init does. In one that it shares
/// they would live on.
fn kill_with_init(container: &Container) {
    if !container.plan.shares_pids() {
        return;
    }
    let (init, cgroup) = (Arc::clone(&container.init), container.plan.cgroup.clone());
    tokio::spawn(async move {
        init.wait().await;
        if let Err(error) = cgroup.kill() {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "processes outlive their init"
            );
        }
    });
}

/// Frozen processes make no more of their kind, so nobody is missed.
async fn signal_all(container: &Container, signal: i32) -> ttrpc::Result<()> {
    let cgroup = &container.plan.cgroup;
    let thaw = !matches!(container.phase(), Phase::Paused { .. });
    cgroup.freeze(true).await.map_err(Tell::tell)?;
    for pid in cgroup.processes() {
        // A frozen process cannot end, so its id is its own.
        kata_guest_container::process::kill(pid, signal);
    }
    if thaw {
        cgroup.freeze(false).await.map_err(Tell::tell)?;
    }
    Ok(())
}

fn refuse_passed_descriptors(stdin: u32, stdout: u32, stderr: u32) -> ttrpc::Result<()> {
    if (stdin, stdout, stderr) == (0, 0, 0) {
        return Ok(());
    }
    Err(invalid(
        "this agent takes no passed descriptors: use ReadStdout, ReadStderr and WriteStdin",
    ))
}

fn refuse_named_user(user: Option<&StringUser>) -> ttrpc::Result<()> {
    match user {
        Some(user) if !user.uid.is_empty() || !user.gid.is_empty() => {
            Err(invalid("this agent resolves no user names: give the numbers in the specification"))
        }
        _ => Ok(()),
    }
}

/// Gives a container that has no pid namespace one of its own. Kata's runtime takes the entry out
/// and leaves it to the agent.
fn fence_pids(spec: &mut Spec) {
    let Some(linux) = spec.linux_mut() else { return };
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    if !namespaces.iter().any(|one| one.typ() == LinuxNamespaceType::Pid) {
        let mut own = LinuxNamespace::default();
        own.set_typ(LinuxNamespaceType::Pid);
        namespaces.push(own);
        linux.set_namespaces(Some(namespaces));
    }
}

/// Whether a kubelet has had the container made.
fn is_kubelets(spec: &Spec) -> bool {
    spec.annotations().as_ref().is_some_and(|all| {
        let is_podmans = all.get("io.container.manager").is_some_and(|name| name == "libpod");
        !is_podmans && NAME_BY_KUBELET.iter().any(|key| all.contains_key(*key))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn podmans_containers_are_no_kubelets() {
        let with = |annotations: &str| {
            let spec = format!(r#"{{"ociVersion":"1.0.2","annotations":{{{annotations}}}}}"#);
            is_kubelets(&serde_json::from_str(&spec).unwrap())
        };
        assert!(with(r#""io.kubernetes.cri.container-name":"c""#));
        assert!(with(r#""io.kubernetes.cri-o.ContainerName":"c""#));
        assert!(!with(
            r#""io.kubernetes.cri-o.ContainerName":"c","io.container.manager":"libpod""#
        ));
        assert!(!with(r#""a":"b""#));
    }
}
