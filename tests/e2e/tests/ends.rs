//! A guest that ends by itself, or stands still, ends its sandbox, and the reason is told; one that
//! floods its console does neither.

use anyhow::{Result, ensure};
use kata_e2e::{
    Configuration, Container, Containerd, Deadline, Image, Part, Scenario, Spec, only_a_vm,
    parts_of, scenario,
};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Has the guest's kernel start a program of the container, outside of it: what handles core dumps
/// (core(5)) runs as root in the guest's first namespaces. `%P` is the crashed process as the guest
/// counts.
fn outside(command: &str) -> String {
    format!(
        "echo '|/proc/%P/root/bin/busybox {command}' >/proc/sys/kernel/core_pattern; \
         sh -c 'kill -SEGV $$'; exec sleep 1000"
    )
}

/// Has every lack of memory be the end of the guest's kernel.
const PANIC: &str = "echo 2 >/proc/sys/vm/panic_on_oom; tail /dev/zero";

/// A container that waits for the file `/go/now`, and then does to its guest what it may not do to
/// a host. That file is the guest's alone, so that no shared file system is needed to make it.
fn dangerous(containerd: &Containerd, script: &str) -> Result<Spec> {
    let rootfs = containerd.directory().join("rootfs");
    Image::unpack(&rootfs)?;
    let script = format!("until [ -e /go/now ]; do sleep 0.1; done; {script}");
    let all = ["CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_MKNOD", "CAP_SYS_ADMIN"];
    let capabilities = json!({ "bounding": all, "effective": all, "permitted": all });
    let go = json!({ "destination": "/go", "type": "tmpfs", "source": "tmpfs" });
    Ok(Spec::new(&rootfs, &["sh", "-c", &script])
        .set("/process/capabilities", capabilities)
        .set("/linux/readonlyPaths", Value::Null)
        .set("/linux/resources/devices", json!([{ "allow": true, "access": "rwm" }]))
        .set("/linux/resources/memory", json!({ "limit": 32 << 20 }))
        .push("/mounts", go))
}

/// Waits for the end of the sandbox. The log tells `reason`, and so do later requests.
fn has_ended(containerd: &Containerd, container: Container<'_>, reason: &str) -> Result<()> {
    containerd.log().expect(reason, Deadline::for_command())?;
    let error = container.exec(["true"]).output()?.failure()?;
    ensure!(error.contains(reason), "{reason:?} is not in: {error}");
    container.remove()
}

/// Does `meanwhile` to a running container, then has it run `script`, which ends its guest.
fn guest_ends_after(
    meanwhile: impl FnOnce(&Container<'_>) -> Result<()>,
    script: &str,
    reason: &str,
) -> Result<()> {
    if !only_a_vm("a guest that ends") {
        return Ok(());
    }
    scenario(|containerd| {
        let spec = dangerous(containerd, script)?;
        let container = containerd.shell("").spec(spec).start()?;
        let events = containerd.events()?;
        meanwhile(&container)?;
        // The guest may have ended before this has been told to.
        let _ = container.exec(["touch", "/go/now"]).output();
        events.expect_exit(container.id())?;
        has_ended(containerd, container, reason)
    })
}

fn guest_ends(script: &str, reason: &str) -> Result<()> {
    guest_ends_after(|_| Ok(()), script, reason)
}

#[test]
fn guest_that_panics_is_told_with_the_kernels_words() -> Result<()> {
    guest_ends(PANIC, "the guest's kernel panicked: Out of memory: compulsory panic_on_oom")
}

#[test]
fn guest_that_reboots_is_told() -> Result<()> {
    guest_ends(&outside("reboot -f"), "the guest rebooted")
}

#[test]
fn guest_that_powers_off_is_told() -> Result<()> {
    guest_ends(&outside("poweroff -f"), "the guest powered off")
}

/// Nothing of its VM ends by that: it is asked, and does not answer.
#[test]
fn guest_that_halts_is_told() -> Result<()> {
    guest_ends(&outside("halt -f"), "the guest powered off or halted")
}

/// A console takes what the guest writes, keeps the end of it, and is in nobody's way.
#[test]
fn guest_that_floods_its_console_is_served_and_its_end_is_told() -> Result<()> {
    let flood = |container: &Container<'_>| {
        // The kernel may know better than the engine which console there is: 5:1 is it.
        let script = "mknod /console c 5 1; echo flooding; yes 'a flood' >/console";
        let flood = container.shell(script).attach()?;
        flood.expect("flooding")?;
        for word in ["one", "two", "three"] {
            let said = container.exec(["echo", word]).output()?.success()?;
            ensure!(said == format!("{word}\n"), "{said}");
        }
        Ok(())
    };
    guest_ends_after(flood, PANIC, "the guest's kernel panicked: Out of memory")
}

/// Asks the guest every two seconds whether it is there.
fn impatient() -> Result<Configuration> {
    Configuration::with("[agent.kata]\nhealth_check_request_timeout_ms = 2000\n")
}

#[test]
fn guest_that_stands_still_is_ended() -> Result<()> {
    if !only_a_vm("a guest that stands still") {
        return Ok(());
    }
    Scenario::new().configuration(&impatient()?.file()).run(|containerd| {
        let container = containerd.run(["sleep", "1000"]).start()?;
        let events = containerd.events()?;
        let vmms = parts_of(containerd.mark(), Part::Vmm)?;
        vmms.iter().try_for_each(|vmm| vmm.signal(Signal::STOP))?;
        events.expect_exit(container.id())?;
        has_ended(containerd, container, "its guest has not answered for ")
    })
}

/// Of which a guest that has stood still has missed some.
fn counts_more_than_ticks(container: &Container<'_>) -> Result<()> {
    let file = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let clock = container.exec(["cat", file]).output()?.success()?;
    ensure!(!clock.contains("jiffies"), "the guest's clock is {clock}");
    Ok(())
}

#[test]
fn guest_that_is_busy_or_paused_or_stood_still_for_a_moment_is_not_ended() -> Result<()> {
    if !only_a_vm("a guest that stands still") {
        return Ok(());
    }
    Scenario::new().configuration(&impatient()?.file()).run(|containerd| {
        let container = containerd.shell("while :; do :; done").start()?;
        let vmms = parts_of(containerd.mark(), Part::Vmm)?;
        let signal = |signal| vmms.iter().try_for_each(|vmm| vmm.signal(signal));
        // The log tells how time passes: after one question without an answer it may go on.
        signal(Signal::STOP)?;
        containerd
            .log()
            .expect("its guest has not answered within 2 s", Deadline::for_command())?;
        signal(Signal::CONT)?;
        container.pause()?;
        // Longer than three questions take.
        containerd.run(["sleep", "7"]).output()?.success()?;
        container.resume()?;
        assert_eq!(container.exec(["echo", "alive"]).output()?.success()?, "alive\n");
        counts_more_than_ticks(&container)?;
        container.remove()
    })
}
