//! A program that a test runs, from its start to its end.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::deadline::Deadline;
use crate::pty::{self, Pty};
use crate::stream::{Stream, tail};

/// What a program left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its standard output; in a terminal, everything that it showed.
    pub stdout: Vec<u8>,
    /// Its standard error; empty in a terminal.
    pub stderr: Vec<u8>,
    /// Its exit code; 128 and the signal's number if a signal ended it.
    pub code: i32,
}

impl Output {
    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    #[must_use]
    pub fn error_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Standard output, or an error that quotes everything if the exit code is not 0.
    pub fn success(self) -> Result<String> {
        ensure!(self.code == 0, "failed: {self}");
        Ok(self.text())
    }

    /// Standard error, or an error if the exit code is 0.
    pub fn failure(self) -> Result<String> {
        ensure!(self.code != 0, "succeeded where it should fail: {self}");
        Ok(self.error_text())
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (text, errors) = (self.text(), self.error_text());
        write!(f, "exit code {}\nstdout: {}\nstderr: {}", self.code, tail(&text), tail(&errors))
    }
}

/// What a program reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Input {
    /// Nothing: `/dev/null`.
    #[default]
    Nothing,
    /// A pipe that the test writes to, and closes.
    Pipe,
    /// A pipe with these bytes, and then its end.
    Bytes(Vec<u8>),
    /// A terminal, which is its standard output and error, too.
    Terminal,
}

/// A running program. It is killed if the test leaves it alone.
#[derive(Debug)]
pub struct Client {
    child: Child,
    pidfd: OwnedFd,
    name: String,
    stdin: Option<File>,
    terminal: Option<File>,
    /// Its standard output so far; in a terminal, everything that it shows.
    pub stdout: Stream,
    /// Its standard error so far.
    pub stderr: Stream,
}

impl Client {
    /// Starts a program with its three streams in the test's hands.
    pub fn spawn(mut command: Command, input: Input) -> Result<Self> {
        let name = format!("{command:?}");
        let pty = if input == Input::Terminal { Some(Pty::open()?) } else { None };
        match &pty {
            None => {
                let stdin = if input == Input::Nothing { Stdio::null() } else { Stdio::piped() };
                command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
            }
            Some(pty) => {
                command.stdin(pty.slave.try_clone()?).stdout(pty.slave.try_clone()?);
                command.stderr(pty.slave.try_clone()?);
            }
        }
        let mut child = command.spawn().with_context(|| format!("cannot run {name}"))?;
        // Closes the slave, so that the terminal hangs up when the program has ended.
        drop(command);
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())
            .with_context(|| format!("cannot watch {name}"))?;
        let stderr = child.stderr.take().map_or_else(Stream::ended, Stream::collect);
        let (stdout, stdin, terminal) = match pty {
            None => {
                let stdout = child.stdout.take().map_or_else(Stream::ended, Stream::collect);
                (stdout, child.stdin.take().map(|stdin| File::from(OwnedFd::from(stdin))), None)
            }
            Some(Pty { master, slave }) => {
                drop(slave);
                let stdout = Stream::collect(master.try_clone()?);
                (stdout, Some(master.try_clone()?), Some(master))
            }
        };
        let mut client = Self { child, pidfd, name, stdin, terminal, stdout, stderr };
        if let Input::Bytes(bytes) = input {
            client.write_and_close(bytes);
        }
        Ok(client)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes to its standard input, and waits until everything is taken.
    pub fn write(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        let stdin = self.stdin.as_mut().context("its standard input is not in our hands")?;
        stdin.write_all(bytes.as_ref()).with_context(|| format!("cannot write to {}", self.name))
    }

    /// Writes to its standard input from a thread, which then closes it unless it is a terminal.
    pub fn write_and_close(&mut self, bytes: Vec<u8>) {
        if let Some(mut stdin) = self.stdin.take() {
            // A reader that ends early is judged by what it has answered.
            thread::spawn(move || stdin.write_all(&bytes));
        }
    }

    /// Closes its standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Waits until `text` has come on its standard output.
    pub fn expect(&self, text: &str) -> Result<()> {
        self.stdout
            .expect(text, Deadline::for_command())
            .with_context(|| format!("{}, which says on stderr: {}", self.name, self.stderr.text()))
    }

    /// Resizes its terminal, and tells it.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let terminal = self.terminal.as_ref().context("it has no terminal")?;
        pty::resize(terminal, rows, columns)?;
        // It has no controlling terminal, so the kernel does not tell it.
        self.signal(Signal::WINCH)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal)
            .with_context(|| format!("cannot signal {}", self.name))
    }

    /// Whether its terminal passes everything on unchanged, also after its end.
    pub fn has_raw_terminal(&self) -> Result<bool> {
        let terminal = self.terminal.as_ref().context("it has no terminal")?;
        pty::is_raw(terminal)
    }

    /// Whether it has ended when the deadline comes.
    pub fn ends(&self, deadline: Deadline) -> Result<bool> {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let ready = poll(&mut fds, Some(&deadline.timespec())).context("cannot poll")?;
        Ok(ready > 0)
    }

    /// Waits for its end and collects what it left.
    pub fn wait(self) -> Result<Output> {
        self.wait_until(Deadline::for_command())
    }

    /// Like [`Client::wait`], for as long as `deadline` says.
    pub fn wait_until(mut self, deadline: Deadline) -> Result<Output> {
        self.close_stdin();
        if !self.ends(deadline)? {
            let (stdout, stderr) = (self.stdout.text(), self.stderr.text());
            bail!(
                "{} is still running after {:.1?}\nstdout: {}\nstderr: {}",
                self.name,
                deadline.elapsed(),
                tail(&stdout),
                tail(&stderr)
            );
        }
        let status = self.child.wait().context("cannot reap")?;
        let name = &self.name;
        let stdout = self.stdout.finish(deadline).with_context(|| format!("stdout of {name}"))?;
        let stderr = self.stderr.finish(deadline).with_context(|| format!("stderr of {name}"))?;
        Ok(Output { stdout, stderr, code: exit_code(status) })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Both are in vain, and harmless, when it was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn exit_code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Runs a program to its end without input.
pub(crate) fn run(command: Command) -> Result<Output> {
    Client::spawn(command, Input::Nothing)?.wait()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn streams_and_code_are_collected() {
        let input = Input::Bytes(b"in".to_vec());
        let output = Client::spawn(shell("cat; echo err >&2; exit 42"), input).unwrap().wait();
        let expected = Output { stdout: b"in".to_vec(), stderr: b"err\n".to_vec(), code: 42 };
        assert_eq!(output.unwrap(), expected);
    }

    #[test]
    fn signal_that_ends_a_program_is_in_its_code() {
        assert_eq!(run(shell("kill -9 $$")).unwrap().code, 137);
    }

    #[test]
    fn terminal_is_shown_and_resized() {
        let mut client = Client::spawn(
            shell("trap 'stty size; exit 0' WINCH; stty size; while :; do read -r _; done"),
            Input::Terminal,
        )
        .unwrap();
        client.expect("24 80").unwrap();
        client.resize(30, 100).unwrap();
        client.write("\n").unwrap();
        client.expect("30 100").unwrap();
        assert_eq!(client.wait().unwrap().code, 0);
    }
}
