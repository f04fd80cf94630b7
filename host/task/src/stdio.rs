//! The host's side of a process's standard streams: fifos, files and log programs, and the copying
//! between them and the guest.
//!
//! ```text
//!   open ──▶ ProcessStdio ──attach──▶ AttachedStdio ──drained──▶ all ends closed
//!              fifos open, log         stdin ─▶ guest
//!              program ready           guest ─▶ stdout, stderr
//! ```
//!
//! What the guest has written is never lost while somebody may still read it: a slow reader holds
//! the process up, as a pipe would. Once the process has ended, only readers that are really there
//! are waited for, and its end is told in spite of one that takes nothing.

mod fifo;
mod input;
mod location;
mod log_program;
mod output;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use kata_sandbox::Delivery;
use tokio::sync::watch;

use fifo::StdinFifo;
use input::StdinHold;
use location::{Location, LocationError};
use log_program::LogProgram;
use output::Sink;

/// Where the engine wants a process's streams; an empty text is a stream that is not wanted.
#[derive(Debug, Clone, Default)]
pub(crate) struct StdioSpec {
    /// A fifo.
    pub(crate) stdin: String,
    /// A fifo, a file, or a `binary://` or `file://` URI, which then stands for stderr too.
    pub(crate) stdout: String,
    /// As stdout. Of no meaning with a terminal.
    pub(crate) stderr: String,
    /// Whether the process has a terminal: there is one stream of output then, stdout.
    pub(crate) terminal: bool,
}

/// Whose streams they are; a log program is told.
#[derive(Debug, Clone)]
pub(crate) struct StdioIds {
    /// The container's id; for an exec, its own.
    pub(crate) id: String,
    /// The engine's namespace.
    pub(crate) namespace: String,
}

/// Why streams cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StdioError {
    #[error("the location of stdout cannot be understood")]
    Location(#[from] LocationError),
    #[error("cannot open {} for {stream}", path.display())]
    Open {
        stream: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot start the log program {}", path.display())]
    LogProgram {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the log program {} was not ready within {seconds} s", path.display())]
    LogProgramNotReady { path: PathBuf, seconds: u64 },
}

/// The guest's side of the streams.
#[async_trait]
pub(crate) trait GuestStreams: Send + Sync {
    /// The next bytes of stdout, at most `max`; waits for them. Empty at the end.
    async fn read_stdout(&self, max: u32) -> Result<Vec<u8>, StreamError>;
    /// The next bytes of stderr, as stdout.
    async fn read_stderr(&self, max: u32) -> Result<Vec<u8>, StreamError>;
    /// Writes to stdin and says how many bytes were taken; waits while none can be.
    async fn write_stdin(&self, bytes: Vec<u8>) -> Result<usize, StreamError>;
    /// Closes stdin.
    async fn close_stdin(&self) -> Result<(), StreamError>;
}

/// The guest, or the process in it, cannot be reached: to a stream that is its end.
#[derive(Debug, thiserror::Error)]
#[error("the process's stream in the guest has ended")]
pub(crate) struct StreamError(#[source] Box<dyn std::error::Error + Send + Sync>);

impl StreamError {
    /// Wraps whatever went wrong on the way to the guest.
    pub(crate) fn new(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(source.into())
    }
}

/// Streams that are open on the host, before the guest has the process. Dropping it closes them.
#[derive(Debug)]
pub(crate) struct ProcessStdio {
    stdin: Option<StdinFifo>,
    hold: StdinHold,
    stdout: Sink,
    stderr: Sink,
    log_program: Option<LogProgram>,
    terminal: bool,
}

impl ProcessStdio {
    /// Opens what `spec` asks for. Never waits for a fifo's other end; waits for a log program to
    /// say that it is ready.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(crate) async fn open(spec: &StdioSpec, ids: &StdioIds) -> Result<Self, StdioError> {
        let (stdin, hold) = match Location::of(&spec.stdin)? {
            Location::Nowhere => (None, StdinHold::default()),
            Location::Path(path) => {
                let (fifo, writer) = StdinFifo::open(&path).map_err(in_opening("stdin", &path))?;
                (Some(fifo), StdinHold::new(writer))
            }
            Location::File(_) | Location::Program { .. } => {
                return Err(LocationError::NotForStdin { text: spec.stdin.clone() }.into());
            }
        };
        let (stdout, stderr, log_program) = open_outputs(spec, ids).await?;
        Ok(Self { stdin, hold, stdout, stderr, log_program, terminal: spec.terminal })
    }

    /// Starts to copy. To be called once the guest knows the process.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(crate) fn attach(self, guest: Arc<dyn GuestStreams>) -> AttachedStdio {
        let (ended, is_ended) = watch::channel(false);
        let (copying, done) = watch::channel(());
        let (stalled, is_stalled) = watch::channel(false);
        output::spawn(
            output::Stream::Stdout,
            self.stdout,
            Arc::clone(&guest),
            output::Watched { ended: is_ended.clone(), stalled: stalled.clone() },
            copying.clone(),
        );
        if self.terminal {
            drop(copying);
        } else {
            output::spawn(
                output::Stream::Stderr,
                self.stderr,
                Arc::clone(&guest),
                output::Watched { ended: is_ended.clone(), stalled },
                copying,
            );
        }
        let done = match self.log_program {
            None => done,
            // Its output is delivered only when the program has dealt with it, which its end tells.
            Some(program) => {
                let (finishing, finished) = watch::channel(());
                tokio::spawn(async move {
                    program.finish(done).await;
                    drop(finishing);
                });
                finished
            }
        };
        let hold = self.hold.clone();
        input::spawn(self.stdin, self.hold, self.terminal, guest, is_ended);
        AttachedStdio { ended, stalled: is_stalled, done, hold }
    }
}

/// Streams that are being copied. Dropping it stops the input; output goes on to its end.
#[derive(Debug)]
pub(crate) struct AttachedStdio {
    ended: watch::Sender<bool>,
    /// Whether a reader has taken nothing for a while since the process ended.
    stalled: watch::Receiver<bool>,
    /// Closed when all output has been delivered.
    done: watch::Receiver<()>,
    hold: StdinHold,
}

impl AttachedStdio {
    /// Says that the process has ended, and resolves when all that it has written is in the fifos,
    /// in the files, or with the log program, and those are closed. Readers that are slow are
    /// waited for, and readers that are gone are not; those that take nothing for some seconds are
    /// [`Delivery::Stalled`].
    pub(crate) async fn drained(&self) -> Delivery {
        let mut stalled = self.stalled.clone();
        tokio::select! {
            biased;
            () = self.delivered() => Delivery::Whole,
            // An error is that nobody writes any more who could stall.
            Ok(_) = stalled.wait_for(|stalled| *stalled) => Delivery::Stalled,
        }
    }

    /// The same, however long somebody takes nothing.
    pub(crate) async fn delivered(&self) {
        self.ended.send_replace(true);
        let mut done = self.done.clone();
        while done.changed().await.is_ok() {}
    }

    /// Closes the process's stdin after what is still in the fifo and on its way. May be repeated.
    pub(crate) fn close_stdin(&self) {
        self.hold.release();
    }
}

/// The sinks of both output streams, and the program behind them if there is one.
async fn open_outputs(
    spec: &StdioSpec,
    ids: &StdioIds,
) -> Result<(Sink, Sink, Option<LogProgram>), StdioError> {
    let stdout = Location::of(&spec.stdout)?;
    if let Location::Program { path, args } = &stdout {
        let (program, out, err) = LogProgram::start(path, args, ids).await?;
        return Ok((Sink::Pipe(out), Sink::Pipe(err), Some(program)));
    }
    let out = open_output("stdout", &stdout)?;
    // The scheme of stdout rules both; one on stderr alone has no meaning to any engine.
    let stderr = match stdout {
        _ if spec.terminal => Location::Nowhere,
        file @ Location::File(_) => file,
        _ => match Location::of(&spec.stderr)? {
            path @ Location::Path(_) => path,
            _ => Location::Nowhere,
        },
    };
    Ok((out, open_output("stderr", &stderr)?, None))
}

fn open_output(stream: &'static str, location: &Location) -> Result<Sink, StdioError> {
    match location {
        Location::Path(path) => Sink::open(path).map_err(in_opening(stream, path)),
        Location::File(path) => Sink::open_or_create(path).map_err(in_opening(stream, path)),
        Location::Nowhere | Location::Program { .. } => Ok(Sink::Nowhere),
    }
}

fn in_opening(stream: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StdioError {
    let path = path.to_owned();
    move |source| StdioError::Open { stream, path, source }
}

#[cfg(test)]
mod tests;
