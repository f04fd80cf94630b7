//! What the machine has to speed a sandbox up is used: KVM and vhost-vsock, on each machine that QEMU emulates.

use std::fs::{self, File};

use anyhow::{Result, ensure};
use kata_e2e::{Containerd, Input, Part, Scenario, only_a_vm, parts_of};
use kata_hypervisor::kvm_obstacle;

fn opens(device: &str) -> bool {
    File::options().read(true).write(true).open(device).is_ok()
}

/// Runs a container on the machine and checks what its VMM was told, what the guest sees of it, and that streams pass.
fn everything_is_used(machine: &str) -> Result<()> {
    if !only_a_vm("an accelerator") {
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("configuration.toml");
    fs::write(&file, format!("[hypervisor.qemu]\nmachine_type = '{machine}'\n"))?;
    Scenario::new().configuration(&file).run(|containerd| {
        let container = containerd.run(["sleep", "1000"]).start()?;
        vmm_is_told(containerd, machine)?;
        let clock = ["cat", "/sys/devices/system/clocksource/clocksource0/available_clocksource"];
        let clocks = container.exec(clock).output()?.success()?;
        assert_eq!(
            clocks.contains("kvm-clock"),
            kvm_obstacle().is_none(),
            "clocks of the guest: {clocks}"
        );
        let bytes = vec![b'x'; 1 << 20];
        let echoed = container.exec(["cat"]).stdin(Input::Bytes(bytes.clone())).output()?;
        ensure!(
            echoed.stdout == bytes,
            "{} bytes of {} came back",
            echoed.stdout.len(),
            bytes.len()
        );
        container.remove()
    })
}

fn vmm_is_told(containerd: &Containerd, machine: &str) -> Result<()> {
    let vmms = parts_of(containerd.mark(), Part::Vmm)?;
    let [vmm] = vmms.as_slice() else { anyhow::bail!("not exactly one VMM: {vmms:?}") };
    let line = vmm.command_line.join(" ");
    let accelerator = if kvm_obstacle().is_none() { "-accel kvm " } else { "-accel tcg," };
    let channel =
        if opens("/dev/vhost-vsock") { "-device vhost-vsock-" } else { "-device virtio-serial-" };
    for part in [&format!("-machine {machine},"), accelerator, channel] {
        ensure!(line.contains(part), "{part:?} is not in: {line}");
    }
    Ok(())
}

#[test]
fn microvm_uses_what_the_machine_has() -> Result<()> {
    everything_is_used("microvm")
}

#[test]
fn q35_uses_what_the_machine_has() -> Result<()> {
    everything_is_used("q35")
}
