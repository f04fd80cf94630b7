//! kata-ksm-throttler: lets the kernel merge equal pages (KSM) eagerly while virtual machines
//! start, and less and less so afterwards.
//!
//! ```text
//!   runtimes, vc ── Kick ──▶ socket ──▶ throttle (pure) ──▶ kernel: /sys/kernel/mm/ksm
//!                                          ▲ timer
//! ```
//!
//! What the kernel was set to before is set again when nothing has started for a while, at SIGTERM
//! and SIGINT, and, when this program was killed, by the next one.

mod command_line;
mod kernel;
mod socket;
mod throttle;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use command_line::CommandLine;
use kernel::Ksm;
use socket::Socket;
use throttle::{Setting, Throttle};

/// Where the kernel's settings are.
const SYSFS: &str = "/sys/kernel/mm/ksm";

/// What was set before is written down beside the socket, under this name.
const RECORD: &str = "original";

const USAGE: &str = "\
usage: kata-ksm-throttler [-uri SOCKET] [-log LEVEL] [-sysfs DIR] [-version]

  -uri SOCKET   where to listen (/var/run/kata-ksm-throttler/ksm.sock)
  -log LEVEL    error, warn, info, debug or trace (warn)
  -sysfs DIR    where the kernel's settings are (/sys/kernel/mm/ksm)";

fn main() -> ExitCode {
    command_line::main(
        "kata-ksm-throttler",
        USAGE,
        &[("uri", kata_ksm_api::SOCKET), ("sysfs", SYSFS)],
        run,
    )
}

fn run(command_line: &CommandLine) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(serve(&command_line.path("uri"), &command_line.path("sysfs")))
}

/// A kick that waits for its answer.
type Kick = oneshot::Sender<Result<(), String>>;

async fn serve(uri: &Path, sysfs: &Path) -> Result<()> {
    // Before anything is changed: a signal that comes early must not leave it changed.
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let socket = Socket::bind(uri)?;
    let mut ksm = Ksm::open(sysfs, uri.with_file_name(RECORD))?;
    let (kicks, kicked) = mpsc::channel(1);
    tokio::select! {
        () = accept(&socket, kicks) => {}
        () = throttle(&mut ksm, kicked) => {}
        _ = terminate.recv() => tracing::info!("SIGTERM"),
        _ = interrupt.recv() => tracing::info!("SIGINT"),
    }
    ksm.restore()
}

/// Takes connections, for ever.
async fn accept(socket: &Socket, kicks: mpsc::Sender<Kick>) {
    loop {
        let connection = match socket.listener.accept().await {
            Ok((connection, _)) => connection,
            Err(error) => {
                tracing::warn!("cannot take a connection: {error}");
                // Descriptors are short: they come back when clients leave.
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                continue;
            }
        };
        let kicks = kicks.clone();
        let kicked = move || kick(kicks.clone());
        tokio::spawn(async move {
            if let Err(error) = kata_ksm_api::serve(connection, kicked).await {
                tracing::debug!("a client is gone: {error}");
            }
        });
    }
}

async fn kick(kicks: mpsc::Sender<Kick>) -> Result<(), String> {
    let (answer, answered) = oneshot::channel();
    let ended = "the throttler is ending";
    kicks.send(answer).await.map_err(|_| ended)?;
    answered.await.map_err(|_| ended)?
}

/// Changes the kernel's settings, for ever.
async fn throttle(ksm: &mut Ksm, mut kicks: mpsc::Receiver<Kick>) {
    let mut throttle = Throttle::new();
    loop {
        let deadline = throttle.wait().map(|wait| Instant::now() + wait);
        let expired = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            kick = kicks.recv() => {
                let Some(kick) = kick else { return };
                let applied = apply(ksm, throttle.kicked());
                // Who has asked need not wait for the answer.
                let _ = kick.send(applied);
            }
            () = expired => drop(apply(ksm, throttle.expired())),
        }
    }
}

/// Sets it, and tells when that fails: the next change may succeed.
fn apply(ksm: &mut Ksm, setting: Setting) -> Result<(), String> {
    tracing::info!(?setting, "throttle");
    ksm.apply(setting).map_err(|error| {
        tracing::error!("cannot change the kernel's settings: {error:#}");
        format!("{error:#}")
    })
}
