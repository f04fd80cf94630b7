//! Memory that is plugged in while the guest runs, and used once the agent is told.
//!
//! Processors are not: under emulation Linux 6.12 refuses them, and older ones take half a minute for each and may not come back. That
//! the agent switches them on is tested with one that was off (`machine.rs`).

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kata_agent_api::agent::OnlineCPUMemRequest;
use kata_guest_tests::*;
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

/// The agent is told, and then `mib` more are there, but for what the kernel keeps to describe them. Nothing tells when the kernel is
/// done with the last piece, so that one has to look again.
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
