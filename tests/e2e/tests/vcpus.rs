//! Virtual CPUs that a sandbox gets and gives back while it runs, as the limits of its containers
//! want it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use kata_e2e::{
    CommandLine, Configuration, Containerd, Deadline, Scenario, Spec, hypervisor_under_test,
    only_a_vm,
};
use serde_json::json;

/// One for what has no limit, and two where limits want them.
const KEYS: &str = "default_vcpus = 1
default_maxvcpus = 2
";

/// In µs, as Docker tells it for `--cpus 0.5` and `--cpus 1.5`.
const PERIOD: &str = "100000";
const HALF: &str = "50000";
const MORE_THAN_ONE: &str = "150000";

/// Whether there is a second CPU to give.
fn two_cpus() -> Result<bool> {
    let two = std::thread::available_parallelism()?.get() > 1;
    if !two {
        println!("skipped: virtual CPUs that come and go need a machine with two CPUs");
    }
    Ok(two && only_a_vm("virtual CPUs of a container's own"))
}

fn configuration(further_keys: &str) -> Result<Configuration> {
    let section = hypervisor_under_test()?;
    Configuration::with(&format!("[hypervisor.{section}]\n{KEYS}{further_keys}"))
}

/// Asks until the container sees so many: the kernel tells its control groups a moment later.
fn sees(count: u32, nproc: impl Fn() -> Result<String>) -> Result<()> {
    let deadline = Deadline::for_command();
    loop {
        let sees: u32 = nproc()?.trim().parse().context("nproc says no number")?;
        if sees == count {
            return Ok(());
        }
        ensure!(!deadline.remaining().is_zero(), "it sees {sees} CPUs and not {count}");
    }
}

/// With its own cgroup at the usual place.
fn with_its_cgroup(spec: Spec) -> Spec {
    let mount = json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"] });
    spec.push("/mounts", mount).push("/linux/namespaces", json!({ "type": "cgroup" }))
}

fn update_gives_and_takes(configuration: &Path) -> Result<()> {
    CommandLine::configured(configuration, |host| {
        let id = host.id("c");
        let bundle = host.bundle("c", "echo up; exec sleep 1000", with_its_cgroup)?;
        host.create("c", &bundle)?;
        host.succeed(&["start", &id])?;
        host.says("c", "up")?;
        let nproc = || host.succeed(&["exec", &id, "nproc"]);
        let update = |quota: &str| {
            host.succeed(&["update", "--cpu-period", PERIOD, "--cpu-quota", quota, &id])
        };
        let limit = || host.succeed(&["exec", &id, "cat", "/sys/fs/cgroup/cpu.max"]);
        sees(1, nproc)?;
        for _ in 0..2 {
            update(MORE_THAN_ONE)?;
            sees(2, nproc)?;
            assert_eq!(limit()?, format!("{MORE_THAN_ONE} {PERIOD}\n"));
            update(HALF)?;
            sees(1, nproc)?;
            assert_eq!(limit()?, format!("{HALF} {PERIOD}\n"));
        }
        host.succeed(&["kill", &id, "KILL"])?;
        host.ends("c")?;
        host.succeed(&["delete", &id]).map(drop)
    })
}

#[test]
fn update_of_a_limit_brings_virtual_cpus_and_takes_them() -> Result<()> {
    if !two_cpus()? {
        return Ok(());
    }
    update_gives_and_takes(&configuration("")?.file())
}

#[test]
fn update_of_a_limit_brings_virtual_cpus_to_a_q35_and_takes_them() -> Result<()> {
    if !two_cpus()? {
        return Ok(());
    }
    update_gives_and_takes(&configuration("machine_type = \"q35\"\n")?.file())
}

#[test]
fn members_of_a_pod_bring_their_virtual_cpus_and_take_them_with_them() -> Result<()> {
    const KIND: &str = "io.kubernetes.cri.container-type";
    if !two_cpus()? {
        return Ok(());
    }
    let configuration = configuration("")?;
    Scenario::new().configuration(&configuration.file()).run(|containerd: &Containerd| {
        let sleep = || containerd.run(["sleep", "1000"]);
        let pod = sleep().option("--annotation", &format!("{KIND}=sandbox")).start()?;
        let nproc = || pod.exec(["nproc"]).output()?.success();
        sees(1, nproc)?;
        let member = || {
            sleep()
                .option("--annotation", &format!("{KIND}=container"))
                .option("--annotation", &format!("io.kubernetes.cri.sandbox-id={}", pod.id()))
                .option("--cpu-quota", HALF)
                .option("--cpu-period", PERIOD)
                .start()
        };
        let one = member()?;
        sees(1, nproc)?;
        let other = member()?;
        sees(2, nproc)?;
        one.remove()?;
        sees(1, nproc)?;
        other.remove()?;
        pod.remove()
    })
}

/// What others have is not changed by a number that says nothing about them.
#[test]
fn limits_bring_no_virtual_cpus_where_none_are_named() -> Result<()> {
    if !two_cpus()? {
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("configuration.toml");
    fs::write(&file, "[hypervisor.qemu]\n")?;
    CommandLine::configured(&file, |host| {
        let (id, limit) = (host.id("c"), json!({ "cpu": { "quota": 50_000, "period": 100_000 } }));
        let bundle = host
            .bundle("c", "echo up; exec sleep 1000", |spec| spec.set("/linux/resources", limit))?;
        host.create("c", &bundle)?;
        host.succeed(&["start", &id])?;
        host.says("c", "up")?;
        host.succeed(&["update", "--cpu-quota", MORE_THAN_ONE, &id])?;
        let present = ["exec", &id, "cat", "/sys/devices/system/cpu/present"];
        assert_eq!(host.succeed(&present)?, "0\n");
        host.succeed(&["kill", &id, "KILL"])?;
        host.ends("c")?;
        host.succeed(&["delete", &id]).map(drop)
    })
}
