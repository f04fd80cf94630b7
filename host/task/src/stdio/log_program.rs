//! A program that takes a process's output (`binary://`), as containerd's shims run it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use kata_linux::open_files;
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::sync::watch;

use super::{StdioError, StdioIds};

/// How long it may take to say that it is ready.
const READY: Duration = Duration::from_secs(10);

/// How long it may go on after the end of the output before it is told to stop, and then before it
/// is killed. containerd's shims wait as long.
const FINISH: Duration = Duration::from_secs(12);

/// A running log program. It is killed when this is dropped before there was anything to log.
#[derive(Debug)]
pub(super) struct LogProgram {
    path: PathBuf,
    child: Child,
    /// Whether it is to go on for as long as there is output, even when this process ends before.
    needed: bool,
}

impl LogProgram {
    /// Starts it with the reading ends of stdout and stderr as descriptors 3 and 4, and waits until
    /// it closes descriptor 5, or writes to it. Returns the writing ends.
    pub(super) async fn start(
        path: &Path,
        args: &[String],
        ids: &StdioIds,
    ) -> Result<(Self, pipe::Sender, pipe::Sender), StdioError> {
        let failed = |source| StdioError::LogProgram { path: path.to_owned(), source };
        let (program, outputs, ready) = spawn(path, args, ids).map_err(failed)?;
        let mut byte = [0];
        let first = async {
            ready.readable().await?;
            // A byte and the end mean the same.
            ready.try_read(&mut byte).map(drop)
        };
        match tokio::time::timeout(READY, first).await {
            Ok(answer) => answer.map_err(failed)?,
            Err(_) => {
                let path = path.to_owned();
                return Err(StdioError::LogProgramNotReady { path, seconds: READY.as_secs() });
            }
        }
        let [stdout, stderr] = outputs;
        Ok((program, stdout, stderr))
    }

    /// Waits until `done` is closed, and then for the program to end; if it does not, it is made
    /// to.
    pub(super) async fn finish(mut self, mut done: watch::Receiver<()>) {
        self.needed = true;
        while done.changed().await.is_ok() {}
        for signal in [Signal::TERM, Signal::KILL] {
            if tokio::time::timeout(FINISH, self.child.wait()).await.is_ok() {
                return;
            }
            tracing::warn!(
                "the log program {} goes on after the end: sending {signal:?}",
                self.path.display()
            );
            if let Some(pid) = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
                let _ = kill_process(pid, signal);
            }
        }
        let _ = self.child.wait().await;
    }
}

impl Drop for LogProgram {
    fn drop(&mut self) {
        if !self.needed {
            // One that has ended already is as good; the runtime reaps it.
            let _ = self.child.start_kill();
        }
    }
}

type Spawned = (LogProgram, [pipe::Sender; 2], pipe::Receiver);

fn spawn(path: &Path, args: &[String], ids: &StdioIds) -> io::Result<Spawned> {
    let (stdout, to_stdout) = io::pipe()?;
    let (stderr, to_stderr) = io::pipe()?;
    let (ready, to_ready) = io::pipe()?;
    let mut command = std::process::Command::new(path);
    command
        .args(args)
        .env_clear()
        .env("CONTAINER_ID", &ids.id)
        .env("CONTAINER_NAMESPACE", &ids.namespace)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let inherited: [OwnedFd; 3] = [stdout.into(), stderr.into(), to_ready.into()];
    let mappings = inherited
        .into_iter()
        .zip(3..)
        .map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd });
    command.fd_mappings(mappings.collect()).map_err(io::Error::other)?;
    open_files::give_back_limit(&mut command);
    // The command owns the program's ends: they must not outlive this function, or the end of one
    // would never be seen.
    let child = Command::from(command).spawn()?;
    let sender = |end: io::PipeWriter| pipe::Sender::from_owned_fd(end.into());
    let program = LogProgram { path: path.to_owned(), child, needed: false };
    Ok((
        program,
        [sender(to_stdout)?, sender(to_stderr)?],
        pipe::Receiver::from_owned_fd(ready.into())?,
    ))
}

#[cfg(test)]
mod tests {
    use kata_linux::identity::ProcessIdentity;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    async fn started() -> (LogProgram, ProcessIdentity) {
        let args = ["-c", "exec 5>&-; read line <&3; exec sleep 60"].map(str::to_owned);
        let ids = StdioIds { id: "c1".to_owned(), namespace: "test".to_owned() };
        let (program, _stdout, _stderr) =
            LogProgram::start(Path::new("/bin/sh"), &args, &ids).await.unwrap();
        let identity = ProcessIdentity::of(program.child.id().unwrap()).unwrap();
        (program, identity)
    }

    #[tokio::test]
    async fn program_for_which_there_is_nothing_to_log_is_killed() {
        let (program, identity) = started().await;
        drop(program);
        assert!(identity.wait(PATIENCE));
    }

    #[tokio::test]
    async fn program_that_is_needed_outlives_whoever_waits_for_it() {
        let (program, identity) = started().await;
        let (_copying, done) = watch::channel(());
        assert!(tokio::time::timeout(Duration::ZERO, program.finish(done)).await.is_err());
        assert!(identity.is_alive());
        assert!(identity.kill_and_wait(PATIENCE));
    }
}
