//! The tests of Docker and Podman with the newest releases of them that Debian has, on this
//! machine. Its results are theirs. Arguments name parts of what is to run, like `docker`; `--list`
//! tells what there is.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use kata_e2e::Suite;
use kata_host_vm::{EngineRoot, Filter, Rounds, test_binaries};

/// Tests at a time, as on this machine without another root.
const THREADS: u32 = 2;

fn main() -> Result<ExitCode> {
    Ok(if run()? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether all tests have passed.
fn run() -> Result<bool> {
    let filter = Filter::of(std::env::args().skip(1))?;
    let rounds = Rounds::of_engines()?.only(&filter);
    let names = rounds.binaries(false);
    if filter.lists || names.is_empty() {
        rounds.list(false);
        return Ok(true);
    }
    let binaries = test_binaries(&names)?;
    let root = EngineRoot::ready(Suite::Sid)?;
    let mut paths: Vec<PathBuf> = binaries.iter().map(|binary| binary.path.clone()).collect();
    paths.extend(rounds.files(false));
    let mut versions = root.command("docker --version; podman --version", &[]);
    versions.status().context("cannot run unshare")?;
    let mut passed = true;
    for round in rounds.iter() {
        for (name, command) in round.commands(&binaries, false, 1, THREADS) {
            println!("\n     Running {name} with engines of another release");
            let status = root.command(&command, &paths).status();
            passed &= status.with_context(|| format!("cannot run {name}"))?.success();
        }
    }
    Ok(passed)
}
