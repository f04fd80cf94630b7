//! The stand-in of one container process: its pid is the one that engines know, follow and signal.
//! It carries the process's streams or its terminal, forwards signals, and exits with the process's
//! status.
//!
//! It is small on purpose, since there is one for each process: threads that block, and nothing
//! else.

mod out_of_memory;
mod output;
mod preparation;
mod session;
mod signals;
mod view;

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::{ExitCode, exit};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, anyhow};
use kata_linux::cgroup::HostCgroup;
use kata_linux::descriptors;
use kata_shim_api::stand_in::{self, Order, Shown};

use preparation::Prepared;

/// What remains of a process whose sandbox has died: 128 + SIGKILL.
const KILLED: u32 = 137;

/// What the session's thread needs for requests and their answers.
const STACK: usize = 256 << 10;

fn main() -> ExitCode {
    if env::args().nth(1).is_some_and(|word| word.trim_start_matches('-') == "version") {
        println!("kata-shim version {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    if let Some(group) = out_of_memory::asked_for(env::args_os().skip(1)) {
        // Whoever has started it sees by its end whether it came to what it is for.
        let _ = out_of_memory::run_out_in(&group);
        return ExitCode::FAILURE;
    }
    match run() {
        // Not by returning: threads that wait for input are not to be waited for.
        Ok(status) => exit(i32::from(status)),
        Err(error) => {
            eprintln!("kata-shim: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<u8> {
    descriptors::close_at_exec_from(3).context("cannot keep descriptors to itself")?;
    let order = Order::parse(env::args_os().skip(1))?;
    let control = descriptors::take_inherited(stand_in::CONTROL)
        .context("kata-shim is started by kata-runtime, not by hand")?;
    let mut control = UnixStream::from(control);
    let prepared = match preparation::prepare(&order) {
        Ok(prepared) => prepared,
        Err(error) => {
            // kata-runtime says it to its user.
            let _ = writeln!(control, "error {}", one_line(&error));
            return Ok(1);
        }
    };
    let ready = writeln!(control, "ready {}", prepared.proxy);
    let mut answer = String::new();
    let told = ready.and_then(|()| BufReader::new(&control).read_line(&mut answer));
    let mounts = match answer.strip_suffix('\n') {
        Some(stand_in::GO) if told.is_ok() => order.mounts.clone(),
        Some(stand_in::GO_HIDDEN) if told.is_ok() => view::hidden(&order.mounts),
        _ => {
            take_back(&order, &prepared);
            return Ok(1);
        }
    };
    stand(order, prepared, &mounts, control)
}

/// Removes what may have been made for nobody.
fn take_back(order: &Order, prepared: &Prepared) {
    if let Some(before) = &prepared.before {
        let _ = before.restore();
        if order.exec.is_empty() {
            // Whoever removes it otherwise may have been killed. One that somebody is in stays.
            let _ = HostCgroup::at(&order.cgroup).and_then(|cgroup| cgroup.remove());
        }
    }
    prepared.socket.remove(&order.container, &order.exec);
}

/// The work is done by a thread with the host's view, while this one, by which the process is
/// known, has the container's.
fn stand(
    order: Order,
    prepared: Prepared,
    mounts: &[Shown],
    mut control: UnixStream,
) -> anyhow::Result<u8> {
    let (shown, is_shown) = mpsc::channel();
    // Before kata-runtime returns: whoever kills this process then is to end the guest's, too.
    let question = match session::stand_for(&order, &prepared) {
        Ok(question) => question,
        Err(error) => {
            let _ = writeln!(control, "error {}", one_line(&error.into()));
            take_back(&order, &prepared);
            return Ok(1);
        }
    };
    let worker =
        thread::Builder::new().name("session".to_owned()).stack_size(STACK).spawn(move || {
            if is_shown.recv() == Ok(true) {
                return session::stand(&order, prepared, question);
            }
            take_back(&order, &prepared);
            1
        });
    let worker = worker.context("cannot start a thread")?;
    let view = view::show(mounts);
    let _ = match &view {
        Ok(()) => writeln!(control, "{}", stand_in::STANDING),
        Err(error) => writeln!(control, "error {}", one_line(error)),
    };
    // Its end is what kata-runtime waits for.
    drop(control);
    // The worker waits for this word, and ends in no other way before it.
    let _ = shown.send(view.is_ok());
    worker.join().map_err(|_| anyhow!("the session's thread panicked"))
}

fn one_line(error: &anyhow::Error) -> String {
    format!("{error:#}").replace('\n', " ")
}
