//! The end-to-end tests on a machine with KVM: this one where it has that, else one that is made on
//! the spot. Its results are theirs. Arguments name parts of what is to run, like `kill` or `kill
//! with krun`; `--list` tells what there is.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result};
use kata_host_vm::{
    Died, Disk, Filter, HostImage, Machine, Rounds, Silent, TestBinary, test_binaries,
};
use kata_hypervisor::kvm_obstacle;

/// How much of the machine's log is shown when a test has failed.
const LOG_LINES: usize = 40;

/// Everything is slower in the host VM by a factor of about four.
const SLOWNESS: u32 = 4;

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

/// When the machine dies or falls silent, which the emulation does now and then, the tests of that
/// file run once more on a new one. So do those of a file of which one fails, for a guest of the
/// emulated KVM was seen to reset itself at its kernel's first instructions. Who is to blame cannot
/// be told for sure: what happens twice is a failure.
fn in_host_vm(rounds: &Rounds, binaries: &[TestBinary]) -> Result<bool> {
    let mut paths: Vec<PathBuf> = binaries.iter().map(|binary| binary.path.clone()).collect();
    paths.extend(rounds.files());
    let image = HostImage::ready()?;
    let boot = || Machine::boot(&image, Disk::of(paths.clone())?);
    let mut machine = boot()?;
    let mut passed = true;
    for round in rounds.iter() {
        let started = Instant::now();
        for (name, command) in round.commands(binaries, all(), SLOWNESS, 1) {
            println!("\n     Running {name} with {} in the host VM", round.hypervisor);
            passed &= match runs(&mut machine, &command) {
                Err(error) if error.is::<Died>() || error.is::<Silent>() => {
                    println!("{error}; once more, on a new machine");
                    drop(machine);
                    machine = boot()?;
                    runs(&mut machine, &command)?
                }
                Ok(false) => {
                    println!("{name} with {} has failed; once more", round.hypervisor);
                    runs(&mut machine, &command)?
                }
                result => result?,
            };
        }
        println!("{}: {} s", round.hypervisor, started.elapsed().as_secs());
    }
    Ok(passed)
}

/// Whether the tests of a command pass.
fn runs(machine: &mut Machine, command: &str) -> Result<bool> {
    match machine.run(command, |line| println!("{line}")) {
        Ok(0) => Ok(true),
        Ok(_) => {
            machine.run("dmesg | tail -n 20", |line| println!("{line}"))?;
            println!("the host VM's last words:\n{}", machine.last_words(LOG_LINES));
            Ok(false)
        }
        Err(error) => {
            println!("the host VM's last words:\n{}", machine.last_words(LOG_LINES));
            if error.is::<Silent>() {
                println!("what runs there:\n{}", machine.processes());
            }
            Err(error)
        }
    }
}
