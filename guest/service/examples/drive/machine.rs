//! What must hold for the guest as a machine, and for its other ports.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::guest::*;
use anyhow::{Context as _, Result, ensure};
use kata_agent_api::agent::*;
use kata_agent_api::agent_ttrpc::AgentServiceClient;
use kata_channel::{AGENT_PORT, ChannelStream, DEBUG_CONSOLE_PORT, LOG_PORT, SerialDialer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

pub(crate) async fn guest_calls(guest: &Guest) -> Result<()> {
    let agent = &guest.agent;
    let mut ask = GuestDetailsRequest::new();
    (ask.mem_block_size, ask.mem_hotplug_probe) = (true, true);
    let details = agent.get_guest_details(context(), &ask).await?;
    // An agent that is not PID 1 may run on somebody's own machine, of which nothing may be changed.
    ensure!(details.agent_details.init_daemon, "not PID 1");
    let mut date = SetGuestDateTimeRequest::new();
    date.Sec = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
    agent.set_guest_date_time(context(), &date).await?;
    let mut seed = ReseedRandomDevRequest::new();
    seed.data = vec![7; 64];
    agent.reseed_random_dev(context(), &seed).await?;
    let metrics = agent.get_metrics(context(), &GetMetricsRequest::new()).await?.metrics;
    let memory = metrics.lines().find(|line| line.contains("rss")).unwrap_or_default();
    println!("    {memory}");
    let online = OnlineCPUMemRequest::new();
    agent.online_cpu_mem(context(), &online).await?;
    let interfaces = agent.list_interfaces(context(), &ListInterfacesRequest::new()).await?;
    println!(
        "    interfaces: {}",
        interfaces
            .Interfaces
            .iter()
            .map(|i| format!("{} {} ", i.name, i.hwAddr))
            .collect::<String>()
    );
    if let Some(nic) = interfaces.Interfaces.iter().find(|interface| interface.name != "lo") {
        network(agent, &nic.hwAddr).await?;
    }
    let path = "/run/kata-containers/shared/containers/c/etc/hosts";
    for (path, good) in [(path, true), ("/etc/passwd", false), (&format!("{path}/../../x"), false)]
    {
        let mut copy = CopyFileRequest::new();
        (copy.path, copy.file_size, copy.data) = (path.into(), 3, b"abc".to_vec());
        (copy.file_mode, copy.dir_mode) = (0o100_644, 0o755);
        ensure!(agent.copy_file(context(), &copy).await.is_ok() == good, "copy to {path}");
    }
    let refused = agent.set_policy(context(), &SetPolicyRequest::new()).await;
    println!("    SetPolicy: {}", refused.err().context("a policy was taken")?);
    Ok(())
}

pub(crate) async fn network(agent: &AgentServiceClient, address: &str) -> Result<()> {
    use kata_agent_api::types::{ARPNeighbor, IPAddress, Interface, Route};

    let ip = |address: &str, mask: &str| IPAddress {
        address: address.into(),
        mask: mask.into(),
        ..Default::default()
    };
    let mut interface = Interface::new();
    (interface.name, interface.hwAddr, interface.mtu) = ("net7".into(), address.into(), 1400);
    interface.IPAddresses = vec![ip("10.1.2.3", "24"), ip("fd00::7", "64")];
    let mut request = UpdateInterfaceRequest::new();
    request.interface = Some(interface).into();
    let updated = agent.update_interface(context(), &request).await?;
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
    let routes = agent.update_routes(context(), &request).await?.Routes;
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
    agent.add_arp_neighbors(context(), &request).await?;
    Ok(())
}

/// A guest that has its debug console switched on and a shell offers it.
pub(crate) async fn debug_console(mut shell: ChannelStream) -> Result<()> {
    shell.write_all(b"echo sum $((40 + 2)); tty\n").await?;
    shell.flush().await?;
    let mut text = String::new();
    let mut buffer = [0; 1024];
    while !text.contains("/dev/pts/") {
        let length = shell.read(&mut buffer).await?;
        ensure!(length > 0, "the shell ended: {text:?}");
        text.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    ensure!(text.contains("sum 42"), "{text:?}");
    println!("ok   debug console");
    Ok(())
}

/// Dials the agent through the serial port's socket, and prints its log meanwhile.
pub(crate) async fn dial(socket: &str) -> Result<ChannelStream> {
    let begin = Instant::now();
    let carrier = loop {
        match UnixStream::connect(socket).await {
            Ok(carrier) => break carrier,
            // The machine that makes the socket is only being started.
            Err(_) if begin.elapsed() < PATIENCE => tokio::task::yield_now().await,
            Err(error) => return Err(error.into()),
        }
    };
    let dialer = SerialDialer::new(carrier);
    let stream = dialer.dial(AGENT_PORT).await?;
    if let Ok(shell) = dialer.dial(DEBUG_CONSOLE_PORT).await {
        debug_console(shell).await?;
    }
    tokio::spawn(async move {
        let Ok(mut log) = dialer.dial(LOG_PORT).await else { return };
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = log.read(&mut buffer).await {
            eprint!("{}", String::from_utf8_lossy(&buffer[..length]));
        }
    });
    Ok(stream)
}
