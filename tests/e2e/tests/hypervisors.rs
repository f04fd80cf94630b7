//! The hypervisors beside each other: who is asked for runs the VM, or the refusal says why not.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use kata_e2e::{Part, Scenario, only_a_vm, parts_of};

/// Whether KVM works on this machine; where it does not, the processor shows no extension for it.
fn kvm_works() -> bool {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo.lines().filter(|line| line.starts_with("flags"));
    let extension = flags.flat_map(str::split_whitespace).any(|flag| matches!(flag, "vmx" | "svm"));
    extension && Path::new("/dev/kvm").exists()
}

/// Runs a container under `io.containerd.kata-HYPERVISOR.v2`, whose one VMM must be `program`.
fn name_chooses(hypervisor: &'static str, program: &str) -> Result<()> {
    if !only_a_vm("the choice of a hypervisor") {
        return Ok(());
    }
    Scenario::unconfigured().run(|containerd| {
        let run = containerd.run(["sleep", "1000"]).under_hypervisor(hypervisor);
        let container = run.start()?;
        let vmms = parts_of(containerd.mark(), Part::Vmm)?;
        let [vmm] = vmms.as_slice() else { anyhow::bail!("not exactly one VMM: {vmms:?}") };
        let name = vmm.program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        ensure!(name.starts_with(program), "the VMM is {}", vmm.describe());
        container.remove()
    })
}

#[test]
fn runtimes_name_chooses_qemu() -> Result<()> {
    name_chooses("qemu", "qemu-system-")
}

#[test]
fn runtimes_name_chooses_krun_or_tells_what_it_lacks_here() -> Result<()> {
    if kvm_works() {
        return name_chooses("krun", "kata-krun");
    }
    is_refused("krun", "cannot set up krun for the VM: KVM does not work here")
}

#[test]
fn cloud_hypervisor_is_refused_where_there_is_no_kvm() -> Result<()> {
    if kvm_works() {
        eprintln!("left out, for KVM works here: what is said where it does not");
        return Ok(());
    }
    is_refused("clh", "or use QEMU, which does without")
}

fn is_refused(hypervisor: &'static str, sentence: &str) -> Result<()> {
    if !only_a_vm("what a hypervisor lacks") {
        return Ok(());
    }
    Scenario::unconfigured().run(|containerd| {
        let run = containerd.run(["true"]).under_hypervisor(hypervisor);
        let error = run.output()?.failure()?;
        ensure!(error.contains(sentence), "{sentence:?} is not in: {error}");
        Ok(())
    })
}
