//! The OCI command line: `kata-runtime create`, `start`, `kill`, `delete` and the rest, for Podman,
//! Docker, CRI-O and people.
//!
//! ```text
//!   kata-runtime ── makes fifos, starts ──▶ kata-shim ── starts, for a sandbox's first container ──▶ kata-proxy ──▶ VM
//!        └───────────────────── task service on the sandbox's socket ──────────────────────────────────▲
//! ```
//!
//! It is a thin client: what a container is and does, the task service knows. On disk is only what
//! must be known without it.

mod bundle;
mod cli;
mod commands;
mod duration;
mod foreground;
mod guest;
mod handover;
mod launch;
mod registry;
mod report;
mod sandbox;
mod signal;
mod size;
mod terminal;
mod timeline;
mod words;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use cli::Cli;
use report::Report;

/// The runtime's version, which is that of the whole software.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The definitions of the command line, from which manual pages and completions are made.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Does what the command line of this process asks for. To be called once, by the program.
#[must_use]
pub fn main() -> ExitCode {
    let args = words::as_go_reads_them(std::env::args_os().collect());
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => {
            let (log, format) = words::log_of(&args);
            return usage(&error, &Report::to(log, format));
        }
    };
    let report = Report::new(&cli.global);
    match run(&cli) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            report.error(&failure.error);
            ExitCode::from(failure.code)
        }
    }
}

/// An error with the exit code that goes with it.
struct Failure {
    error: anyhow::Error,
    code: u8,
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self { error, code: 1 }
    }
}

fn run(cli: &Cli) -> Result<u8, Failure> {
    // Whatever the caller has left open goes to nobody.
    kata_linux::descriptors::close_at_exec_from(3).map_err(anyhow::Error::from)?;
    commands::run(cli)
}

/// Prints help, or what is wrong with the command line.
fn usage(error: &clap::Error, report: &Report) -> ExitCode {
    // Neither can be told to anybody else.
    let _ = error.print();
    if error.use_stderr() {
        // The rest is how to use it.
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default();
        report.log_error(first.trim_start_matches("error: "));
    }
    match error.kind() {
        // runc's, by its command line's library.
        ErrorKind::InvalidSubcommand => ExitCode::from(3),
        _ if error.use_stderr() => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}
