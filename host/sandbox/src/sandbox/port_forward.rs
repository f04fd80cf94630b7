//! Ports of the guest for whoever looks for them in the sandbox's network namespace, at 127.0.0.1:
//! engines, for `kubectl port-forward`.
//!
//! ```text
//!  the network namespace             │ this process                │ the guest
//!  dialler ──▶ 127.0.0.1:8080 ───────┼─▶ a task for a connection ══╪═ stream ══▶ the agent ──▶ 127.0.0.1:8080, a container's server
//! ```
//!
//! The guest begins nothing: what it is asked is whether it takes a connection. One that it does
//! not take, or breaks, is reset. Bytes pass unread, and whoever does not take them holds up its
//! own connection only.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use kata_channel::port_forward::{ask_for_port, carry};
use kata_channel::{ChannelStream, PORT_FORWARD_PORT};
use kata_hypervisor::Vm;
use kata_log::chain;
use kata_network::Loopback;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Shared;

/// Connections at a time; further ones are reset. It is half of what a channel has streams for, so
/// that there is always one for other things.
const MAX_CONNECTIONS: usize = kata_channel::MAX_STREAMS / 2;

/// The time after a connection that could not be taken until the next one is.
const PAUSE: Duration = Duration::from_millis(100);

/// How long the guest may take to say whether it takes a connection.
const ASKING: Duration = Duration::from_secs(10);

/// Serves until the sandbox is gone; at once done where it has no network that somebody could look
/// into. A sandbox without this is as good for all else, so that a failure is only told.
pub(super) async fn serve(shared: Arc<Shared>) {
    let namespace = match shared.network.lock().await.as_ref() {
        Some(network) if !network.is_empty() => network.namespace().clone(),
        _ => return,
    };
    let served = async {
        match Loopback::take(&namespace).await {
            Ok(loopback) => match accept(&shared, &loopback).await {},
            Err(error) => chain(&error),
        }
    };
    tokio::select! {
        reason = served => tracing::info!(
            "sandbox {}: ports of the guest cannot be forwarded, as by kubectl port-forward: {reason}",
            shared.id
        ),
        () = shared.until_gone() => {}
    }
}

async fn accept(shared: &Arc<Shared>, loopback: &Loopback) -> Infallible {
    let seats = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // They end with this.
    let mut connections = JoinSet::new();
    loop {
        let (mut connection, port) = match loopback.accept().await {
            Ok(accepted) => accepted,
            // Too many files are open, or the dialler has gone: the next one may fare better.
            Err(error) => {
                tracing::warn!("sandbox {}: a connection is not forwarded: {error}", shared.id);
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let Ok(seat) = Arc::clone(&seats).try_acquire_owned() else {
            tracing::warn!(
                "sandbox {}: a connection to port {port} is reset, for {MAX_CONNECTIONS} are forwarded already",
                shared.id
            );
            reset(&connection);
            continue;
        };
        let shared = Arc::clone(shared);
        connections.spawn(async move {
            let _seat = seat;
            let forwarded = async {
                let stream = reach(shared.vm.as_ref(), port).await?;
                carry(stream, &mut connection).await.map_err(|error| error.to_string())
            };
            if let Err(reason) = forwarded.await {
                tracing::debug!("sandbox {}: port {port} of the guest: {reason}", shared.id);
                reset(&connection);
            }
        });
    }
}

/// A stream to a port of the guest that takes it, or why there is none.
async fn reach(vm: &dyn Vm, port: u16) -> Result<ChannelStream, String> {
    let asked = timeout(ASKING, async {
        let mut stream = vm.dial(PORT_FORWARD_PORT).await.map_err(|error| chain(&error))?;
        ask_for_port(&mut stream, port).await.map_err(|error| error.to_string())?;
        Ok(stream)
    });
    asked.await.unwrap_or_else(|_| Err(format!("no answer within {} s", ASKING.as_secs())))
}

/// Has the other side learn, when this one is dropped, that the connection was broken.
fn reset(connection: &TcpStream) {
    if let Err(error) = connection.set_zero_linger() {
        tracing::debug!("a connection ends without a reset: {error}");
    }
}
