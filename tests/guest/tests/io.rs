//! Limits on what a container reads and writes, with a real disk.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kata_agent_api::agent::{RemoveContainerRequest, UpdateContainerRequest};
use kata_agent_api::convert::resources_to_wire;
use kata_channel::LOG_PORT;
use kata_guest_tests::*;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

const SLEEP: &str = "exec sleep 1000";

/// They are in the container's cgroup, they hold, and they can be changed.
#[test]
fn limits_of_a_disk_are_set_and_hold() -> Result<()> {
    Setup::new(First::Agent).disk(64).run(async |guest| {
        let (major, minor) = disk(guest).await?;
        let rate = |rate: u64| json!([{"major": major, "minor": minor, "rate": rate}]);
        let limits = json!({"weight": 500,
            "throttleReadBpsDevice": rate(MIB), "throttleWriteBpsDevice": rate(2 * MIB),
            "throttleReadIOPSDevice": rate(3000), "throttleWriteIOPSDevice": rate(4000)});
        create(guest, "c1", (major, minor), &limits, SLEEP).await?;
        guest.start("c1").await?;
        let disk = format!("{major}:{minor}");
        let max = cat(guest, "io.max").await?;
        ensure!(
            max == format!("{disk} rbps={MIB} wbps={} riops=3000 wiops=4000", 2 * MIB),
            "{max}"
        );
        let weight = cat(guest, "io.weight").await?;
        ensure!(weight == "default 4950", "{weight}");

        // 3 MiB at 1 MiB a second; what was saved up meanwhile is far less than a second's worth.
        let read = ["dd", "if=/dev/disk", "of=/dev/null", "bs=64k", "count=48"];
        let before = Instant::now();
        let output = guest.exec_output("c1", "read", &read).await?;
        ensure!(output.status == 0, "{output:?}");
        ensure!(before.elapsed() > Duration::from_secs(2), "read in {:?}", before.elapsed());

        let none = json!({"throttleReadBpsDevice": rate(0), "throttleWriteBpsDevice": rate(MIB)});
        let resources = serde_json::from_value(json!({"blockIO": none}))?;
        let mut update = UpdateContainerRequest { container_id: "c1".into(), ..Default::default() };
        update.resources = Some(resources_to_wire(&resources)?).into();
        guest.agent.update_container(context(), &update).await?;
        let max = cat(guest, "io.max").await?;
        ensure!(max == format!("{disk} rbps=max wbps={MIB} riops=3000 wiops=4000"), "{max}");
        guest.signal("c1", "c1", 9).await?;
        guest.remove("c1").await?;

        let other = json!({"throttleReadBpsDevice": [{"major": 8, "minor": 77, "rate": MIB}]});
        let refused = create(guest, "c2", (major, minor), &other, SLEEP).await;
        let error = sentence(&refused.err().context("a disk that is not there was limited")?);
        ensure!(error.contains("io.max to \"8:77 rbps=1048576\""), "{error}");
        Ok(())
    })
}

/// One whose process cannot die, for it waits for a disk.
#[test]
fn container_that_dies_late_is_taken_away_then() -> Result<()> {
    Setup::new(First::Agent).disk(64).run(async |guest| {
        let mut log = guest.machine.dial(LOG_PORT).await?;
        let (major, minor) = disk(guest).await?;
        let slow =
            json!({"throttleReadBpsDevice": [{"major": major, "minor": minor, "rate": 16 << 10}]});
        let read = "exec dd if=/dev/disk of=/dev/null bs=192k count=1 iflag=direct";
        create(guest, "c1", (major, minor), &slow, read).await?;
        guest.start("c1").await?;
        let waits = "until grep -q '^State:.D' /proc/1/status; do :; done";
        let output = guest.exec_output("c1", "look", &["sh", "-c", waits]).await?;
        ensure!(output.status == 0, "{output:?}");

        let id = || "c1".to_owned();
        let in_a_second =
            RemoveContainerRequest { container_id: id(), timeout: 1, ..Default::default() };
        for _ in 0..2 {
            let refused = guest.agent.remove_container(context(), &in_a_second).await;
            let error = refused.err().context("a process has died that waits for a disk")?;
            ensure!(error.to_string().contains("are still alive after 1s"), "{error}");
        }
        let again = guest.create("c1", sh(SLEEP)).await.err().context("its id is free")?;
        ensure!(sentence(&again).contains("already"), "{again}");

        read_until(&mut log, "its last process has died late").await?;
        guest.run("c1", sh("true")).await?;
        Ok(())
    })
}

/// The machine's disk.
async fn disk(guest: &Guest) -> Result<(u64, u64)> {
    let number = guest.run("look", process(&["cat", "/sys/block/vda/dev"])).await?.text();
    let (major, minor) = number.trim().split_once(':').with_context(|| number.clone())?;
    Ok((major.parse()?, minor.parse()?))
}

/// A container that has the disk as `/dev/disk`, and runs this.
async fn create(
    guest: &Guest,
    id: &str,
    disk: (u64, u64),
    limits: &Value,
    script: &str,
) -> Result<()> {
    let (major, minor) = disk;
    let node = json!([{"path": "/dev/disk", "type": "b", "major": major, "minor": minor}]);
    let devices =
        json!([{"allow": true, "type": "b", "major": major, "minor": minor, "access": "r"}]);
    let resources = serde_json::from_value(json!({"devices": devices, "blockIO": limits}))?;
    let node = serde_json::from_value(node)?;
    guest
        .create_with(id, |spec| {
            spec.set_process(serde_json::from_value(sh(script)).ok());
            let mut linux = spec.linux().clone().unwrap_or_default();
            linux.set_devices(Some(node)).set_resources(Some(resources));
            spec.set_linux(Some(linux));
        })
        .await
}

/// A file of the container's cgroup, as the container sees it.
async fn cat(guest: &Guest, file: &str) -> Result<String> {
    let path = format!("/sys/fs/cgroup/{file}");
    Ok(guest.exec_output("c1", "look", &["cat", &path]).await?.text().trim().to_owned())
}
