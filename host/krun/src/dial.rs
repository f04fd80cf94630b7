//! Reaching a port of the guest through the VMM's socket for it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kata_channel::ChannelStream;
use kata_hypervisor::HypervisorError;
use kata_linux::process::Child;
use tokio::net::UnixStream;

use crate::stream::{Connect, PatientStream};

/// Knows the sockets of one VM.
#[derive(Debug, Clone)]
pub(crate) struct Dialer(Arc<Sockets>);

#[derive(Debug)]
struct Sockets {
    /// Where the VMM makes them.
    directory: OwnedFd,
    ports: Vec<u32>,
    again: Duration,
    vmm: Arc<Child>,
    /// Whether the guest has ever answered: from then on its agent listens on all ports that it
    /// has.
    reached: Arc<AtomicBool>,
}

impl Dialer {
    pub(crate) fn new(
        directory: OwnedFd,
        ports: Vec<u32>,
        again: Duration,
        vmm: Arc<Child>,
    ) -> Self {
        let reached = Arc::default();
        Self(Arc::new(Sockets { directory, ports, again, vmm, reached }))
    }

    /// Connects as soon as the VMM listens, which it does when the guest's driver has come up.
    /// Where nobody in the guest listens, the stream ends with its first read; until the guest has
    /// been reached it waits for somebody.
    pub(crate) async fn dial(&self, port: u32) -> Result<ChannelStream, HypervisorError> {
        if !self.0.ports.contains(&port) {
            let source = io::Error::new(
                io::ErrorKind::NotFound,
                "the VM was started without a socket for this port",
            );
            return Err(HypervisorError::Dial { port, source });
        }
        let dialer = self.clone();
        let connect: Connect = Box::new(move || {
            let dialer = dialer.clone();
            Box::pin(async move { dialer.connect(port).await })
        });
        let stream = connect().await.map_err(|source| match source.kind() {
            io::ErrorKind::BrokenPipe => HypervisorError::ChannelClosed,
            _ => HypervisorError::Dial { port, source },
        })?;
        if self.0.reached.load(Ordering::Relaxed) {
            return Ok(Box::new(stream));
        }
        let reached = Arc::clone(&self.0.reached);
        Ok(Box::new(PatientStream::new(stream, connect, self.0.again, reached)))
    }

    async fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let name = port.to_string();
        loop {
            if self.0.vmm.exit().is_some() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            match kata_hypervisor::connect_in(&self.0.directory, &name).await {
                Err(error) if is_early(&error) => tokio::time::sleep(self.0.again).await,
                connected => return connected,
            }
        }
    }
}

/// Whether the VMM may listen later: the socket is not there, or a moment ago it was not listening
/// yet.
fn is_early(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}
