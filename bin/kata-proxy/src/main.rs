//! The owner of a sandbox that no containerd shim owns: it holds the VM, the one channel to the
//! agent, and the state, and serves the same task service on a unix socket. It ends when its last
//! container is deleted.
//!
//! kata-shim starts it for the first container of a sandbox, with the listening socket as standard
//! input. It holds nothing else of its caller's.

mod command_line;

use std::env;
use std::fs;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use kata_linux::{descriptors, open_files};
use kata_task::ServeOptions;
use nix::sys::signal::SigSet;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal, setsid};

use command_line::{CommandLine, Invocation};

fn main() -> ExitCode {
    let command_line = match command_line::parse(env::args().skip(1)) {
        Ok(Invocation::Version) => {
            println!("kata-proxy version {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Ok(Invocation::Serve(command_line)) => command_line,
        Err(error) => {
            eprintln!("kata-proxy: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    kata_log::to_file(&command_line.log, &command_line.sandbox, command_line.debug);
    let socket = command_line.socket.clone();
    let served = run(command_line);
    if let Err(error) = &served {
        tracing::error!("the sandbox's owner has failed: {error:#}");
        eprintln!("kata-proxy: {error:#}");
    }
    // The service removes it when all is well; a second time does no harm.
    let _ = fs::remove_file(socket);
    if served.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(command_line: CommandLine) -> anyhow::Result<()> {
    let listener = UnixListener::from(descriptors::take_stdin()?);
    listener
        .local_addr()
        .context("standard input is no socket: kata-proxy is started by kata-shim, not by hand")?;
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
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let served = runtime.block_on(kata_task::serve(ServeOptions {
        listener,
        namespace: String::new(),
        id: command_line.sandbox,
        ttrpc_address: None,
        socket: command_line.socket,
        asked: None,
    }));
    // Not held up by a thread that keeps an image or sweeps: both can be cut anywhere, as by
    // SIGKILL.
    runtime.shutdown_background();
    served
}
