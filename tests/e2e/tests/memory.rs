//! Memory that a sandbox gets and gives back while it runs, as the limits of its containers want
//! it, or as its guest frees it.

use anyhow::{Context, Result, ensure};
use kata_e2e::{
    CommandLine, Configuration, Containerd, Deadline, Input, Part, Scenario, Share,
    hypervisor_under_test, only_a_vm,
};
use rustix::process::Signal;
use serde_json::{Value, json};

/// 256 MiB for what has no limit, and as much as limits want up to 2 GiB.
const KEYS: &str = "enable_virtio_mem = true
default_memory = 256
default_maxmemory = 2048
";

const MIB: u64 = 1 << 20;

const MEMORY: [&str; 2] = ["cat", "/proc/meminfo"];

/// What the guest's kernel has, in MiB. Some of a guest's memory is the kernel's own and not in it.
fn total(meminfo: &str) -> Result<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).context("no MemTotal")?;
    Ok(kib.parse::<u64>()? / 1024)
}

/// Asks until the guest has no more than this: giving back takes its time.
fn shrinks_to(most: u64, meminfo: impl Fn() -> Result<String>) -> Result<()> {
    let deadline = Deadline::for_command();
    loop {
        let has = total(&meminfo()?)?;
        if has <= most {
            return Ok(());
        }
        ensure!(!deadline.remaining().is_zero(), "the guest still has {has} MiB");
    }
}

fn configuration() -> Result<Configuration> {
    Configuration::with(&format!("[hypervisor.{}]\n{KEYS}", hypervisor_under_test()?))
}

#[test]
fn update_of_a_limit_makes_the_vm_larger_and_smaller() -> Result<()> {
    if !only_a_vm("memory of a container's own") {
        return Ok(());
    }
    let configuration = configuration()?;
    CommandLine::configured(&configuration.file(), |host| {
        let (id, limit) = (host.id("c"), json!({ "memory": { "limit": 128 * MIB } }));
        let bundle = host
            .bundle("c", "echo up; exec sleep 1000", |spec| spec.set("/linux/resources", limit))?;
        host.create("c", &bundle)?;
        host.succeed(&["start", &id])?;
        host.says("c", "up")?;
        let meminfo = || host.succeed(&["exec", &id, MEMORY[0], MEMORY[1]]);
        let before = total(&meminfo()?)?;
        ensure!(before < 256, "it has {before} MiB for 128");

        let update =
            |mib: u64| host.succeed(&["update", "--memory", &(mib * MIB).to_string(), &id]);
        update(512)?;
        let after = total(&meminfo()?)?;
        ensure!(after >= before + 384 - 32, "{before} MiB became {after}");
        let large = ["dd", "if=/dev/zero", "of=/dev/null", "bs=260M", "count=1"];
        host.succeed(&[&["exec", &id], &large[..]].concat())?;

        update(128)?;
        shrinks_to(before + 64, meminfo)?;
        // The limit holds whatever the VM has.
        let greedy = host.call(&["exec", &id, "sh", "-c", "tail /dev/zero"])?;
        assert_eq!(greedy.code, 137, "{greedy}");
        host.succeed(&["kill", &id, "KILL"])?;
        host.ends("c")?;
        host.succeed(&["delete", &id]).map(drop)
    })
}

/// The VM would have the memory and the container not. The VMM stands still meanwhile, so that the
/// update cannot have been done before.
#[test]
fn update_is_done_whole_although_its_caller_is_killed() -> Result<()> {
    if !only_a_vm("memory of a container's own") {
        return Ok(());
    }
    let configuration = configuration()?;
    CommandLine::configured(&configuration.file(), |host| {
        host.run_idle("c")?;
        let id = host.id("c");
        let vmm = host.await_part(Part::Vmm)?;
        vmm.signal(Signal::STOP)?;
        let wanted = 512 * MIB;
        let update =
            host.attach(&["update", "--memory", &wanted.to_string(), &id], Input::Nothing)?;
        host.logs("c", "msg=\"update\"")?;
        update.signal(Signal::KILL)?;
        update.wait()?;
        vmm.signal(Signal::CONT)?;
        CommandLine::until(|| {
            let told: Value = serde_json::from_str(&host.succeed(&["events", "--stats", &id])?)?;
            Ok(told["data"]["memory"]["usage"]["limit"] == wanted)
        })?;
        host.succeed(&["delete", "--force", &id]).map(drop)
    })
}

#[test]
fn memory_that_the_guest_frees_goes_back_to_the_host() -> Result<()> {
    if !only_a_vm("a guest's memory") {
        return Ok(());
    }
    let lines = "[hypervisor.qemu]\ndefault_memory = 512\nreclaim_guest_freed_memory = true\n";
    let configuration = Configuration::with(lines)?;
    CommandLine::configured(&configuration.file(), |host| {
        host.run_idle("c")?;
        let vmm = host.await_part(Part::Vmm)?;
        // In MiB: what of the guest's memory the host has set aside by now.
        let of_the_guest = || -> Result<u64> {
            Ok(Share::of(&vmm, |mapping| mapping.line.contains("memfd:"))?.guest / 1024)
        };
        let before = of_the_guest()?;
        let words = ["exec", &host.id("c"), "dd", "if=/dev/zero", "of=/dev/null", "bs=200M"];
        let greedy = host.attach(&words, Input::Nothing)?;
        CommandLine::until(|| Ok(of_the_guest()? > before + 180))?;
        greedy.signal(Signal::KILL)?;
        greedy.wait()?.failure()?;
        CommandLine::until(|| Ok(of_the_guest()? < before + 40))?;
        host.succeed(&["delete", "--force", &host.id("c")]).map(drop)
    })
}

#[test]
fn members_of_a_pod_bring_their_memory_and_take_it_with_them() -> Result<()> {
    const KIND: &str = "io.kubernetes.cri.container-type";
    if !only_a_vm("memory of a container's own") {
        return Ok(());
    }
    let configuration = configuration()?;
    Scenario::new().configuration(&configuration.file()).run(|containerd: &Containerd| {
        let sleep = || containerd.run(["sleep", "1000"]);
        let pod = sleep().option("--annotation", &format!("{KIND}=sandbox")).start()?;
        let meminfo = || pod.exec(MEMORY).output()?.success();
        let before = total(&meminfo()?)?;
        ensure!(before < 256, "a pod alone has {before} MiB");
        let member = |mib: u64| {
            sleep()
                .option("--annotation", &format!("{KIND}=container"))
                .option("--annotation", &format!("io.kubernetes.cri.sandbox-id={}", pod.id()))
                .option("--memory-limit", &(mib * MIB).to_string())
                .start()
        };
        let one = member(512)?;
        let with_one = total(&meminfo()?)?;
        ensure!(with_one >= 600, "{before} MiB became {with_one} for 512 and the guest");
        let other = member(256)?;
        let with_both = total(&meminfo()?)?;
        ensure!(with_both >= 850, "{with_one} MiB became {with_both} for 768 and the guest");
        one.remove()?;
        other.remove()?;
        shrinks_to(before + 64, meminfo)?;
        pod.remove()
    })
}
