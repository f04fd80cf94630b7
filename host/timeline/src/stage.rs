//! The stages of a start, and who is busy between them.

use serde::{Deserialize, Serialize};

/// The end of a stage. In the order in which they are usually reached, which is the order of the
/// table where two moments are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// The engine has executed the shim, or the command line that stands for it.
    ShimAsked,
    /// The sandbox's server takes requests.
    ServerUp,
    /// The engine has asked it for the first container.
    CreateAsked,
    /// Configuration and spec are read and everything is decided.
    PlanReady,
    /// The sandbox's directory and cgroup are there.
    FootprintMade,
    /// The sandbox's network is joined to devices for the VM, where it has one.
    NetworkReady,
    /// The file server was executed. Its socket takes connections.
    FileServerExecuted,
    /// The VMM was executed.
    VmmExecuted,
    /// The VMM has said hello.
    VmmGreeted,
    /// The guest's first instruction: its kernel's, or a few milliseconds earlier its firmware's.
    KernelEntered,
    /// The guest's kernel executes its init (its own time stamp of that message).
    KernelDone,
    /// The agent's first instruction.
    AgentStarted,
    /// The agent has set the machine up (file systems, modules) and serves.
    AgentReady,
    /// The host has a connection to the agent.
    AgentReached,
    /// The agent has prepared the guest for containers.
    SandboxCreated,
    /// The guest's network is configured, where the sandbox has one.
    GuestNetworkReady,
    /// The hooks before the container have run, and the VM has been given room for it.
    RoomMade,
    /// The container's files are where the guest finds them.
    StorageShared,
    /// The container's first process waits in the guest.
    ContainerCreated,
    /// The engine has asked for the container's start.
    StartAsked,
    /// The container's program has been let go.
    ProcessExecuted,
    /// The first byte of what it writes is on the host.
    FirstOutput,
}

/// Who is at work: a row of the picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// containerd, Podman, or whoever asked.
    Engine,
    /// The sandbox's owner on the host.
    Shim,
    /// The virtio-fs server.
    FileServer,
    /// The virtual machine monitor, until the guest's kernel runs.
    Vmm,
    /// The guest's kernel, until it executes the agent.
    Kernel,
    /// The agent.
    Agent,
    /// The container's first process.
    Container,
}

/// A stretch of work of one lane, from one stage to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Who works.
    pub lane: Lane,
    /// At what, in two or three words.
    pub what: &'static str,
    /// The stage at whose end it begins.
    pub from: Stage,
    /// The stage that it is.
    pub to: Stage,
}

const fn span(lane: Lane, what: &'static str, from: Stage, to: Stage) -> Span {
    Span { lane, what, from, to }
}

impl Span {
    /// All of them, in the order of the lanes.
    pub const ALL: &[Self] = &[
        span(Lane::Engine, "asks for a container", Stage::ServerUp, Stage::CreateAsked),
        span(Lane::Engine, "asks for its start", Stage::ContainerCreated, Stage::StartAsked),
        span(Lane::Shim, "starts its server", Stage::ShimAsked, Stage::ServerUp),
        span(Lane::Shim, "plans", Stage::CreateAsked, Stage::PlanReady),
        span(Lane::Shim, "directory, cgroup", Stage::PlanReady, Stage::FootprintMade),
        span(Lane::Shim, "network", Stage::FootprintMade, Stage::NetworkReady),
        span(Lane::Shim, "hooks, memory", Stage::GuestNetworkReady, Stage::RoomMade),
        span(Lane::Shim, "shares files", Stage::RoomMade, Stage::StorageShared),
        // Its own readiness shows in nothing: clients wait in its socket from the start on.
        span(Lane::FileServer, "meets the VMM", Stage::FileServerExecuted, Stage::VmmGreeted),
        span(Lane::Vmm, "builds the machine", Stage::VmmExecuted, Stage::KernelEntered),
        span(Lane::Kernel, "boots", Stage::KernelEntered, Stage::KernelDone),
        span(Lane::Agent, "is loaded", Stage::KernelDone, Stage::AgentStarted),
        span(Lane::Agent, "sets the machine up", Stage::AgentStarted, Stage::AgentReady),
        span(Lane::Agent, "is dialled", Stage::AgentReady, Stage::AgentReached),
        span(Lane::Agent, "makes the sandbox", Stage::AgentReached, Stage::SandboxCreated),
        span(Lane::Agent, "network", Stage::SandboxCreated, Stage::GuestNetworkReady),
        span(Lane::Agent, "makes the container", Stage::StorageShared, Stage::ContainerCreated),
        span(Lane::Agent, "starts it", Stage::StartAsked, Stage::ProcessExecuted),
        span(Lane::Container, "first output", Stage::ProcessExecuted, Stage::FirstOutput),
    ];
}

impl Lane {
    /// All of them, from the top of the picture.
    pub const ALL: [Self; 7] = [
        Self::Engine,
        Self::Shim,
        Self::FileServer,
        Self::Vmm,
        Self::Kernel,
        Self::Agent,
        Self::Container,
    ];

    /// Its name for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Engine => "engine",
            Self::Shim => "shim",
            Self::FileServer => "file server",
            Self::Vmm => "VMM",
            Self::Kernel => "guest kernel",
            Self::Agent => "agent",
            Self::Container => "container",
        }
    }
}

impl Stage {
    /// Its name for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ShimAsked => "shim asked",
            Self::ServerUp => "server up",
            Self::CreateAsked => "container asked for",
            Self::PlanReady => "plan ready",
            Self::FootprintMade => "directory and cgroup made",
            Self::NetworkReady => "network ready",
            Self::FileServerExecuted => "file server executed",
            Self::VmmExecuted => "VMM executed",
            Self::VmmGreeted => "VMM said hello",
            Self::KernelEntered => "kernel entered",
            Self::KernelDone => "kernel done",
            Self::AgentStarted => "agent started",
            Self::AgentReady => "agent ready",
            Self::AgentReached => "agent reached",
            Self::SandboxCreated => "sandbox created",
            Self::GuestNetworkReady => "guest's network ready",
            Self::RoomMade => "room made",
            Self::StorageShared => "files shared",
            Self::ContainerCreated => "container created",
            Self::StartAsked => "start asked for",
            Self::ProcessExecuted => "process executed",
            Self::FirstOutput => "first output byte",
        }
    }
}
