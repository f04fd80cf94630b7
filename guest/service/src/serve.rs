//! Where the host's connections come from, and who gets them.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::stream;
use kata_agent_api::{agent_ttrpc, health_ttrpc};
use kata_channel::{AGENT_PORT, ChannelStream, DNS_RELAY_PORT, PORT_FORWARD_PORT, SerialListener};
use kata_guest_setup::reaper::Reaper;
use kata_guest_setup::vsock_peers::VsockPeers;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener};
use ttrpc::r#async::Server;
use ttrpc::asynchronous::transport::Listener;

use crate::agent::Agent;
use crate::dns_relay;
use crate::health::HealthService;
use crate::log::Log;
use crate::port_forward;
use crate::rpc::Service;
use crate::shell;

/// Connections that wait to be taken by the server.
const BACKLOG: usize = 16;

/// The time after a connection that could not be taken until the next try: nothing tells when a
/// descriptor is free again. A poll at once would find the same connection and turn in circles.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves the host's connections by their port.
#[derive(Debug)]
pub struct Services {
    rpc: mpsc::Sender<ChannelStream>,
    log: Log,
    log_port: Option<u32>,
    shell_port: Option<u32>,
    reaper: Reaper,
    console_size: watch::Receiver<shell::Size>,
}

/// The ttrpc server, which takes connections for as long as this is kept.
pub struct Running {
    _server: Server,
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").finish_non_exhaustive()
    }
}

impl Services {
    /// Starts the ttrpc server on `agent`. The log is served on `log_port` and a shell, if the
    /// guest has one, on `shell_port`; `None` switches them off.
    ///
    /// # Errors
    ///
    /// Fails as the ttrpc server does, which is never when it is started for the first time.
    pub async fn start(
        agent: &Arc<Agent>,
        log: Log,
        log_port: Option<u32>,
        shell_port: Option<u32>,
    ) -> ttrpc::Result<(Self, Running)> {
        let (rpc, connections) = mpsc::channel::<ChannelStream>(BACKLOG);
        let incoming = stream::unfold(connections, |mut connections| async {
            let stream = connections.recv().await?;
            Some((io::Result::Ok(stream), connections))
        });
        let service = Arc::new(Service { agent: Arc::clone(agent) });
        let mut server = Server::new()
            .add_listener(Listener::new(incoming))
            .register_service(agent_ttrpc::create_agent_service(service))
            .register_service(health_ttrpc::create_health(Arc::new(HealthService)));
        server.start().await?;
        let reaper = agent.reaper.clone();
        let console_size = agent.console_size.subscribe();
        let services = Self { rpc, log, log_port, shell_port, reaper, console_size };
        Ok((services, Running { _server: server }))
    }

    /// Whether there is somebody on `port`.
    #[must_use]
    pub fn has(&self, port: u32) -> bool {
        port == AGENT_PORT
            || port == DNS_RELAY_PORT
            || port == PORT_FORWARD_PORT
            || Some(port) == self.log_port
            || (Some(port) == self.shell_port && shell::exists())
    }

    /// Hands a connection over to whoever is on `port`; one that nobody wants is closed.
    pub async fn connect(&self, port: u32, stream: ChannelStream) {
        if port == AGENT_PORT {
            // The server is gone only when the agent is.
            let _ = self.rpc.send(stream).await;
        } else if Some(port) == self.log_port {
            let log = self.log.clone();
            tokio::spawn(async move { log.serve(stream).await });
        } else if Some(port) == self.shell_port {
            let (reaper, size) = (self.reaper.clone(), self.console_size.clone());
            tokio::spawn(async move {
                if let Err(error) = shell::serve(stream, reaper, size).await {
                    tracing::warn!(%error, "the debug console failed");
                }
            });
        } else if port == DNS_RELAY_PORT {
            tokio::spawn(async move {
                if let Err(error) = dns_relay::serve(stream).await {
                    tracing::warn!(%error, "questions for names are not taken");
                }
            });
        } else if port == PORT_FORWARD_PORT {
            tokio::spawn(async move {
                if let Err(error) = port_forward::serve(stream).await {
                    tracing::debug!(%error, "a forwarded connection is broken");
                }
            });
        }
    }

    /// Serves streams that come over a serial port, until the host closes it.
    pub async fn serial(self: &Arc<Self>, mut listener: SerialListener) {
        tracing::debug!("serving on the serial port");
        while let Some((port, pending)) = listener.accept().await {
            tracing::debug!(port, "the host dials");
            if !self.has(port) {
                pending.refuse();
                continue;
            }
            let services = Arc::clone(self);
            tokio::spawn(async move {
                if let Ok(stream) = pending.accept().await {
                    services.connect(port, stream).await;
                }
            });
        }
    }

    /// Serves the connections of `peers` to this guest's vsock ports.
    ///
    /// # Errors
    ///
    /// Fails when a port is taken.
    pub async fn vsock(
        self: &Arc<Self>,
        agent_port: u32,
        peers: VsockPeers,
    ) -> io::Result<Infallible> {
        let others =
            [Some(DNS_RELAY_PORT), Some(PORT_FORWARD_PORT), self.log_port, self.shell_port];
        for port in others.into_iter().flatten().filter(|port| self.has(*port)) {
            let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port))?;
            let services = Arc::clone(self);
            tokio::spawn(async move { services.accept(&listener, port, peers).await });
        }
        let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, agent_port))?;
        Ok(self.accept(&listener, AGENT_PORT, peers).await)
    }

    async fn accept(&self, listener: &VsockListener, port: u32, peers: VsockPeers) -> Infallible {
        let mut refused = false;
        loop {
            let (stream, peer) = next(|| listener.accept()).await;
            if peers.admit(peer.cid(), peer.port()) {
                self.connect(port, Box::new(stream)).await;
            } else if !refused {
                // Once: whoever is refused must not fill the log either.
                tracing::warn!(port, %peer, "connections without privileges on the host are refused");
                refused = true;
            }
        }
    }

    /// Serves ttrpc on a unix socket, for an agent that is run by hand.
    ///
    /// # Errors
    ///
    /// Fails when the socket cannot be made.
    pub async fn unix(&self, path: &Path) -> io::Result<Infallible> {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path)?;
        loop {
            let (stream, _) = next(|| listener.accept()).await;
            self.connect(AGENT_PORT, Box::new(stream)).await;
        }
    }

    /// Runs a shell on the guest's console, if it has one.
    ///
    /// # Errors
    ///
    /// Fails without a console.
    pub fn shell_on_console(&self) -> io::Result<()> {
        if shell::exists() { shell::on_console() } else { Ok(()) }
    }
}

/// The next connection. One that cannot be taken, because too many files are open or memory is
/// short, ends nothing: it waits in the listener meanwhile, and the host could not make the guest
/// listen anew.
async fn next<T, F: Future<Output = io::Result<T>>>(accept: impl Fn() -> F) -> T {
    loop {
        match accept().await {
            Ok(connection) => return connection,
            Err(error) => {
                tracing::warn!(%error, "a connection is not taken yet");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn listening_goes_on_after_a_connection_that_could_not_be_taken() {
        let begin = Instant::now();
        let tries = Cell::new(0);
        let connection = next(async || {
            tries.set(tries.get() + 1);
            if tries.get() < 3 {
                Err(io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error()))
            } else {
                Ok(7)
            }
        });
        assert_eq!(connection.await, 7);
        assert_eq!(tries.get(), 3);
        assert!(begin.elapsed() >= 2 * PAUSE);
    }
}
