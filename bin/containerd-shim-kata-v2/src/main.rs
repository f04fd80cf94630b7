//! The shim through which containerd and CRI-O run containers in VMs.
//!
//! containerd starts it in four ways: `start` brings up the server of a sandbox, or finds it, and
//! prints its address; `delete` cleans up when the server is dead; `-info` and `-v` describe it.
//! The server is the same program, started by `start` with `-socket`.
//!
//! Called `kata-proxy`, it owns a sandbox without containerd (`proxy`; ADR 28 tells why that is no
//! program of its own).
//!
//! Whatever containerd reads is all that is printed: one stray word on standard output or standard
//! error would become part of an address.

mod bundle;
mod delete;
mod flags;
mod info;
mod proxy;
mod server;
mod server_process;
mod socket;
mod start;

use std::env;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use kata_task::Moment;

use flags::{Action, Invocation};

/// The runtime's name in containerd.
const RUNTIME: &str = "io.containerd.kata.v2";
const PROGRAM: &str = env!("CARGO_PKG_NAME");
const VERSION: &str = env!("CARGO_PKG_VERSION");

fn main() -> ExitCode {
    let mut args = env::args_os();
    let name = args.next().unwrap_or_default();
    if Path::new(&name).file_name() == Some(OsStr::new(proxy::NAME)) {
        return proxy::main(args);
    }
    match answer(args) {
        Ok(answer) => match io::stdout().write_all(&answer) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err(error) => {
            // containerd shows this line to its user. If it cannot be written, nobody is there to
            // read.
            let _ = writeln!(io::stderr(), "{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The arguments as text.
///
/// # Errors
///
/// Fails when one of them is none.
fn texts(args: env::ArgsOs) -> anyhow::Result<Vec<String>> {
    args.map(|arg| arg.into_string())
        .collect::<Result<_, _>>()
        .map_err(|arg| anyhow!("the argument {arg:?} is not UTF-8"))
}

/// Does what the command line asks for and returns what is to be printed.
fn answer(args: env::ArgsOs) -> anyhow::Result<Vec<u8>> {
    let asked = Moment::now();
    let args = texts(args)?;
    let Invocation { flags, action } = flags::parse(&args)?;
    match action {
        Action::Version => Ok(format!("{PROGRAM}: version {VERSION}\n").into_bytes()),
        Action::Info => info::run().context("cannot describe the runtime"),
        Action::Start => start::run(&flags, asked),
        Action::Delete => {
            delete::run(&flags).with_context(|| format!("cannot clean up after {}", flags.id))
        }
        Action::Serve => server::run(flags).map(|()| Vec::new()),
    }
}
