//! Memory and processors that are plugged in while the guest runs, and used once the agent is told.
//!
//! Processors need KVM: under emulation Linux 6.12 refuses them, and older ones take half a minute
//! for each and may not come back. That the agent switches them on is tested there with one that
//! was off (`machine.rs`).

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kata_agent_api::agent::OnlineCPUMemRequest;
use kata_guest_tests::*;
use kata_hypervisor::kvm_obstacle;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
/// Long enough for a kernel on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// The small kernel switches it on by itself.
#[test]
fn memory_that_comes_later_is_used() -> Result<()> {
    Setup::new(First::Agent).hot_pluggable().run(async |guest| {
        start(guest).await?;
        memory_module(guest).await.context("memory module")?;
        fine_memory(guest).await.context("virtio-mem")?;
        stop(guest).await
    })
}

/// A distribution's kernel leaves that to the agent.
#[test]
fn memory_that_comes_later_is_switched_on() -> Result<()> {
    Setup::new(First::Agent).distributions_kernel().hot_pluggable().run(async |guest| {
        start(guest).await?;
        memory_module(guest).await?;
        stop(guest).await
    })
}

/// Two more, one after the other, which a container can use at once.
#[test]
fn processors_that_come_later_are_switched_on() -> Result<()> {
    if let Some(obstacle) = kvm_obstacle() {
        println!("skipped: processors that come later need KVM ({obstacle})");
        return Ok(());
    }
    Setup::new(First::Agent).hot_pluggable().under_kvm().run(async |guest| {
        start(guest).await?;
        ensure!(number(guest, "nproc").await? == 2, "the guest does not begin with two");
        for more in 1..=2 {
            plug_processor(guest)?;
            let one = OnlineCPUMemRequest { nb_cpus: 1, cpu_only: true, ..Default::default() };
            guest.agent.online_cpu_mem(context(), &one).await.context("it is not switched on")?;
            let now = number(guest, "nproc").await?;
            ensure!(now == 2 + more, "{now} processors after {more} more");
        }
        stop(guest).await
    })
}

/// Fills the first of the places for processors that is free.
fn plug_processor(guest: &Guest) -> Result<()> {
    let places = guest.machine.control("query-hotpluggable-cpus", &json!({}))?;
    let places = places.as_array().context("places are not a list")?;
    let free = places.iter().rfind(|place| place["qom-path"].is_null());
    let free = free.context("there is no free place for a processor")?;
    let mut device = free["props"].clone();
    device["driver"] = free["type"].clone();
    guest.machine.control("device_add", &device)?;
    Ok(())
}

async fn start(guest: &Guest) -> Result<()> {
    guest.create("c1", sh("sleep 1000")).await?;
    guest.start("c1").await
}

async fn stop(guest: &Guest) -> Result<()> {
    guest.signal("c1", "c1", 9).await?;
    guest.remove("c1").await
}

async fn memory_module(guest: &Guest) -> Result<()> {
    let before = memory_mib(guest).await?;
    let memory = json!({"qom-type": "memory-backend-ram", "id": "module", "size": 256 * MIB});
    guest.machine.control("object-add", &memory)?;
    let module = json!({"driver": "pc-dimm", "id": "dimm", "memdev": "module"});
    guest.machine.control("device_add", &module)?;
    let told =
        guest.machine.event("ACPI_DEVICE_OST", |data| data["info"]["slot-type"] == "DIMM")?;
    ensure!(told["info"]["status"] == 0, "the guest's kernel refuses the module: {told}");
    has_grown(guest, before, 256).await
}

async fn fine_memory(guest: &Guest) -> Result<()> {
    let before = memory_mib(guest).await?;
    let wanted = 128 * MIB;
    let path = format!("/machine/peripheral/{}", Setup::FINE_MEMORY);
    let request = json!({"path": path, "property": "requested-size", "value": wanted});
    guest.machine.control("qom-set", &request)?;
    let is_all = |data: &Value| data["size"] == wanted;
    guest.machine.event("MEMORY_DEVICE_SIZE_CHANGE", is_all)?;
    has_grown(guest, before, 128).await
}

/// The agent is told, and then `mib` more are there, but for what the kernel keeps to describe
/// them. Nothing tells when the kernel is done with the last piece, so that one has to look again.
async fn has_grown(guest: &Guest, before: u64, mib: u64) -> Result<()> {
    guest.agent.online_cpu_mem(context(), &OnlineCPUMemRequest::new()).await?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = memory_mib(guest).await?;
        ensure!(now <= before + mib, "{before} MiB became {now}");
        if now >= before + mib * 9 / 10 {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{before} MiB became {now} within {PATIENCE:?}");
    }
}

async fn memory_mib(guest: &Guest) -> Result<u64> {
    number(guest, "awk '/^MemTotal/ { print int($2 / 1024) }' /proc/meminfo").await
}

/// The number that a command in the container prints.
async fn number(guest: &Guest, command: &str) -> Result<u64> {
    let output = guest.exec_output("c1", "look", &["sh", "-c", command]).await?;
    output.text().trim().parse().with_context(|| format!("{command}: {output:?}"))
}
