//! Bringing a sandbox up: file server and VM side by side, then the agent, each stage with a
//! deadline and with an eye on everything that may die meanwhile.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kata_agent_client::AgentClient;
use kata_channel::AGENT_PORT;
use kata_hypervisor::{Hypervisor, HypervisorError, ShareSource, Vm, VmExit, VmSpec};
use kata_log::chain;
use kata_storage::{FileServer, Share};
use kata_timeline::{Recorder, Stage};
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::time::{Instant, sleep_until};

use crate::diagnosis::{self, quote};
use crate::network::SandboxNetwork;
use crate::timing::record_guest;
use crate::{BootError, BootStage, Footprint, SandboxPlan};

/// How long the death of a part may take to explain a broken channel, and the last output to be
/// delivered after it.
pub(crate) const GRACE: Duration = Duration::from_secs(2);

/// How long the guest may take to write its dirty pages out before its VM is ended.
pub(crate) const FAREWELL: Duration = Duration::from_secs(5);

/// The same for a guest with disks of its own, whose page cache may be as large as its memory.
pub(crate) const FAREWELL_TO_DISKS: Duration = Duration::from_secs(60);

/// Bytes of random numbers for a guest: twice what its generator keeps.
const SEED: usize = 64;

/// How long the VM's death may take to follow what it has caused.
const DEATH: Duration = Duration::from_millis(500);

/// The parts of a sandbox that is up.
pub(crate) struct Booted {
    pub(crate) vm: Arc<dyn Vm>,
    pub(crate) agent: AgentClient,
    /// `None` where the guest gets images and copies.
    pub(crate) share: Option<Share>,
    pub(crate) file_server: Option<FileServer>,
    pub(crate) footprint: Footprint,
    pub(crate) network: Option<SandboxNetwork>,
}

/// Boots what the plan says. On error everything that was started has been taken down again.
pub(crate) async fn boot(
    plan: &SandboxPlan,
    hypervisor: &dyn Hypervisor,
    times: &Recorder,
) -> Result<Booted, BootError> {
    let footprint = Footprint::make(&plan.id, &plan.vm.run_dir, &plan.cgroup)?;
    times.stamp(Stage::FootprintMade);
    let mut network = None;
    match boot_parts(plan, hypervisor, &footprint, &mut network, times).await {
        Ok((vm, agent, share, file_server)) => {
            footprint.sweep_others();
            Ok(Booted { vm, agent, share, file_server, footprint, network })
        }
        Err(error) => {
            if let Some(network) = network {
                network.leave().await;
            }
            if let Err(left) = footprint.remove() {
                tracing::warn!("after the failed boot: {left}");
            }
            Err(error)
        }
    }
}

type Parts = (Arc<dyn Vm>, AgentClient, Option<Share>, Option<FileServer>);

async fn boot_parts(
    plan: &SandboxPlan,
    hypervisor: &dyn Hypervisor,
    footprint: &Footprint,
    network: &mut Option<SandboxNetwork>,
    times: &Recorder,
) -> Result<Parts, BootError> {
    if !plan.placement.is_anywhere() {
        footprint.cgroups().place(&plan.placement)?;
    }
    *network = SandboxNetwork::open(&plan.network, footprint).await?;
    if network.is_some() {
        times.stamp(Stage::NetworkReady);
    }
    let mut spec = vm_spec(plan, network.as_mut());
    let share = match &plan.images {
        Some(images) => footprint.make_images(&images.directory).map(|()| None)?,
        None => Some(share(plan)?),
    };
    let started = match start(plan, &spec, hypervisor, times).await {
        Err(BootError::Hypervisor(error @ HypervisorError::Template { .. })) => {
            let why = chain(&error);
            tracing::warn!("{why}; it boots instead. `kata-runtime factory init` makes a new one");
            spec.template = None;
            start(plan, &spec, hypervisor, times).await
        }
        started => started,
    };
    let (vm, file_server) = started?;
    times.stamp(Stage::VmmGreeted);
    times.stamp_at(Stage::VmmExecuted, vm.executed());
    let children: Vec<u32> =
        [vm.pid()].into_iter().chain(file_server.as_ref().map(FileServer::pid)).collect();
    let reached = match footprint.record(&children) {
        Ok(()) => {
            reach_agent(plan, vm.as_ref(), file_server.as_ref(), network.as_ref(), times).await
        }
        Err(error) => Err(error.into()),
    };
    match reached {
        Ok(agent) => Ok((vm, agent, share, file_server)),
        Err(error) => {
            vm.stop().await;
            stop(file_server.as_ref()).await;
            Err(error)
        }
    }
}

/// Starts the file server and the VM. On error neither is left.
async fn start(
    plan: &SandboxPlan,
    spec: &VmSpec,
    hypervisor: &dyn Hypervisor,
    times: &Recorder,
) -> Result<(Arc<dyn Vm>, Option<FileServer>), BootError> {
    let file_server = plan.file_server.as_ref().map(FileServer::start).transpose()?;
    if let Some(server) = &file_server {
        times.stamp_at(Stage::FileServerExecuted, server.executed());
    }
    match boot_vm(plan, spec, hypervisor, file_server.as_ref()).await {
        Ok(vm) => Ok((vm, file_server)),
        Err(error) => {
            stop(file_server.as_ref()).await;
            Err(error)
        }
    }
}

/// The shared directory with what everything in the guest may see.
fn share(plan: &SandboxPlan) -> Result<Share, BootError> {
    let mut share = Share::create(&plan.vm.run_dir)?;
    if plan.vm.shares.iter().any(|share| matches!(share.source, ShareSource::Directory(_))) {
        share = share.for_trusting_server();
    }
    for mount in &plan.sandbox_mounts {
        share.add_sandbox_mount(&mount.source, mount.readonly)?;
    }
    Ok(share)
}

/// The plan's VM with its network.
fn vm_spec(plan: &SandboxPlan, network: Option<&mut SandboxNetwork>) -> VmSpec {
    let mut spec = plan.vm.clone();
    let Some(network) = network else { return spec };
    spec.hot_plug |= plan.network.hot_plug && network.is_empty();
    spec.nics = network.take_nics();
    if plan.network.vmm_inside || plan.network.named_taps.is_some() {
        spec.network_namespace = Some(network.namespace().descriptor());
    }
    spec
}

async fn boot_vm(
    plan: &SandboxPlan,
    spec: &VmSpec,
    hypervisor: &dyn Hypervisor,
    file_server: Option<&FileServer>,
) -> Result<Arc<dyn Vm>, BootError> {
    kick_ksm_throttler();
    let mut boot = hypervisor.boot(spec);
    tokio::select! {
        biased;
        vm = &mut boot => Ok(Arc::from(vm?)),
        // A VMM may try to connect for longer than anybody wants to wait.
        last_words = end_of(file_server) => {
            // A VMM that dies takes its file server along, and knows better why.
            match tokio::time::timeout(DEATH, boot).await {
                Ok(Err(error)) => Err(error.into()),
                _ => Err(file_server_ended(plan, &last_words)),
            }
        }
    }
}

fn file_server_ended(plan: &SandboxPlan, last_words: &[String]) -> BootError {
    BootError::FileServer {
        program: plan.file_server.as_ref().map_or_else(PathBuf::new, |spec| spec.program.clone()),
        last_words: quote(last_words, "it said nothing"),
    }
}

/// Tells the KSM throttler, where there is one, that a VM starts. Nobody waits for it, and a boot
/// without it is as good.
fn kick_ksm_throttler() {
    tokio::spawn(async {
        let socket = Path::new(kata_ksm_api::SOCKET);
        if !socket.exists() {
            return;
        }
        if let Err(error) = kata_ksm_api::kick(socket).await {
            tracing::warn!("the KSM throttler at {} was not kicked: {error}", socket.display());
        }
    });
}

/// From a running VM to an agent that has set the sandbox up.
async fn reach_agent(
    plan: &SandboxPlan,
    vm: &dyn Vm,
    file_server: Option<&FileServer>,
    network: Option<&SandboxNetwork>,
    times: &Recorder,
) -> Result<AgentClient, BootError> {
    let console = vm.console();
    let hello = async {
        let stream = vm.dial(AGENT_PORT).await?;
        let agent = AgentClient::new(stream, plan.deadlines.request);
        times.stamp(Stage::AgentReached);
        if vm.is_a_copy() {
            part_ways(&agent).await?;
        }
        let told = agent.create_sandbox(&plan.guest).await.map_err(BootError::Agent)?;
        times.stamp(Stage::SandboxCreated);
        // What a template did before is no part of this start.
        if !vm.is_a_copy() {
            record_guest(times, told);
        }
        if let Some(network) = network {
            network.configure(&agent).await?;
        }
        times.stamp(Stage::GuestNetworkReady);
        Ok(agent)
    };
    let kernel_deadline = Instant::now() + plan.deadlines.kernel;
    let late = async {
        tokio::select! {
            () = console.kernel_up() => {}
            () = sleep_until(kernel_deadline) => return (BootStage::Kernel, plan.deadlines.kernel),
        }
        tokio::time::sleep(plan.deadlines.agent).await;
        (BootStage::Agent, plan.deadlines.agent)
    };
    // Biased: when the VM's death has also broken the channel, the death is the cause and the one
    // to tell.
    let failure = tokio::select! {
        biased;
        exit = vm.exited() => return Err(died(plan, vm, &exit)),
        last_words = end_of(file_server) => file_server_ended(plan, &last_words),
        agent = hello => match agent {
            Err(error) => error,
            agent => return agent,
        },
        (stage, after) = late => {
            return Err(BootError::Late { stage, after, last_words: last_words(plan, vm) });
        }
    };
    // A channel that breaks and a file server that ends are most often a VM that dies: wait a
    // moment for the better reason.
    let exit = tokio::time::timeout(DEATH, vm.exited()).await;
    Err(exit.map_or(failure, |exit| died(plan, vm, &exit)))
}

/// Gives a guest from a template random numbers and a time of its own, before anybody uses the
/// template's.
async fn part_ways(agent: &AgentClient) -> Result<(), BootError> {
    let mut seed = [0; SEED];
    getrandom(&mut seed, GetRandomFlags::empty())
        .map_err(|errno| BootError::Entropy(errno.into()))?;
    agent.reseed_random_dev(&seed).await.map_err(BootError::Agent)?;
    agent.set_guest_date_time(SystemTime::now()).await.map_err(BootError::Agent)
}

/// Resolves when the file server has ended, with its last words; never where there is none.
pub(crate) async fn end_of(file_server: Option<&FileServer>) -> Vec<String> {
    match file_server {
        Some(server) => {
            server.exited().await;
            server.stderr()
        }
        None => std::future::pending().await,
    }
}

/// Ends the file server, if there is one.
pub(crate) async fn stop(file_server: Option<&FileServer>) {
    if let Some(server) = file_server {
        server.stop().await;
    }
}

fn died(plan: &SandboxPlan, vm: &dyn Vm, exit: &VmExit) -> BootError {
    let stage = if vm.console().kernel_is_up() { BootStage::Agent } else { BootStage::Kernel };
    let cause = diagnosis::cause(vm, exit);
    BootError::Died { stage, cause, last_words: last_words(plan, vm) }
}

/// What VMM and guest said last, and what to do about it.
fn last_words(plan: &SandboxPlan, vm: &dyn Vm) -> String {
    diagnosis::last_words(vm) + &diagnosis::remedy(vm, &plan.vm)
}
