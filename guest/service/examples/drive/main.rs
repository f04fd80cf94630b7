//! Drives an agent that runs somewhere, through its whole protocol, and says what held and how long
//! it took: `drive <socket> <rootfs in the guest> [no-limits] [check ...]`.
//!
//! The socket is the host's end of the guest's serial port, or with `unix://` before it the one that
//! an agent serves on which was run by hand. **The agent must be in a virtual machine**, for its clock,
//! network and routes are changed. The root file system must have busybox
//! as `/bin/busybox` and its applets' links.

mod containers;
mod guest;
mod machine;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result};
use containers::*;
use guest::*;
use kata_agent_api::agent::*;
use kata_agent_api::agent_ttrpc::AgentServiceClient;
use kata_agent_api::health::CheckRequest;
use kata_agent_api::health_ttrpc::HealthClient;
use kata_channel::ChannelStream;
use machine::*;
use tokio::net::UnixStream;
use ttrpc::asynchronous::transport::Socket;

macro_rules! check {
    ($failed:ident, $wanted:ident, $guest:ident, $($name:ident),+) => {$(
        if $wanted.is_empty() || $wanted.iter().any(|name| name == stringify!($name)) {
        let begin = Instant::now();
        let result = tokio::time::timeout(PATIENCE, $name(&$guest)).await;
        let elapsed = begin.elapsed().as_secs_f64() * 1000.0;
        match result {
            Ok(Ok(())) => println!("ok   {:20} {elapsed:8.1} ms", stringify!($name)),
            Ok(Err(error)) => {
                $failed = true;
                println!("FAIL {:20} {elapsed:8.1} ms: {error:#}", stringify!($name));
            }
            Err(_) => {
                $failed = true;
                println!("FAIL {:20} took too long", stringify!($name));
            }
        }
        }
    )+};
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    let socket = arguments.next().context("usage: drive <socket> <rootfs>")?;
    let rootfs = arguments.next().context("usage: drive <socket> <rootfs>")?;
    let begin = Instant::now();
    let stream: ChannelStream = match socket.strip_prefix("unix://") {
        Some(path) => Box::new(UnixStream::connect(path).await?),
        None => dial(&socket).await?,
    };
    println!("dialled after {:.0} ms", begin.elapsed().as_secs_f64() * 1000.0);
    let client = ttrpc::r#async::Client::new(Socket::new(stream));
    let version =
        HealthClient::new(client.clone()).version(context(), &CheckRequest::new()).await?;
    println!(
        "agent {} after {:.0} ms",
        version.agent_version,
        begin.elapsed().as_secs_f64() * 1000.0
    );
    let mut wanted: Vec<String> = arguments.collect();
    let limits = !wanted.iter().any(|word| word == "no-limits");
    wanted.retain(|word| word != "no-limits");
    let guest = Guest { agent: AgentServiceClient::new(client), rootfs, limits };
    let begin = Instant::now();
    let mut request = CreateSandboxRequest::new();
    (request.sandbox_id, request.hostname) = ("s1".into(), "sandbox".into());
    request.dns = vec!["nameserver 10.0.0.1".into()];
    guest.agent.create_sandbox(context(), &request).await?;
    println!("ok   create_sandbox       {:8.1} ms", begin.elapsed().as_secs_f64() * 1000.0);

    let mut failed = false;
    check!(
        failed,
        wanted,
        guest,
        lifecycle,
        environment,
        command_errors,
        exec,
        terminal,
        pause_and_limits,
        out_of_memory,
        streams,
        bulk,
        seccomp,
        guest_calls,
        many
    );
    let begin = Instant::now();
    guest.agent.destroy_sandbox(context(), &DestroySandboxRequest::new()).await?;
    println!("ok   destroy_sandbox      {:8.1} ms", begin.elapsed().as_secs_f64() * 1000.0);
    Ok(ExitCode::from(u8::from(failed)))
}
