//! Where the time of a start went, as `kata-runtime timeline` tells it.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use kata_e2e::{
    Client, CommandLine, Input, Installation, Output, Runtime, Wire, hypervisor_under_test,
    only_a_vm, scenario,
};

/// The stage of a hypervisor that has a file server beside it.
const FILE_SERVER: &str = "file-server-executed";

/// Every stage, in the order in which a container without a network reaches them.
const STAGES: &[&str] = &[
    "shim-asked",
    "server-up",
    "create-asked",
    "plan-ready",
    "footprint-made",
    FILE_SERVER,
    "vmm-executed",
    "kernel-entered",
    "kernel-done",
    "agent-started",
    "agent-ready",
    "sandbox-created",
    "guest-network-ready",
    "room-made",
    "storage-shared",
    "container-created",
    "start-asked",
    "process-executed",
    "first-output",
];

/// Those of the hypervisor under test.
fn stages() -> Result<Vec<&'static str>> {
    let has_server = ["qemu", "clh"].contains(&hypervisor_under_test()?.as_str());
    Ok(STAGES.iter().copied().filter(|stage| has_server || *stage != FILE_SERVER).collect())
}

fn timeline(arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(Installation::under_test().bin().join("kata-runtime"));
    command.arg("timeline").args(arguments);
    Client::spawn(command, Input::Nothing)?.wait()
}

/// When a stage was reached, in ns of the host's monotonic clock, by what `--json` says.
fn at(json: &str, stage: &str) -> Result<u64> {
    let record: serde_json::Value = serde_json::from_str(json)?;
    let stamps = record["stamps"].as_array().context("no stamps")?;
    let stamp = stamps.iter().find(|stamp| stamp["stage"] == stage);
    let at = stamp.and_then(|stamp| stamp["at"].as_u64());
    at.with_context(|| format!("no {stage}: {json}"))
}

/// Checks that `stages` are told, one after the other, and returns by how much the guest's clock
/// may be wrong, in ns.
fn are_in_order(json: &str, stages: &[&str]) -> Result<u64> {
    let record: serde_json::Value = serde_json::from_str(json)?;
    // The guest's clock is known up to the time that one exchange was on its way.
    let slack = record["guest_uncertainty_ns"].as_u64().context("the clocks were not compared")?;
    for pair in stages.windows(2) {
        let (earlier, later) = (at(json, pair[0])?, at(json, pair[1])?);
        ensure!(earlier <= later + slack, "{} comes after {}: {json}", pair[0], pair[1]);
    }
    Ok(slack)
}

/// Here kata-proxy is the server.
#[test]
fn stages_of_a_start_by_hand_are_the_same() -> Result<()> {
    if !only_a_vm("the stages of a boot") {
        return Ok(());
    }
    CommandLine::scenario(Runtime::Kata, |host| {
        let bundle = host.bundle("c", "echo first; cat", |spec| spec)?;
        let (path, id) = (bundle.display().to_string(), host.id("c"));
        let mut client = host.attach(&["run", "--bundle", &path, &id], Input::Pipe)?;
        client.expect("first")?;
        // Nobody asks for a shim.
        are_in_order(&timeline(&[&id, "--json"])?.success()?, &stages()?[1..])?;
        let table = timeline(&[&id])?.success()?;
        ensure!(table.contains("first output"), "{table}");
        client.close_stdin();
        client.wait()?.success().map(drop)
    })
}

#[test]
fn every_stage_of_a_start_is_told_in_its_order() -> Result<()> {
    if !only_a_vm("the stages of a boot") {
        return Ok(());
    }
    scenario(|containerd| {
        let run = containerd.shell("echo first; cat").stdin(Input::Pipe);
        let id = run.id().to_owned();
        let mut client = run.attach()?;
        client.expect("first")?;

        let json = timeline(&[&id, "--json"])?.success()?;
        let slack = are_in_order(&json, &stages()?)?;
        // It is half of what remains of that exchange without the guest's own work.
        let exchange = at(&json, "sandbox-created")? - at(&json, "agent-reached")?;
        ensure!(slack < exchange / 2, "±{slack} ns, of an exchange of {exchange} ns");

        let table = timeline(&[&id])?.success()?;
        ensure!(
            table.contains("agent reached") && table.contains("guest kernel: boots"),
            "{table}"
        );
        let picture = timeline(&[&id, "--svg"])?.success()?;
        ensure!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"), "{picture}");

        client.close_stdin();
        client.wait()?;
        let error = timeline(&[&id])?.failure()?;
        ensure!(error.contains("the sandbox does not run"), "{error}");
        Ok(())
    })
}

#[test]
fn network_of_the_engine_has_its_stage() -> Result<()> {
    if !only_a_vm("the stages of a boot") {
        return Ok(());
    }
    scenario(|containerd| {
        let wire = Wire::new(containerd)?;
        let run = containerd.run(["sleep", "1000"]).option("--with-ns", &wire.with_ns());
        let container = run.start()?;
        let json = timeline(&[container.id(), "--json"])?.success()?;
        let times = [at(&json, "footprint-made")?, at(&json, "network-ready")?];
        ensure!(times.is_sorted() && times[1] <= at(&json, "vmm-executed")?, "{json}");
        let table = timeline(&[container.id()])?.success()?;
        ensure!(table.contains("network ready"), "{table}");
        container.remove()
    })
}

#[test]
fn sandbox_that_cannot_be_is_refused() -> Result<()> {
    for id in ["../x", "", "a/b"] {
        let error = timeline(&[id])?.failure()?;
        ensure!(error.contains("sandbox id"), "{id:?}: {error}");
    }
    Ok(())
}
