//! The time from the process's start to its end.

use std::fs;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use kata_linux::cgroup::{HostCgroup, Membership};
use kata_shim_api::blocking::{CallError, Question, TaskSocket};
use kata_shim_api::stand_in::{Order, Terminal};
use kata_shim_api::{api, metadata, stand_in};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::termios::tcgetwinsize;

use crate::KILLED;
use crate::out_of_memory;
use crate::output;
use crate::preparation::Prepared;
use crate::signals::{Heard, Signals};

/// As much as is copied at once: what a fifo holds by default.
const CHUNK: usize = 64 << 10;

/// SIGPIPE.
const SIGPIPE: u32 = 13;

/// How long the output of an added process that was killed may wait for somebody who takes it.
const KILLEDS_READER: Duration = Duration::from_secs(10);

/// All that a thread of this program needs besides its chunk, which is on the heap.
const STACK: usize = 64 << 10;

/// Where requests go, and whom they are about.
pub(crate) struct Process {
    socket: TaskSocket,
    container: String,
    exec: String,
}

/// How the process has ended.
struct End {
    status: u32,
    /// Whether the guest's kernel has killed a process of the container for want of memory; never
    /// of a process that was added to one.
    out_of_memory: bool,
}

/// Says that this program stands for the process, from now on until its end.
pub(crate) fn stand_for(order: &Order, prepared: &Prepared) -> Result<Question, CallError> {
    let request = api::WaitRequest {
        id: order.container.clone(),
        exec_id: order.exec.clone(),
        ..Default::default()
    };
    prepared.socket.ask("Wait", &request, &[(metadata::STAND_IN, "")])
}

/// Waits for the end of what this program stands for.
fn end_of(question: Question) -> End {
    let answer = question.answer::<api::WaitResponse>();
    answer.map_or(End { status: KILLED, out_of_memory: false }, |exit| End {
        status: exit.exit_status,
        out_of_memory: stand_in::is_out_of_memory(&exit),
    })
}

impl Process {
    fn call(&self, method: &str, request: &impl kata_shim_api::protobuf::Message) {
        // Whatever goes wrong here ends in the process's end, which is told on another connection.
        let _ = self.socket.call::<api::Empty>(method, request, &[]);
    }

    fn kill(&self, signal: u32) {
        let request = api::KillRequest {
            id: self.container.clone(),
            exec_id: self.exec.clone(),
            signal,
            ..Default::default()
        };
        self.call("Kill", &request);
    }

    fn close_stdin(&self) {
        let request = api::CloseIORequest {
            id: self.container.clone(),
            exec_id: self.exec.clone(),
            stdin: true,
            ..Default::default()
        };
        self.call("CloseIO", &request);
    }

    /// Tells the terminal's size, if it has one.
    fn resize(&self) {
        let Ok(size) = tcgetwinsize(io::stdin().as_fd()) else { return };
        if size.ws_row == 0 || size.ws_col == 0 {
            return;
        }
        let request = api::ResizePtyRequest {
            id: self.container.clone(),
            exec_id: self.exec.clone(),
            height: size.ws_row.into(),
            width: size.ws_col.into(),
            ..Default::default()
        };
        self.call("ResizePty", &request);
    }
}

/// Stands for the process until it has ended and all that it has written is delivered. Returns its
/// status.
pub(crate) fn stand(order: &Order, prepared: Prepared, question: Question) -> u8 {
    let Prepared { socket, signals, streams, before, cgroup, .. } = prepared;
    let process =
        Arc::new(Process { socket, container: order.container.clone(), exec: order.exec.clone() });
    let has_terminal = order.terminal != Terminal::None;
    forward(signals, Arc::clone(&process), has_terminal);
    if let Some(fifo) = streams.stdin {
        let process = Arc::clone(&process);
        start("input", move || input(fifo, &process, has_terminal));
    }
    let delivered = deliver(streams.stdout, streams.stderr, &process);
    let end = end_of(question);
    let is_added = !order.exec.is_empty();
    if is_added {
        // Its container's removal, which may come before its output is taken, is not to find it
        // there.
        leave(before.as_ref(), cgroup.as_ref());
    }
    // Who added a process to a container may hold its output up for as long as it likes, but not,
    // when that was killed, the container's removal.
    wait_for_delivery(&delivered, (is_added && end.status == KILLED).then_some(KILLEDS_READER));
    if let Some(cgroup) = cgroup.as_ref().filter(|_| end.out_of_memory) {
        // Without it the engine lacks a word, and there is nobody else to tell.
        let _ = out_of_memory::tell_in(cgroup);
    }
    if let Some(before) = before.filter(|_| !is_added) {
        // The sandbox's end removes the cgroup, which has to be empty.
        let _ = before.restore();
    }
    if let Some(record) = &order.record {
        let _ = fs::remove_file(record);
    }
    process.socket.remove(&process.container, &process.exec);
    end.status.to_le_bytes()[0]
}

/// Copies the process's output. The receiver hears of pieces, and ends when all is delivered. A
/// process whose output is refused is told so as by a pipe that nobody reads; an init without a
/// handler for it, which no signal ends but SIGKILL, goes on.
fn deliver(stdout: Option<File>, stderr: Option<File>, process: &Arc<Process>) -> Receiver<()> {
    let (delivered, receiver) = sync_channel(1);
    deliver_one("stdout", stdout, io::stdout(), process, delivered.clone());
    deliver_one("stderr", stderr, io::stderr(), process, delivered);
    receiver
}

fn deliver_one(
    name: &str,
    fifo: Option<File>,
    target: impl AsFd + Send + 'static,
    process: &Arc<Process>,
    delivered: SyncSender<()>,
) {
    let Some(fifo) = fifo else { return };
    let process = Arc::clone(process);
    let refused = move || process.kill(SIGPIPE);
    start(name, move || output::copy(fifo, &target, &delivered, refused));
}

/// Waits until all is delivered, or for `patience` in vain.
fn wait_for_delivery(delivered: &Receiver<()>, patience: Option<Duration>) {
    match patience {
        Some(patience) => while delivered.recv_timeout(patience).is_ok() {},
        None => while delivered.recv().is_ok() {},
    }
}

/// Leaves the container's cgroup, and removes it if nobody else is in it: then the container has
/// ended, and its removal may have been in vain.
fn leave(before: Option<&Membership>, cgroup: Option<&HostCgroup>) {
    let _ = before.map(Membership::restore);
    if let Some(cgroup) = cgroup.filter(|cgroup| cgroup.processes().is_empty()) {
        let _ = cgroup.remove();
    }
}

fn forward(mut signals: Signals, process: Arc<Process>, has_terminal: bool) {
    start("signals", move || {
        if has_terminal {
            process.resize();
        }
        loop {
            match signals.next() {
                Heard::Resized if has_terminal => process.resize(),
                Heard::Resized => {}
                Heard::Signal(number) => process.kill(number),
            }
        }
    });
}

/// Copies this process's input to the guest's process, and its end.
fn input(mut fifo: File, process: &Process, has_terminal: bool) {
    // It was opened without waiting for the other side.
    let _ = fcntl_setfl(&fifo, OFlags::empty());
    let mut chunk = vec![0; CHUNK];
    let mut stdin = io::stdin().lock();
    loop {
        let length = match stdin.read(&mut chunk) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                output::await_readiness(&io::stdin(), rustix::event::PollFlags::IN);
                continue;
            }
            Err(_) => break,
        };
        if fifo.write_all(&chunk[..length]).is_err() {
            return;
        }
    }
    drop(fifo);
    if !has_terminal {
        process.close_stdin();
    }
}

fn start(name: &str, work: impl FnOnce() + Send + 'static) -> Option<thread::JoinHandle<()>> {
    let thread = thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(work);
    // Without a thread the stream is lost; the process goes on and its end is told.
    thread.ok()
}
