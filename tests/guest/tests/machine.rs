//! The guest as a machine: what the agent does besides containers.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use kata_agent_api::agent::*;
use kata_agent_api::cpu_count_request;
use kata_agent_api::health::CheckRequest;
use kata_agent_api::health::health_check_response::ServingStatus;
use kata_agent_api::health_ttrpc::HealthClient;
use kata_channel::{AGENT_PORT, DEBUG_CONSOLE_PORT, LOG_PORT};
use kata_guest_tests::*;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use ttrpc::asynchronous::transport::Socket;

#[test]
fn machine_is_set_up_as_the_host_says() -> Result<()> {
    booted(First::Agent, async |guest| {
        let details = guest.agent.get_guest_details(context(), &details_request()).await?;
        ensure!(details.agent_details.init_daemon, "not the first process");
        ensure!(details.mem_block_size_bytes > 0, "no size of memory blocks");
        clock_and_entropy(guest).await.context("clock and entropy")?;
        network(guest).await.context("network")?;
        files(guest).await.context("files")?;
        processors(guest).await.context("processors")?;
        reserve(guest).await.context("reserve of memory")?;
        let metrics = guest.agent.get_metrics(context(), &GetMetricsRequest::new()).await?.metrics;
        ensure!(metrics.contains("rss"), "{metrics}");
        Ok(())
    })
}

/// For huge pages the kernel would keep 22 MiB of this machine free.
async fn reserve(guest: &Guest) -> Result<()> {
    let output = guest.run("reserve", sh("cat /proc/sys/vm/min_free_kbytes")).await?;
    let kib: u32 = output.text().trim().parse().with_context(|| format!("{output:?}"))?;
    ensure!((1024..4096).contains(&kib), "{kib} KiB");
    Ok(())
}

/// What the protocol has and this agent does not.
const NOT_OFFERED: [&str; 13] = [
    "AddSwap",
    "AddSwapPath",
    "GetDiagnosticData",
    "GetIPTables",
    "GetVolumeStats",
    "MemAgentCompactSet",
    "MemAgentMemcgSet",
    "MemHotplugByProbe",
    "RemoveStaleVirtiofsShareMounts",
    "ResizeVolume",
    "SetIPTables",
    "SetPolicy",
    "UpdateEphemeralMounts",
];

#[test]
fn agent_tells_its_version_and_what_it_does_not_implement() -> Result<()> {
    booted(First::Agent, async |guest| {
        let stream = guest.machine.dial(AGENT_PORT).await?;
        let client = ttrpc::r#async::Client::new(Socket::new(stream));
        for method in NOT_OFFERED {
            let request = ttrpc::Request {
                service: "grpc.AgentService".into(),
                method: method.into(),
                ..Default::default()
            };
            let refused = match client.request(request).await {
                Err(ttrpc::Error::RpcStatus(status)) => status,
                other => bail!("{method}: {other:?}"),
            };
            let begins = format!("this agent does not implement {method}; ");
            ensure!(refused.code() == ttrpc::Code::UNIMPLEMENTED, "{method}: {refused:?}");
            let remedy = refused.message.strip_prefix(&begins);
            ensure!(remedy.is_some_and(|remedy| remedy.len() > 10), "{method}: {refused:?}");
        }
        let health = HealthClient::new(client);
        let version = health.version(context(), &CheckRequest::new()).await?;
        ensure!(version.agent_version == env!("CARGO_PKG_VERSION"), "{version:?}");
        ensure!(version.grpc_version == "0.0.1", "{version:?}");
        let status = health.check(context(), &CheckRequest::new()).await?.status;
        ensure!(status == ServingStatus::SERVING.into(), "{status:?}");
        Ok(())
    })
}

#[test]
fn log_and_console_have_ports_of_their_own() -> Result<()> {
    booted(First::Agent, async |guest| {
        debug_console(guest).await.context("debug console")?;
        log(guest).await.context("log")
    })
}

/// As a service of a bigger image, where everything but the containers is somebody else's.
#[test]
fn agent_need_not_be_the_first_process() -> Result<()> {
    booted(First::BusyboxInit, async |guest| {
        let details = guest.agent.get_guest_details(context(), &details_request()).await?;
        ensure!(!details.agent_details.init_daemon, "it takes itself for the first process");
        let output = guest.run("c1", sh("echo out; cat /proc/1/comm; hostname; exit 42")).await?;
        ensure!(
            (output.status, output.text().as_str()) == (42, "out\nsh\nsandbox\n"),
            "{output:?}"
        );
        guest.create("c2", sh("sleep 1000 & sleep 1000")).await?;
        guest.start("c2").await?;
        let output = guest.exec_output("c2", "x1", &["cat", "/sys/fs/cgroup/pids.max"]).await?;
        ensure!(output.text() == "100\n", "{output:?}");
        guest.signal("c2", "c2", 9).await?;
        ensure!(guest.wait("c2", "c2").await? == 137);
        guest.remove("c2").await
    })
}

fn details_request() -> GuestDetailsRequest {
    GuestDetailsRequest { mem_block_size: true, mem_hotplug_probe: true, ..Default::default() }
}

async fn clock_and_entropy(guest: &Guest) -> Result<()> {
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
    let tomorrow = SetGuestDateTimeRequest { Sec: now + 86_400, ..Default::default() };
    guest.agent.set_guest_date_time(context(), &tomorrow).await?;
    let told: i64 = guest.run("date", process(&["date", "+%s"])).await?.text().trim().parse()?;
    ensure!((86_400..87_000).contains(&(told - now)), "it is {told}, and {now} here");
    let seed = ReseedRandomDevRequest { data: vec![7; 64], ..Default::default() };
    guest.agent.reseed_random_dev(context(), &seed).await?;
    let pool = ["cat", "/proc/sys/kernel/random/entropy_avail"];
    let bits: u32 = guest.run("pool", process(&pool)).await?.text().trim().parse()?;
    ensure!(bits >= 256, "the pool has {bits} bits only");
    for data in [Vec::new(), vec![7; 1 << 20]] {
        let length = data.len();
        let seed = ReseedRandomDevRequest { data, ..Default::default() };
        let refused = guest.agent.reseed_random_dev(context(), &seed).await;
        let error = refused.err().with_context(|| format!("took a seed of {length} bytes"))?;
        ensure!(error.to_string().contains(&length.to_string()), "{error}");
    }
    Ok(())
}

/// A file in pieces, and paths that lead elsewhere.
async fn files(guest: &Guest) -> Result<()> {
    let path = "/run/kata-containers/shared/containers/c/etc/hosts";
    let piece = |offset: i64, data: &[u8]| CopyFileRequest {
        path: path.into(),
        file_size: 6,
        file_mode: 0o100_644,
        dir_mode: 0o755,
        uid: 5,
        gid: 6,
        offset,
        data: data.to_vec(),
        ..Default::default()
    };
    guest.agent.copy_file(context(), &piece(0, b"abc")).await?;
    guest.agent.copy_file(context(), &piece(3, b"def")).await?;
    guest
        .create_with("copied", |spec| {
            let mut mounts = spec.mounts().clone().unwrap_or_default();
            let mount =
                json!({"destination": "/mnt", "type": "bind", "source": path, "options": ["bind"]});
            mounts.extend(serde_json::from_value(mount));
            spec.set_mounts(Some(mounts));
            spec.set_process(serde_json::from_value(sh("cat /mnt; stat -c ' %a %u %g' /mnt")).ok());
        })
        .await?;
    guest.start("copied").await?;
    let output = guest.output("copied", "copied").await?;
    ensure!(output.text() == "abcdef 644 5 6\n", "{output:?}");
    guest.remove("copied").await?;
    for outside in ["/etc/passwd", &format!("{path}/../../x")] {
        let request = CopyFileRequest { path: outside.into(), ..piece(0, b"abc") };
        ensure!(guest.agent.copy_file(context(), &request).await.is_err(), "copied to {outside}");
    }
    Ok(())
}

/// One that is off, as a new one is at first.
async fn processors(guest: &Guest) -> Result<()> {
    let mut shell = guest.machine.dial(DEBUG_CONSOLE_PORT).await?;
    let off = "echo 0 >/sys/devices/system/cpu/cpu1/online; echo left $(nproc) of them\n";
    shell.write_all(off.as_bytes()).await?;
    shell.flush().await?;
    read_until(&mut shell, "left 1 of them").await?;
    let one = OnlineCPUMemRequest { nb_cpus: 1, cpu_only: true, ..Default::default() };
    guest.agent.online_cpu_mem(context(), &one).await?;
    let online = guest.run("cpus", process(&["nproc"])).await?.text();
    ensure!(online == "2\n", "{online}");
    let refused = guest.agent.online_cpu_mem(context(), &one).await;
    let error = refused.err().context("a processor that is not there was switched on")?.to_string();
    ensure!(error.contains("1 new CPUs were announced"), "{error}");
    guest.agent.online_cpu_mem(context(), &OnlineCPUMemRequest::new()).await?;
    for (count, new) in [(1, 0), (1, 0), (2, 1)] {
        guest.agent.online_cpu_mem(context(), &cpu_count_request(count, new)).await?;
        let online = guest.run(&format!("cpus-{count}-{new}"), process(&["nproc"])).await?.text();
        ensure!(online == format!("{count}\n"), "{online}");
    }
    let refused = guest.agent.online_cpu_mem(context(), &cpu_count_request(3, 1)).await;
    let error = refused.err().context("a processor that is not there was switched on")?.to_string();
    ensure!(error.contains("3 CPUs are to be on, but there are 2"), "{error}");
    Ok(())
}

async fn debug_console(guest: &Guest) -> Result<()> {
    let mut shell = guest.machine.dial(DEBUG_CONSOLE_PORT).await?;
    shell.write_all(b"echo sum $((40 + 2)); tty\n").await?;
    shell.flush().await?;
    let text = read_until(&mut shell, "/dev/pts/").await?;
    ensure!(text.contains("sum 42"), "{text}");
    // A container without a name means the debug consoles.
    let size = TtyWinResizeRequest { row: 33, column: 99, ..Default::default() };
    guest.agent.tty_win_resize(context(), &size).await?;
    let wait = b"while [ \"$(stty size)\" != '33 99' ]; do :; done; echo now $(stty size)\n";
    shell.write_all(wait).await?;
    shell.flush().await?;
    read_until(&mut shell, "now 33 99").await?;
    // Of these a user may have 128, so that a container is not to leave one.
    for id in ["watched", "unwatched"] {
        guest.run(id, sh("true")).await?;
    }
    shell.write_all(b"echo of inotify: $(ls -l /proc/1/fd | grep -c inotify) instances\n").await?;
    shell.flush().await?;
    read_until(&mut shell, "of inotify: 0 instances").await?;
    Ok(())
}

/// Lines of JSON, of what was before too.
async fn log(guest: &Guest) -> Result<()> {
    let mut log = guest.machine.dial(LOG_PORT).await?;
    guest.run("logged", sh("true")).await?;
    let text = read_until(&mut log, "\"RemoveContainer\"").await?;
    let lines = text.lines().filter(|line| line.ends_with('}'));
    let parsed: Vec<serde_json::Value> =
        lines.map(serde_json::from_str).collect::<Result<_, _>>()?;
    let created = parsed.iter().any(|line| {
        line.to_string().contains("CreateContainer") && line.to_string().contains("logged")
    });
    ensure!(created, "{text}");
    // Whoever has nothing more to say wants the past only, and its end.
    let mut past = guest.machine.dial(LOG_PORT).await?;
    past.shutdown().await?;
    let mut text = String::new();
    past.read_to_string(&mut text).await?;
    ensure!(text.contains("\"RemoveContainer\"") && text.ends_with("}\n"), "{text}");
    Ok(())
}

async fn network(guest: &Guest) -> Result<()> {
    use kata_agent_api::types::{ARPNeighbor, IPAddress, Interface, Route};

    let ip = |address: &str, mask: &str| IPAddress {
        address: address.into(),
        mask: mask.into(),
        ..Default::default()
    };
    let mut interface = Interface::new();
    (interface.name, interface.hwAddr, interface.mtu) =
        ("net7".into(), Machine::NETWORK_CARD.into(), 1400);
    interface.IPAddresses = vec![ip("10.1.2.3", "24"), ip("fd00::7", "64")];
    let mut request = UpdateInterfaceRequest::new();
    request.interface = Some(interface).into();
    let updated = guest.agent.update_interface(context(), &request).await?;
    ensure!(updated.name == "net7" && updated.mtu == 1400, "{updated:?}");
    ensure!(updated.IPAddresses.iter().any(|ip| ip.address == "10.1.2.3"), "{updated:?}");

    let mut routes = Routes::new();
    routes.Routes = vec![
        Route { gateway: "10.1.2.1".into(), device: "net7".into(), ..Default::default() },
        Route {
            dest: "10.9.0.0/16".into(),
            device: "net7".into(),
            scope: 253,
            ..Default::default()
        },
    ];
    let mut request = UpdateRoutesRequest::new();
    request.routes = Some(routes).into();
    let routes = guest.agent.update_routes(context(), &request).await?.Routes;
    ensure!(
        routes.iter().any(|route| route.dest.is_empty() && route.gateway == "10.1.2.1"),
        "{routes:?}"
    );
    ensure!(routes.iter().any(|route| route.dest == "10.9.0.0/16"), "{routes:?}");

    let mut neighbour = ARPNeighbor::new();
    (neighbour.device, neighbour.lladdr) = ("net7".into(), "02:00:00:00:00:01".into());
    neighbour.toIPAddress = Some(ip("10.1.2.1", "")).into();
    let mut neighbours = ARPNeighbors::new();
    neighbours.ARPNeighbors = vec![neighbour];
    let mut request = AddARPNeighborsRequest::new();
    request.neighbors = Some(neighbours).into();
    guest.agent.add_arp_neighbors(context(), &request).await?;
    // Permanent (0x4) and complete (0x2); see proc_pid_net(5) and linux/if_arp.h.
    let mut shell = guest.machine.dial(DEBUG_CONSOLE_PORT).await?;
    let line = "^10.1.2.1 .* 0x6 .*02:00:00:00:00:01 .*net7$";
    let count = format!("echo there is $(grep -c '{line}' /proc/net/arp) of them\n");
    shell.write_all(count.as_bytes()).await?;
    shell.flush().await?;
    read_until(&mut shell, "there is 1 of them").await?;

    let interfaces = guest.agent.list_interfaces(context(), &ListInterfacesRequest::new()).await?;
    let listed = interfaces.Interfaces.iter().find(|listed| listed.name == "net7");
    let listed = listed.with_context(|| format!("no net7: {interfaces:?}"))?;
    ensure!(listed.mtu == 1400 && listed.hwAddr == Machine::NETWORK_CARD, "{listed:?}");
    // The kernel may have added one meanwhile.
    let has_all = updated.IPAddresses.iter().all(|ip| listed.IPAddresses.contains(ip));
    ensure!(has_all, "{listed:?}");
    let listed = guest.agent.list_routes(context(), &ListRoutesRequest::new()).await?.Routes;
    ensure!(listed == routes, "{listed:?} is not {routes:?}");
    Ok(())
}
