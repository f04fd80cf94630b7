//! The agent in the guest: PID 1 of a small image, or a service of a bigger one.
//!
//! As PID 1 it sets the machine up and ends it; as a service it leaves both to the system. Run by
//! hand with `KATA_AGENT_SERVER_ADDR=unix:///path`, it serves on that socket.

use std::convert::Infallible;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use kata_channel::{AGENT_PORT, SerialListener};
use kata_guest_service::log::Log;
use kata_guest_service::serve::Services;
use kata_guest_service::{Agent, Settings, VERSION};
use kata_guest_setup::boot::Clocks;
use kata_guest_setup::channel::{self, Accept, Channel};
use kata_guest_setup::cmdline::{self, Options, ServerAddress};
use kata_guest_setup::network::Network;
use kata_guest_setup::reaper::Reaper;
use kata_guest_setup::serial::SerialPort;
use kata_guest_setup::{boot, free_memory, modules, mounts, open_files, power, root};

/// Overrides `agent.server_addr`.
const SERVER_ADDRESS: &str = "KATA_AGENT_SERVER_ADDR";

fn main() -> ExitCode {
    let started = Clocks::now();
    let is_init = std::process::id() == 1;
    let mounted = if is_init { become_init() } else { Ok(()) };
    // The host takes this line as the sign that the kernel is up.
    println!("kata-agent {VERSION} started");
    let options = options();
    let result = mounted.and_then(|()| run(is_init, &options, started));
    let code = match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("kata-agent cannot go on: {error:#}");
            ExitCode::FAILURE
        }
    };
    if is_init {
        power::end(options.power);
    }
    code
}

/// What the first process does before anything else. In an initrd that only brings drivers for a
/// disk, the disk's own agent goes on.
fn become_init() -> anyhow::Result<()> {
    if mounts::root_is_initramfs() {
        root::switch_to_disk()?;
    }
    Ok(mounts::set_up()?)
}

fn options() -> Options {
    let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let mut options = Options::parse(&line);
    if let Ok(address) = std::env::var(SERVER_ADDRESS) {
        match cmdline::server_address(Some(&address)) {
            Ok(server) => options.server = server,
            Err(expected) => {
                options.warnings.push(format!("{SERVER_ADDRESS}={address} is ignored: {expected}"));
            }
        }
    }
    options
}

fn run(is_init: bool, options: &Options, started: Clocks) -> anyhow::Result<()> {
    let log = Log::start(options.log);
    for warning in &options.warnings {
        tracing::warn!("{warning}");
    }
    if let Err(error) = open_files::raise_limit() {
        tracing::warn!(%error, "containers can have few files open");
    }
    if is_init {
        modules::load_all(Path::new(modules::LIST))?;
        free_memory::lower_reserve();
    } else {
        // Orphans of containers come to the agent, as they do to PID 1.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .context("cannot become the reaper of containers")?;
    }
    // One thread, and none besides: the agent forks.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let settings = Settings {
        pipe_size: options.container_pipe_size,
        hotplug_timeout: options.hotplug_timeout,
        is_init,
        started,
        ready: boot::clock(),
    };
    runtime.block_on(serve(settings, options, log))
}

async fn serve(settings: Settings, options: &Options, log: Log) -> anyhow::Result<()> {
    let (reaper, collecting) = Reaper::start().context("cannot listen for SIGCHLD")?;
    tokio::spawn(collecting);
    let is_init = settings.is_init;
    let agent = Agent::new(settings, reaper).context("cannot hide from containers")?;
    let agent = Arc::new(agent);
    let shell_port = options.debug_console.then_some(options.debug_console_port).flatten();
    tracing::debug!("the machine is set up");
    let (services, _running) = Services::start(&agent, log, options.log_port, shell_port)
        .await
        .context("cannot start the service")?;
    let services = Arc::new(services);
    if options.debug_console && options.debug_console_port.is_none() {
        services.shell_on_console().context("cannot offer a shell on the console")?;
    }
    if is_init {
        // Nobody waits for it: the host asks for nothing that needs it before a container runs.
        tokio::spawn(async {
            let up = async { Network::connect()?.loopback_up().await };
            if let Err(error) = up.await {
                tracing::warn!(error = &error as &dyn std::error::Error, "no loopback");
            }
        });
    }
    tokio::select! {
        result = listen(&services, options) => result.map(|never| match never {}),
        () = agent.destroyed() => {
            flush().await;
            Ok(())
        }
    }
}

/// Serves whoever comes by the way that was asked for. Ends only on errors.
async fn listen(services: &Arc<Services>, options: &Options) -> anyhow::Result<Infallible> {
    let peers = options.vsock_peers;
    match &options.server {
        ServerAddress::Unix(path) => {
            services.unix(path).await.with_context(|| format!("cannot serve on {}", path.display()))
        }
        ServerAddress::Vsock(port) => {
            channel::find(Accept::Vsock).await?;
            services.vsock(*port, peers).await.context("cannot serve on vsock")
        }
        ServerAddress::Any => loop {
            match channel::find(Accept::Any).await? {
                Channel::Serial(node) => {
                    let port = SerialPort::new(node).context("cannot use the serial port")?;
                    services.serial(SerialListener::new(port)).await;
                }
                Channel::Vsock { .. } => {
                    return services
                        .vsock(AGENT_PORT, peers)
                        .await
                        .context("cannot serve on vsock");
                }
            }
        },
    }
}

/// Lets the answer to the last request pass through the server's tasks to the host. Each passes it
/// on as soon as it is its turn, and there is a handful of them.
async fn flush() {
    for _ in 0..64 {
        tokio::task::yield_now().await;
    }
}
