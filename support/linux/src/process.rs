//! Child processes that never outlive their parent, and whose end is an event.
//!
//! ```text
//!   Spawn::new(..).arg(..).pass_fd(..).jail(..).spawn() -> Child
//!                                                            │ one task per child watches its pidfd and its stderr
//!                                     kill(), stderr() ◀─────┤
//!                                                            └─▶ exited(): any number of waiters, at any time
//! ```
//!
//! A child dies with the thread that spawned it, and with the [`Child`] that stands for it.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use rustix::process::{Pid, Signal};
use tokio::net::unix::pipe;
use tokio::sync::watch;

use crate::jail::{self, Jail};
use crate::last_words::LastWords;
use crate::pidfd::Pidfd;
use crate::threads;

/// A killed process goes in milliseconds, and in seconds where it gives back much memory.
const HANGS: Duration = Duration::from_secs(10);

/// The first descriptor that is passed; the standard three come before it.
const FIRST_PASSED_FD: RawFd = 3;

/// Where programs are looked for that were named without a path. The rest of the environment is not
/// passed on.
pub(crate) const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a child could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// There is no such program, or it must not be run.
    #[error("cannot run {program}")]
    Exec {
        /// The program as it was named.
        program: String,
        /// What exec said.
        #[source]
        source: io::Error,
    },
    /// A step of the jail failed in the child.
    #[error("cannot run {program}: it failed to {step}")]
    Jail {
        /// The program as it was named.
        program: String,
        /// The step in words, like `enter namespaces of its own`.
        step: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Something that watching the child needs could not be had.
    #[error("cannot watch {program}")]
    Watch {
        /// The program as it was named.
        program: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
    /// It is gone, but something else in this process reaped it.
    Unknown,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with status {code}"),
            Self::Signal(signal) => write!(f, "was killed by signal {signal}"),
            Self::Unknown => f.write_str("ended"),
        }
    }
}

/// A child to be. Its stdin is `/dev/null`, and so is its stdout unless [`Spawn::stdout`] says
/// otherwise; its stderr is kept ([`Child::stderr`]), its environment is a `PATH`, and no
/// descriptor reaches it but the passed ones.
#[derive(Debug)]
pub struct Spawn {
    program: OsString,
    title: Option<OsString>,
    args: Vec<OsString>,
    stdout: Option<OwnedFd>,
    fds: Vec<OwnedFd>,
    jail: Jail,
}

impl Spawn {
    /// A child that runs `program`: a path, or a name that is looked for in the usual directories.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            title: None,
            args: Vec::new(),
            stdout: None,
            fds: Vec::new(),
            jail: Jail::default(),
        }
    }

    /// What stands in process lists instead of the program's name.
    #[must_use]
    pub fn title(mut self, title: impl Into<OsString>) -> Self {
        self.title = Some(title.into());
        self
    }

    /// Appends arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Gives the child this descriptor as its stdout.
    #[must_use]
    pub fn stdout(mut self, fd: impl Into<OwnedFd>) -> Self {
        self.stdout = Some(fd.into());
        self
    }

    /// Passes a descriptor and tells the number that it will have in the child: 3 for the first
    /// one, then 4, ….
    pub fn pass_fd(&mut self, fd: impl Into<OwnedFd>) -> RawFd {
        let number =
            FIRST_PASSED_FD + RawFd::try_from(self.fds.len()).expect("descriptors are few");
        self.fds.push(fd.into());
        number
    }

    /// Puts the child into `jail`.
    #[must_use]
    pub fn jail(mut self, jail: Jail) -> Self {
        self.jail = jail;
        self
    }

    /// Starts the child, and a task on the current tokio runtime that reaps it. The child is killed
    /// when the calling thread ends.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn spawn(self) -> Result<Child, SpawnError> {
        let program = self.program.to_string_lossy().into_owned();
        let watch_error = |source| SpawnError::Watch { program: program.clone(), source };
        let own_pids = self.jail.own_pids;
        let (words, stderr) = io::pipe().map_err(watch_error)?;
        let tie = self.jail.changes_user.then(io::pipe).transpose().map_err(watch_error)?;
        let (stdin, tie) = tie.unzip();
        let stdin = stdin.map_or_else(Stdio::null, Stdio::from);
        let mut command = self.command(stdin, stderr).map_err(watch_error)?;
        let child = jail::spawn(&mut command, own_pids);
        let executed = Instant::now();
        // Closes our ends of the pipe and of what was passed.
        drop(command);
        let child = child.map_err(|source| why_not(program.clone(), words.try_clone(), source))?;

        let pid = Pid::from_child(&child);
        let pidfd = Arc::new(Pidfd::open(pid).map_err(watch_error)?);
        let reaper = Reaper { pidfd: pidfd.clone(), reaped: false };
        let stderr = pipe::Receiver::from_owned_fd(words.into()).map_err(watch_error)?;
        let last_words = LastWords::default();
        let (report, exit) = watch::channel(None);
        tokio::spawn(watch_over(reaper, stderr, last_words.clone(), report));
        Ok(Child { pid: child.id(), executed, pidfd, exit, last_words, _tie: tie })
    }

    fn command(self, stdin: Stdio, stderr: PipeWriter) -> io::Result<Command> {
        let mut command = Command::new(&self.program);
        if let Some(title) = &self.title {
            command.arg0(title);
        }
        command.args(&self.args).env_clear().env("PATH", SEARCH_PATH);
        let stdout = self.stdout.map_or_else(Stdio::null, Stdio::from);
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        // The jail marks all descriptors to be closed at exec; the mapping comes after it and
        // unmarks the passed ones.
        jail::install(&mut command, self.jail)?;
        let mappings = self.fds.into_iter().zip(FIRST_PASSED_FD..);
        let mappings = mappings.map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd });
        command.fd_mappings(mappings.collect()).expect("every number was given once");
        Ok(command)
    }
}

/// Tells a failed step of the jail, which has left its name on stderr, from a failed exec, which
/// has not.
fn why_not(program: String, words: io::Result<PipeReader>, source: io::Error) -> SpawnError {
    let mut step = String::new();
    match words.map(|words| words.take(100).read_to_string(&mut step)) {
        Ok(Ok(length)) if length > 0 => SpawnError::Jail { program, step, source },
        _ => SpawnError::Exec { program, source },
    }
}

/// A process that was spawned. Dropping it kills the process.
#[derive(Debug)]
pub struct Child {
    pid: u32,
    executed: Instant,
    pidfd: Arc<Pidfd>,
    exit: watch::Receiver<Option<Exit>>,
    last_words: LastWords,
    /// Closed by the kernel at the latest when this process ends; see [`Jail::changes_user`].
    _tie: Option<PipeWriter>,
}

impl Child {
    /// The process id, as this process's PID namespace counts. It may belong to another process
    /// once the child has exited.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// When the child had executed its program.
    #[must_use]
    pub fn executed(&self) -> Instant {
        self.executed
    }

    /// Resolves when the child has ended, has been reaped, and what it wrote to stderr has been
    /// read; at once if it already has.
    pub async fn exited(&self) -> Exit {
        let mut exit = self.exit.clone();
        // An error means that the watching task went down with its runtime, which killed the child.
        match exit.wait_for(Option::is_some).await {
            Ok(exit) => exit.unwrap_or(Exit::Unknown),
            Err(_) => Exit::Unknown,
        }
    }

    /// How the child ended, or `None` while it runs.
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Sends a signal. A child that has ended is not an error: the signal reaches nobody, and
    /// surely nobody else.
    pub fn kill(&self, signal: Signal) -> io::Result<()> {
        self.pidfd.kill(signal)
    }

    /// Kills the child with SIGKILL and waits for its end, which only the kernel can delay: when it
    /// does, the log says where. May be repeated.
    ///
    /// # Panics
    /// In a runtime without time.
    pub async fn end(&self) -> Exit {
        // SIGKILL to one's own child is always allowed.
        let _ = self.kill(Signal::KILL);
        if let Ok(exit) = tokio::time::timeout(HANGS, self.exited()).await {
            return exit;
        }
        let threads = threads::told(self.pid);
        tracing::warn!(pid = self.pid, "killed, and not gone yet; its threads: {threads}");
        self.exited().await
    }

    /// The last lines that the child wrote to stderr, oldest first; a few kilobytes at most,
    /// printable only.
    #[must_use]
    pub fn stderr(&self) -> Vec<String> {
        self.last_words.lines()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.kill(Signal::KILL);
    }
}

/// Owns the duty to reap one child; fulfils it also when its runtime is shut down.
struct Reaper {
    pidfd: Arc<Pidfd>,
    reaped: bool,
}

impl Reaper {
    fn reap(&mut self) -> Exit {
        self.reaped = true;
        self.pidfd.reap()
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = self.pidfd.kill(Signal::KILL);
            self.reap();
        }
    }
}

/// Collects the child's stderr until it ends, then reports its exit.
async fn watch_over(
    mut reaper: Reaper,
    stderr: pipe::Receiver,
    last_words: LastWords,
    report: watch::Sender<Option<Exit>>,
) {
    let mut open = true;
    loop {
        tokio::select! {
            readable = stderr.readable(), if open => {
                open = readable.is_ok() && last_words.read_from(&stderr);
            }
            () = reaper.pidfd.ended() => break,
        }
    }
    // What was written before the end is in the pipe by now. Not until its end: a grandchild may
    // hold it open.
    last_words.read_from(&stderr);
    report.send_replace(Some(reaper.reap()));
}

#[cfg(test)]
mod tests;
