//! `make host-vm`, and for whoever develops a machine with KVM: `host-vm build`, `host-vm run
//! COMMAND`, `host-vm shell`; and the engines of another release of Debian: `host-vm engines
//! RELEASE COMMAND`. `host-vm table` prints which tests run with which hypervisor.

use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use kata_e2e::{Installation, Suite};
use kata_host_vm::{Disk, EngineRoot, HostImage, Machine};

const USAGE: &str =
    "usage: host-vm build                 make the machine, unless it is in the cache
       host-vm run COMMAND [PATH]…   boot it, run one shell command in it, end it
       host-vm shell [PATH]…         boot it, run every line of standard input in it
       host-vm engines trixie|sid COMMAND [PATH]…
                                     run one shell command on this machine with the engines of that release
       host-vm table                 print docs/reference/tests-of-hypervisors.md
Each PATH is there at the same place, and so are the staged programs.";

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("host-vm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Vec<String>) -> Result<ExitCode> {
    let mut arguments = arguments.into_iter();
    match arguments.next().as_deref() {
        Some("build") => {
            println!("the host VM is in {}", HostImage::ready()?.place().display());
            Ok(ExitCode::SUCCESS)
        }
        Some("run") => {
            let Some(command) = arguments.next() else { bail!("{USAGE}") };
            let mut machine = boot(arguments)?;
            let status = machine.run(&command, |line| println!("{line}"))?;
            Ok(ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)))
        }
        Some("shell") => {
            let mut machine = boot(arguments)?;
            println!("its console: socat - UNIX-CONNECT:{}", machine.console().display());
            prompt()?;
            for line in io::stdin().lock().lines() {
                let status = machine.run(&line?, |line| println!("{line}"))?;
                if status != 0 {
                    println!("exit status {status}");
                }
                prompt()?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Some("engines") => {
            let suite = arguments.next().and_then(|name| Suite::named(&name));
            let (Some(suite), Some(command)) = (suite, arguments.next()) else { bail!("{USAGE}") };
            let paths = with_installation(arguments)?;
            let status = EngineRoot::ready(suite)?.command(&command, &paths).status();
            let code = status.context("cannot run unshare")?.code();
            Ok(ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)))
        }
        Some("table") => {
            print!("{}", kata_host_vm::table());
            Ok(ExitCode::SUCCESS)
        }
        _ => bail!("{USAGE}"),
    }
}

fn prompt() -> Result<()> {
    print!("host-vm# ");
    Ok(io::stdout().flush()?)
}

fn boot(paths: impl Iterator<Item = String>) -> Result<Machine> {
    Machine::boot(&HostImage::ready()?, Arc::new(Disk::of(with_installation(paths)?)?), 1)
}

/// The absolute form of `paths`, and where the programs under test are.
fn with_installation(paths: impl Iterator<Item = String>) -> Result<Vec<PathBuf>> {
    let mut paths: Vec<PathBuf> = paths.map(std::path::absolute).collect::<io::Result<_>>()?;
    paths.push(Installation::under_test().prefix().to_owned());
    Ok(paths)
}
