//! `kata-image` builds what a guest boots: the small kernel, the initrd, the rootfs image; the
//! first two also from a distribution's packages.

mod agent;
mod cli;
mod kernel;
mod output;
mod progress;
mod rootfs;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser};
use kata_initrd::{KernelPackage, Progress, build_initrd, fetch_kernel_package};

use cli::{Cli, Command, Packages};
use output::write;
use progress::Teller;

/// The definitions of the command line, from which manual pages and completions are made.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Does what the command line of this process asks for. To be called once, by the program.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let teller = Teller::new(cli.format);
    let result = run(cli.command, &teller);
    teller.finish();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kata-image: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command, teller: &Teller) -> Result<()> {
    match command {
        Command::FetchKernel { package, output } => {
            teller.stage(&format!("download {package}"));
            for file in fetch_kernel_package(&package, &output, teller)? {
                teller.package(&file);
            }
            Ok(())
        }
        Command::Kernel(command) => kernel::run(&command, teller),
        Command::Initrd { kernel, agent, modules, output } => {
            let package = open(&kernel, teller)?;
            let (path, agent) = agent::read(agent.as_deref())?;
            let initrd = build_initrd(&agent, package.as_ref(), &modules).with_context(|| {
                format!("cannot build an initrd from the agent {}", path.display())
            })?;
            write(&output, &initrd, teller)
        }
        Command::Rootfs(command) => rootfs::run(&command, teller),
    }
}

/// The kernel of the named packages; `None` if none is named.
fn open(kernel: &Packages, teller: &Teller) -> Result<Option<KernelPackage>> {
    if kernel.packages.is_empty() {
        return Ok(None);
    }
    let package = KernelPackage::open(&kernel.packages)?;
    teller.stage(&format!("kernel {}", package.release()));
    Ok(Some(package))
}
