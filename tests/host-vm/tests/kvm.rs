//! The end-to-end tests on a machine with KVM: this one where it has that, else one that is made on
//! the spot. Its results are theirs. Arguments name parts of what is to run, like `kill` or `kill
//! with krun`; `--list` tells what there is.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use kata_host_vm::pool::{self, Job};
use kata_host_vm::{Filter, HostImage, Rounds, TestBinary, test_binaries};
use kata_hypervisor::kvm_obstacle;

/// Test files that compare what a guest has with what the machine has.
const TWO_PROCESSORS: &[&str] = &["vcpus"];

/// By how much everything is slower in the host VM, at most.
const SLOWNESS: u32 = 6;

fn main() -> Result<ExitCode> {
    Ok(if run()? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether all tests have passed.
fn run() -> Result<bool> {
    let filter = Filter::of(std::env::args().skip(1))?;
    let rounds = Rounds::with_programs_of(std::env::var_os("PATH").as_deref())?.only(&filter);
    let names = rounds.binaries(all());
    if filter.lists || names.is_empty() {
        rounds.list(all());
        return Ok(true);
    }
    let binaries = test_binaries(&names)?;
    let Some(obstacle) = kvm_obstacle() else {
        println!("\nthis machine has KVM: the tests run on it");
        return here(&rounds, &binaries);
    };
    println!("\nno KVM here ({obstacle}): the tests run on a machine that is made on the spot");
    in_host_vm(&rounds, &binaries)
}

/// Whether no test of a binary is left out: `KATA_HOST_VM_TESTS=all`.
fn all() -> bool {
    std::env::var("KATA_HOST_VM_TESTS").as_deref() == Ok("all")
}

fn here(rounds: &Rounds, binaries: &[TestBinary]) -> Result<bool> {
    let mut passed = true;
    for round in rounds.iter() {
        for (name, command) in round.commands(binaries, all(), 1, 1) {
            println!("\n     Running {name} with {}", round.hypervisor);
            let status = Command::new("sh").args(["-c", &command]).status();
            passed &= status.with_context(|| format!("cannot run {name}"))?.success();
        }
    }
    Ok(passed)
}

fn in_host_vm(rounds: &Rounds, binaries: &[TestBinary]) -> Result<bool> {
    let mut paths: Vec<PathBuf> = binaries.iter().map(|binary| binary.path.clone()).collect();
    paths.extend(rounds.files(all()));
    let jobs = rounds.iter().flat_map(|round| {
        let commands = round.commands(binaries, all(), SLOWNESS, 1);
        commands.map(|(name, command)| Job {
            name: format!("{name} with {}", round.hypervisor),
            command,
            processors: if TWO_PROCESSORS.contains(&name) { 2 } else { 1 },
        })
    });
    pool::run(&HostImage::ready()?, paths, jobs.collect())
}
