//! The end-to-end tests on a machine with KVM: this one where it has that, else one that is made on the spot. Its results are theirs.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use kata_e2e::Installation;
use kata_host_vm::{Died, Disk, HostImage, Machine, TestBinary, kvm_works, test_binaries};

/// What of each test binary runs. A nested guest boots in about ten seconds, so these are the few that show the whole path: the
/// accelerator and channel that are used, a container's life, a pod, an end by violence. `KATA_HOST_VM_TESTS=all` runs everything.
const TESTS: &[(&str, &[&str])] = &[
    ("acceleration", &[]),
    ("lifecycle", &["detached_container_lives_until_it_is_killed"]),
    ("pods", &["members_of_a_pod_share_a_vm_and_nothing_else"]),
    ("kill", &["vmm_is_killed_while_busy"]),
];

/// How much of the machine's log is shown when a test has failed.
const LOG_LINES: usize = 40;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all tests have passed.
fn run() -> Result<bool> {
    let names: Vec<&str> = TESTS.iter().map(|(name, _)| *name).collect();
    let binaries = test_binaries(&names)?;
    if kvm_works() {
        println!("\nthis machine has KVM: the tests run on it");
        return here(&binaries);
    }
    println!("\nthis machine has no KVM: the tests run on one that is made on the spot");
    match in_host_vm(&binaries) {
        // The emulation has crashed, which it does rarely; a test that fails is never tried again.
        Err(error) if error.is::<Died>() => {
            println!("{error}; once more");
            in_host_vm(&binaries)
        }
        result => result,
    }
}

/// The arguments of a test binary.
fn arguments(binary: &TestBinary) -> Vec<&'static str> {
    let mut arguments = vec!["--test-threads=1"];
    if std::env::var("KATA_HOST_VM_TESTS").as_deref() != Ok("all") {
        let filters = TESTS.iter().filter(|(name, _)| *name == binary.name);
        arguments.extend(filters.flat_map(|(_, filters)| filters.iter()));
    }
    arguments
}

fn here(binaries: &[TestBinary]) -> Result<bool> {
    let mut passed = true;
    for binary in binaries {
        let status = Command::new(&binary.path).args(arguments(binary)).status();
        passed &= status.with_context(|| format!("cannot run {}", binary.name))?.success();
    }
    Ok(passed)
}

fn in_host_vm(binaries: &[TestBinary]) -> Result<bool> {
    let mut paths: Vec<PathBuf> = binaries.iter().map(|binary| binary.path.clone()).collect();
    paths.push(Installation::under_test().prefix().to_owned());
    let mut machine = Machine::boot(&HostImage::ready()?, Disk::of(paths)?)?;
    let mut passed = true;
    for binary in binaries {
        println!("\n     Running {} in the host VM", binary.name);
        // Everything is slower there by a factor of about four.
        let command = format!(
            "KATA_E2E_PREFIX='{}' KATA_E2E_PATIENCE=4 '{}' {}",
            Installation::under_test().prefix().display(),
            binary.path.display(),
            arguments(binary).join(" ")
        );
        let status = machine.run(&command, |line| println!("{line}"));
        match status {
            Ok(0) => {}
            Ok(_) => {
                passed = false;
                machine.run("dmesg | tail -n 20", |line| println!("{line}"))?;
                println!("the host VM's last words:\n{}", machine.last_words(LOG_LINES));
            }
            Err(error) => {
                println!("the host VM's last words:\n{}", machine.last_words(LOG_LINES));
                return Err(error);
            }
        }
    }
    Ok(passed)
}
