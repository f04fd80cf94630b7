//! What drivers have in common whose VMM is a child process: how its start fails, how it ends, and how its console is read.

use std::io;

use kata_http::ApiError;
use kata_linux::process::{Child, Exit, SpawnError};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::watch;

use crate::{Console, HypervisorError, VmExit};

/// Lines of a VMM's stderr that an error quotes.
const QUOTED_LINES: usize = 5;

impl VmExit {
    /// How the process ended, and why as far as the VMM said so.
    #[must_use]
    pub fn of(exit: Exit, reason: Option<String>) -> Self {
        let (code, signal) = match exit {
            Exit::Code(code) => (Some(code), None),
            Exit::Signal(signal) => (None, Some(signal)),
            Exit::Unknown => (None, None),
        };
        Self { code, signal, reason }
    }
}

impl HypervisorError {
    /// Why the VMM's program could not be started.
    #[must_use]
    pub fn not_spawned(program: String, error: SpawnError) -> Self {
        match error {
            SpawnError::Exec { source, .. } => Self::Spawn { program, source },
            error => Self::Setup { what: "a jail", source: io::Error::other(error) },
        }
    }

    /// Waits for the end of a VMM that is about to exit before the guest could start, and tells it with its last words.
    pub async fn of_death(program: String, vmm: &Child) -> Self {
        let exit = VmExit::of(vmm.exited().await, None);
        let stderr = match vmm.stderr().as_slice() {
            [] => "it wrote nothing to stderr".to_owned(),
            lines => lines[lines.len().saturating_sub(QUOTED_LINES)..].join("; "),
        };
        Self::Died { program, exit, stderr }
    }
}

/// An API error in the words of all drivers.
impl From<ApiError> for HypervisorError {
    fn from(error: ApiError) -> Self {
        match error {
            ApiError::Refused { request, reason, .. } => Self::Control { command: request, reason },
            ApiError::Broken { request, source } => Self::Control {
                command: request,
                reason: format!("its control socket is closed: {source}"),
            },
            ApiError::Malformed { request, source } => Self::Control {
                command: request,
                reason: format!("its answer is not understood: {source}"),
            },
        }
    }
}

/// The end of what a guest writes to its console. Clones wait for the same.
#[derive(Debug, Clone)]
pub struct ConsoleEnd(watch::Receiver<()>);

impl ConsoleEnd {
    /// Resolves when all that the guest wrote is in the ring and nothing more can come, that is with the VMM's end.
    pub async fn reached(&self) {
        let mut ended = self.0.clone();
        while ended.changed().await.is_ok() {}
    }
}

impl Console {
    /// Spawns the task that carries the guest's console from the VMM into this ring.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn collect(&self, mut from: impl AsyncRead + Send + Unpin + 'static) -> ConsoleEnd {
        let (end, ended) = watch::channel(());
        let into = self.clone();
        tokio::spawn(async move {
            let _end = end;
            let mut chunk = vec![0; 4096];
            // An error is as good as the end: pipes and socket pairs have no other failure than the loss of their peer.
            while let Ok(length @ 1..) = from.read(&mut chunk).await {
                into.push(&chunk[..length]);
            }
        });
        ConsoleEnd(ended)
    }
}
