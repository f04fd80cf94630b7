//! `kata-proxy`: the owner of a sandbox that no containerd shim owns. It holds the VM, the one
//! channel to the agent, and the state, and serves the same task service on a unix socket. It ends
//! when its last container is deleted.
//!
//! kata-shim starts it for the first container of a sandbox, with the listening socket as standard
//! input. It holds nothing else of its caller's.

mod command_line;

use std::env;
use std::fs;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use kata_linux::open_files;
use kata_task::ServeOptions;
use nix::sys::signal::SigSet;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal, setsid};

use crate::server::{serve, take_listener};
use crate::{VERSION, texts};
use command_line::{CommandLine, Invocation};

/// What this program is called when it is to be the owner.
pub(crate) const NAME: &str = "kata-proxy";

/// Runs until the sandbox has ended.
pub(crate) fn main(args: env::ArgsOs) -> ExitCode {
    let command_line = match texts(args).and_then(command_line::parse) {
        Ok(Invocation::Version) => {
            println!("{NAME} version {VERSION}");
            return ExitCode::SUCCESS;
        }
        Ok(Invocation::Serve(command_line)) => command_line,
        Err(error) => {
            eprintln!("{NAME}: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    kata_log::to_file(&command_line.log, &command_line.sandbox, command_line.debug);
    let socket = command_line.socket.clone();
    let served = run(command_line);
    if let Err(error) = &served {
        tracing::error!("the sandbox's owner has failed: {error:#}");
        eprintln!("{NAME}: {error:#}");
    }
    // The service removes it when all is well; a second time does no harm.
    let _ = fs::remove_file(socket);
    if served.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(command_line: CommandLine) -> anyhow::Result<()> {
    let listener = take_listener("kata-shim")?;
    // Fails only for the leader of a process group, which one that was started by hand may be.
    let _ = setsid();
    // kata-shim has signals wait, and its children inherit that: SIGTERM would never come.
    SigSet::all().thread_unblock().context("cannot let signals through")?;
    // Until a stand-in has connected, nobody else would notice that the caller has gone away.
    set_parent_process_death_signal(Some(Signal::TERM)).context("cannot follow the caller")?;
    let parent = Pid::from_raw(command_line.parent);
    ensure!(getppid() == parent, "the caller has gone away already");
    env::set_current_dir("/").context("cannot leave the bundle")?;
    open_files::raise_limit().context("cannot raise the limit of open files")?;
    serve(ServeOptions {
        listener,
        namespace: String::new(),
        id: command_line.sandbox,
        ttrpc_address: None,
        socket: command_line.socket,
        asked: None,
    })
}
