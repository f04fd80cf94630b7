//! What a sandbox needs from whoever uses it: somewhere for a process's streams, and somewhere for
//! events.

use std::sync::Arc;

use async_trait::async_trait;
use kata_agent_client::{AgentClient, AgentError, ProcessId};
use kata_timeline::Stage;

use crate::timing::Timing;
use crate::{Exit, ProcessKey};

/// Why the host's side of a process's streams cannot be used.
pub type StdioError = Box<dyn std::error::Error + Send + Sync>;

/// The host's side of a process's standard streams.
#[async_trait]
pub trait Stdio: Send {
    /// Opens what is not open yet. Called just before the process starts, and before
    /// [`Stdio::attach`].
    async fn open(&mut self) -> Result<(), StdioError>;

    /// Starts copying between the guest's process and the host. Called once, when the guest knows
    /// the process.
    fn attach(self: Box<Self>, process: GuestProcess) -> Arc<dyn AttachedStdio>;
}

/// How far the output of a process that has ended has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// All of it has reached whoever wants it.
    Whole,
    /// A reader has it open and has taken nothing for a while. The rest is still delivered when it
    /// does, as long as the VM is there.
    Stalled,
}

/// Streams that are being copied.
#[async_trait]
pub trait AttachedStdio: Send + Sync {
    /// To be called when the process has ended. Resolves when everything that it wrote has reached
    /// the host's side, or that side is gone; or when somebody is there who takes nothing. May be
    /// called again.
    async fn drained(&self) -> Delivery;

    /// The same, however long somebody takes nothing.
    async fn delivered(&self);

    /// Closes the process's stdin after what is still on its way to it. May be repeated.
    async fn close_stdin(&self);
}

/// One process in the guest, as its streams see it.
#[derive(Debug, Clone)]
pub struct GuestProcess {
    agent: AgentClient,
    id: ProcessId,
    timing: Arc<Timing>,
}

impl GuestProcess {
    pub(crate) fn new(agent: AgentClient, id: ProcessId, timing: Arc<Timing>) -> Self {
        Self { agent, id, timing }
    }

    /// The next bytes of stdout, at most `max`; empty at its end. Waits for as long as there are
    /// none.
    pub async fn read_stdout(&self, max: u32) -> Result<Vec<u8>, AgentError> {
        self.timed(self.agent.read_stdout(&self.id, max).await)
    }

    /// The next bytes of stderr, at most `max`; empty at its end, at once for a process with a
    /// terminal.
    pub async fn read_stderr(&self, max: u32) -> Result<Vec<u8>, AgentError> {
        self.timed(self.agent.read_stderr(&self.id, max).await)
    }

    fn timed(&self, output: Result<Vec<u8>, AgentError>) -> Result<Vec<u8>, AgentError> {
        if output.as_ref().is_ok_and(|bytes| !bytes.is_empty()) {
            self.timing.stamp_and_save(Stage::FirstOutput);
        }
        output
    }

    /// Writes to stdin and says how much was taken. Waits while the process does not read.
    pub async fn write_stdin(&self, bytes: Vec<u8>) -> Result<u32, AgentError> {
        self.agent.write_stdin(&self.id, bytes).await
    }

    /// Closes stdin: the process sees the end of its input.
    pub async fn close_stdin(&self) -> Result<(), AgentError> {
        self.agent.close_stdin(&self.id).await
    }
}

/// What happened in the sandbox by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SandboxEvent {
    /// A process runs. Comes before its exit, and before the answer to whoever asked for the start.
    Started {
        /// Which one.
        process: ProcessKey,
    },
    /// A process has ended, and its output has been delivered. Once for each process; an init's
    /// after those of its execs.
    Exited {
        /// Which one.
        process: ProcessKey,
        /// How.
        exit: Exit,
    },
    /// The guest's kernel has killed a process of the container for want of memory.
    OutOfMemory {
        /// The container's id.
        container: String,
    },
}

/// Takes events in their order. Must not block.
pub trait EventSink: Send + Sync {
    /// One more event.
    fn emit(&self, event: SandboxEvent);
}
