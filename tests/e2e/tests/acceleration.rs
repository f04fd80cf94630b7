//! What the machine has to speed a sandbox up is used: KVM and vhost-vsock, on each machine that
//! QEMU emulates. Nobody else gets into a guest by it.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kata_e2e::{Containerd, Deadline, Input, Part, Scenario, only_a_vm, parts_of};
use kata_hypervisor::kvm_obstacle;
use vsock::VsockStream;

/// What the agent serves: requests, its log, the debug console, names, forwarded ports.
const PORTS_OF_THE_AGENT: [u32; 5] = [1024, 1025, 1026, 1053, 1080];

/// More than the agent takes to look at who it is.
const PATIENCE: Duration = Duration::from_secs(60);

fn opens(device: &str) -> bool {
    File::options().read(true).write(true).open(device).is_ok()
}

/// Runs a container on the machine and checks what its VMM was told, what the guest sees of it, and
/// that streams pass.
fn everything_is_used(machine: &str) -> Result<()> {
    if !only_a_vm("an accelerator") {
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("configuration.toml");
    fs::write(&file, format!("[hypervisor.qemu]\nmachine_type = '{machine}'\n"))?;
    Scenario::new().configuration(&file).run(|containerd| {
        let container = containerd.run(["sleep", "1000"]).start()?;
        let vmm = vmm_is_told(containerd, machine)?;
        if let Some(cid) = word_after(&vmm, "guest-cid=") {
            strangers_are_refused(cid.parse()?)?;
        }
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
        container.remove()?;
        emulation_is_told_once(containerd)
    })
}

/// Whoever has no KVM shall know it, and not from every line of the log.
fn emulation_is_told_once(containerd: &Containerd) -> Result<()> {
    const WARNING: &str = "virtual machines run in software emulation";
    let expected = usize::from(kvm_obstacle().is_some());
    containerd.log().expect_times(WARNING, expected, Deadline::for_command())?;
    let log = containerd.log().text();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(WARNING)).collect();
    ensure!(lines.len() == expected, "{} lines instead of {expected}: {lines:#?}", lines.len());
    let warns = lines.iter().all(|line| line.contains("level=warning") || line.contains("WARN"));
    ensure!(warns, "not a warning: {lines:?}");
    Ok(())
}

/// Checks what the VMM was told, and gives its command line.
fn vmm_is_told(containerd: &Containerd, machine: &str) -> Result<String> {
    let vmms = parts_of(containerd.mark(), Part::Vmm)?;
    let [vmm] = vmms.as_slice() else { anyhow::bail!("not exactly one VMM: {vmms:?}") };
    let line = vmm.command_line.join(" ");
    let accelerator = if kvm_obstacle().is_none() { "-accel kvm " } else { "-accel tcg," };
    let channel =
        if opens("/dev/vhost-vsock") { "-device vhost-vsock-" } else { "-device virtio-serial-" };
    for part in [&format!("-machine {machine},"), accelerator, channel] {
        ensure!(line.contains(part), "{part:?} is not in: {line}");
    }
    Ok(line)
}

/// What follows `key` up to the next comma or space.
fn word_after<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_once(key)?.1.split([',', ' ']).next()
}

/// Whoever is on the host may dial a guest. This does it as an ordinary user would: from any port
/// that is free.
fn strangers_are_refused(cid: u32) -> Result<()> {
    for port in PORTS_OF_THE_AGENT {
        let said = VsockStream::connect_with_cid_port(cid, port).and_then(|mut stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.read(&mut [0])
        });
        match said {
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            said => {
                return said
                    .map(drop)
                    .context("waiting for the agent")
                    .and_then(|()| anyhow::bail!("the agent talks to anybody on port {port}"));
            }
        }
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
