//! `kata-runtime`: looks into sandboxes.

mod timeline;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Kata Containers: containers in virtual machines.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Timeline(timeline::Timeline),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Timeline(timeline) => timeline.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kata-runtime: {error:#}");
            ExitCode::FAILURE
        }
    }
}
