//! A VMM as a child process: how its start fails, how it ends, and how its guest's console is read.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kata_http::ApiError;
use kata_linux::process::{Child, Exit, SpawnError};
use rustix::process::Signal;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::unix::pipe;
use tokio::sync::watch;

use crate::{Console, HypervisorError, VmExit, kvm_obstacle};

/// Lines of a VMM's stderr that an error quotes.
const QUOTED_LINES: usize = 5;

/// A VMM that runs, and what its guest writes to the console. Dropping it kills the process,
/// whoever else knows of it.
#[derive(Debug)]
pub struct Vmm {
    child: Arc<Child>,
    console: Console,
    console_end: ConsoleEnd,
}

impl Vmm {
    /// The VMM in `child`, whose guest writes its console to the other end of `console_output`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn new(child: Arc<Child>, console_output: impl AsyncRead + Send + Unpin + 'static) -> Self {
        let console = Console::new();
        let console_end = console.collect(console_output);
        Self { child, console, console_end }
    }

    /// Its process.
    #[must_use]
    pub fn child(&self) -> &Arc<Child> {
        &self.child
    }

    /// Its process id on the host.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// When its program had been executed.
    #[must_use]
    pub fn executed(&self) -> Instant {
        self.child.executed()
    }

    /// The guest's console.
    #[must_use]
    pub fn console(&self) -> Console {
        self.console.clone()
    }

    /// The last lines that it wrote to its stderr, oldest first.
    #[must_use]
    pub fn stderr(&self) -> Vec<String> {
        self.child.stderr()
    }

    /// Resolves when it has ended and been reaped, and all that the guest wrote is in the ring:
    /// whoever hears of the end wants the last words too.
    pub async fn exited(&self) -> Exit {
        let exit = self.child.exited().await;
        // With the VMM gone what it wrote to is at its end.
        self.console_end.reached().await;
        exit
    }

    /// What `hello` comes to, for which there is time until the VMM's program has run for `after`:
    /// then it is ended, and what it wrote to stderr is told. `program` is its name.
    pub async fn within<T>(
        &self,
        after: Duration,
        program: &str,
        hello: impl Future<Output = Result<T, HypervisorError>>,
    ) -> Result<T, HypervisorError> {
        let left = after.saturating_sub(self.executed().elapsed());
        if let Ok(said) = tokio::time::timeout(left, hello).await {
            return said;
        }
        self.child.end().await;
        let stderr = last_words(&self.child);
        Err(HypervisorError::Late { program: program.to_owned(), after, stderr })
    }

    /// Ends it without asking the guest, and returns when it is reaped.
    pub async fn stop(&self) {
        self.child.end().await;
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // Streams and tasks may hold on to the child longer than this. One that has ended is beyond
        // it.
        let _ = self.child.kill(Signal::KILL);
    }
}

/// A pipe from a VMM that is about to start: this process's end, and its.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn pipe_from_vmm() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (reader, writer) = io::pipe()?;
    Ok((pipe::Receiver::from_owned_fd(reader.into())?, writer.into()))
}

/// Refuses a host without a KVM that works, for a driver that needs it: where it is there and does
/// not work the guest would not say a word for ever.
pub fn need_kvm() -> Result<(), HypervisorError> {
    kvm_obstacle().map_or(Ok(()), |obstacle| {
        let source = io::Error::other(format!("{obstacle}; or use QEMU, which does without"));
        Err(HypervisorError::Setup { what: "KVM", source })
    })
}

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

    /// Waits for the end of a VMM that is about to exit before the guest could start, and tells it
    /// with its last words.
    pub async fn of_death(program: String, vmm: &Child) -> Self {
        let exit = VmExit::of(vmm.exited().await, None);
        Self::Died { program, exit, stderr: last_words(vmm) }
    }
}

/// What it wrote to stderr last.
fn last_words(vmm: &Child) -> String {
    match vmm.stderr().as_slice() {
        [] => "it wrote nothing to stderr".to_owned(),
        lines => lines[lines.len().saturating_sub(QUOTED_LINES)..].join("; "),
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
struct ConsoleEnd(watch::Receiver<()>);

impl ConsoleEnd {
    /// Resolves when all that the guest wrote is in the ring and nothing more can come, that is
    /// with the VMM's end.
    async fn reached(&self) {
        let mut ended = self.0.clone();
        while ended.changed().await.is_ok() {}
    }
}

impl Console {
    /// Spawns the task that carries the guest's console from the VMM into this ring.
    fn collect(&self, mut from: impl AsyncRead + Send + Unpin + 'static) -> ConsoleEnd {
        let (end, ended) = watch::channel(());
        let into = self.clone();
        tokio::spawn(async move {
            let _end = end;
            let mut chunk = vec![0; 4096];
            // An error is as good as the end: pipes and socket pairs have no other failure than the
            // loss of their peer.
            while let Ok(length @ 1..) = from.read(&mut chunk).await {
                into.push(&chunk[..length]);
            }
        });
        ConsoleEnd(ended)
    }
}

#[cfg(test)]
mod tests {
    use kata_linux::process::Spawn;

    use super::*;

    fn vmm() -> Vmm {
        let child = Spawn::new("sleep").args(["infinity"]).spawn().unwrap();
        Vmm::new(Arc::new(child), &b""[..])
    }

    #[tokio::test]
    async fn vmm_that_says_nothing_is_ended_when_its_time_is_over() {
        let vmm = vmm();
        let after = Duration::from_millis(20);
        let late = vmm.within(after, "/bin/vmm", std::future::pending::<Result<(), _>>()).await;
        assert_eq!(
            late.unwrap_err().to_string(),
            "the hypervisor /bin/vmm did not say within 0 s that it is ready: it wrote nothing to stderr"
        );
        assert!(vmm.child().exit().is_some(), "it lives");
        assert!(vmm.executed().elapsed() >= after);
    }

    #[tokio::test]
    async fn hello_and_refusal_are_passed_on() {
        let vmm = vmm();
        let after = Duration::from_secs(60);
        assert_eq!(vmm.within(after, "vmm", async { Ok(7) }).await.unwrap(), 7);
        let refused = vmm.within(after, "vmm", async { Err::<(), _>(HypervisorError::FixedVcpus) });
        assert!(matches!(refused.await, Err(HypervisorError::FixedVcpus)));
        assert_eq!(vmm.child().exit(), None, "it is not ended");
    }
}
