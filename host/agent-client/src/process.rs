//! Processes and their streams.

use kata_agent_api::{agent, convert, says_out_of_memory};
use oci_spec::runtime::Process;

use crate::client::request;
use crate::{AgentClient, AgentError};

/// The most that one read asks for, in bytes, so that the answer fits a message.
const MAX_READ: u32 = 1 << 20;

/// Names a process in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ProcessId {
    /// The container's id.
    pub container: String,
    /// The process's own id in it; for the init process the container's id.
    pub exec: String,
}

impl ProcessId {
    /// The container's init process.
    pub fn init(container: impl Into<String>) -> Self {
        let container = container.into();
        Self { exec: container.clone(), container }
    }

    fn parts(&self) -> (String, String) {
        (self.container.clone(), self.exec.clone())
    }
}

/// How a process has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessEnd {
    /// The exit code, or 128 and the number of the signal that killed it: from 0 to 255.
    pub status: u8,
    /// Whether the kernel had killed a process of the container for want of memory by then. Only
    /// told with a container's init process, and not by every agent.
    pub out_of_memory: bool,
}

impl AgentClient {
    /// Starts another process in a running container, under the given id.
    ///
    /// # Errors
    ///
    /// [`AgentError::Convert`] when the process says what the protocol cannot carry,
    /// [`AgentError::InvalidArgument`] when it has a umask and the agent is another project's.
    pub async fn exec_process(&self, id: &ProcessId, process: &Process) -> Result<(), AgentError> {
        let (container_id, exec_id) = id.parts();
        self.check_umask("ExecProcess", process)?;
        let process = Some(convert::process_to_wire(process)?).into();
        let message =
            agent::ExecProcessRequest { container_id, exec_id, process, ..Default::default() };
        request!(self, agent.exec_process, "ExecProcess", message).map(drop)
    }

    /// Sends a signal (signal(7)) to one process.
    pub async fn signal_process(&self, id: &ProcessId, signal: u32) -> Result<(), AgentError> {
        let (container_id, exec_id) = id.parts();
        let message =
            agent::SignalProcessRequest { container_id, exec_id, signal, ..Default::default() };
        request!(self, agent.signal_process, "SignalProcess", message).map(drop)
    }

    /// Sends a signal (signal(7)) to all processes of a container.
    pub async fn signal_all(&self, container: &str, signal: u32) -> Result<(), AgentError> {
        let everyone = ProcessId { container: container.to_owned(), exec: String::new() };
        self.signal_process(&everyone, signal).await
    }

    /// Waits, without a deadline, until the process has ended; the agent forgets it then. A status
    /// that is no byte is read as 255.
    pub async fn wait_process(&self, id: &ProcessId) -> Result<ProcessEnd, AgentError> {
        let (container_id, exec_id) = id.parts();
        let message = agent::WaitProcessRequest { container_id, exec_id, ..Default::default() };
        let answer = request!(self, agent.wait_process, "WaitProcess", message, forever)?;
        Ok(ProcessEnd {
            status: u8::try_from(answer.status).unwrap_or(u8::MAX),
            out_of_memory: says_out_of_memory(&answer),
        })
    }

    /// Writes to the process's standard input, without a deadline, as it may not be reading.
    /// Answers how many bytes were taken. No bytes at all close the input.
    pub async fn write_stdin(&self, id: &ProcessId, data: Vec<u8>) -> Result<u32, AgentError> {
        let (container_id, exec_id) = id.parts();
        let sent = data.len();
        let message =
            agent::WriteStreamRequest { container_id, exec_id, data, ..Default::default() };
        let answer = request!(self, agent.write_stdin, "WriteStdin", message, forever)?;
        if answer.len as usize > sent {
            let what = format!("{} bytes taken of {sent}", answer.len);
            return Err(AgentError::hostile("WriteStdin", what));
        }
        Ok(answer.len)
    }

    /// Reads at most `max` bytes of the process's output, or of its terminal; waits for them
    /// without a deadline. No bytes are the end. Asks for at most 1 MiB.
    pub async fn read_stdout(&self, id: &ProcessId, max: u32) -> Result<Vec<u8>, AgentError> {
        let message = read_message(id, max);
        let answer = request!(self, agent.read_stdout, "ReadStdout", message, forever)?;
        bounded("ReadStdout", answer.data, max)
    }

    /// Reads at most `max` bytes of the process's error output; as [`Self::read_stdout`].
    pub async fn read_stderr(&self, id: &ProcessId, max: u32) -> Result<Vec<u8>, AgentError> {
        let message = read_message(id, max);
        let answer = request!(self, agent.read_stderr, "ReadStderr", message, forever)?;
        bounded("ReadStderr", answer.data, max)
    }

    /// Closes the process's standard input.
    pub async fn close_stdin(&self, id: &ProcessId) -> Result<(), AgentError> {
        let (container_id, exec_id) = id.parts();
        let message = agent::CloseStdinRequest { container_id, exec_id, ..Default::default() };
        request!(self, agent.close_stdin, "CloseStdin", message).map(drop)
    }

    /// Sets the size of the process's terminal, in characters.
    pub async fn tty_win_resize(
        &self,
        id: &ProcessId,
        rows: u32,
        columns: u32,
    ) -> Result<(), AgentError> {
        let (container_id, exec_id) = id.parts();
        let message = agent::TtyWinResizeRequest {
            container_id,
            exec_id,
            row: rows,
            column: columns,
            ..Default::default()
        };
        request!(self, agent.tty_win_resize, "TtyWinResize", message).map(drop)
    }
}

fn read_message(id: &ProcessId, max: u32) -> agent::ReadStreamRequest {
    let (container_id, exec_id) = id.parts();
    let len = max.min(MAX_READ);
    agent::ReadStreamRequest { container_id, exec_id, len, ..Default::default() }
}

fn bounded(method: &'static str, data: Vec<u8>, max: u32) -> Result<Vec<u8>, AgentError> {
    let max = max.min(MAX_READ);
    if data.len() > max as usize {
        let what = format!("{} bytes where at most {max} were asked for", data.len());
        return Err(AgentError::hostile(method, what));
    }
    Ok(data)
}
