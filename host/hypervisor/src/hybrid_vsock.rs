//! Reaching a port of the guest through the VMM's one socket for all of them ("hybrid vsock").

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kata_channel::{ChannelError, ChannelStream, handshake};
use kata_linux::process::Child;
use tokio::net::UnixStream;

use crate::{HypervisorError, VmmDir};

/// Knows the socket of one VM.
#[derive(Debug)]
pub struct HybridVsock {
    directory: Arc<VmmDir>,
    socket: &'static str,
    again: Duration,
    vmm: Arc<Child>,
    /// Whether the guest has ever taken a connection: from then on its agent listens on all ports
    /// that it has.
    reached: AtomicBool,
}

impl HybridVsock {
    /// The socket of that name which `vmm` has made in `directory`; `again` is the time between two
    /// tries to reach a guest that nobody has reached yet.
    #[must_use]
    pub fn new(
        directory: Arc<VmmDir>,
        socket: &'static str,
        again: Duration,
        vmm: Arc<Child>,
    ) -> Self {
        Self { directory, socket, again, vmm, reached: AtomicBool::new(false) }
    }

    /// Connects; until somebody in the guest has listened, again and again: the VMM closes such a
    /// connection at once, and has no event that would tell when to try next. Before the guest's
    /// driver is up the VMM lets the connection wait.
    pub async fn dial(&self, port: u32) -> Result<ChannelStream, HypervisorError> {
        loop {
            match self.attempt(port).await {
                _ if self.vmm.exit().is_some() => return Err(HypervisorError::ChannelClosed),
                Ok(stream) => {
                    self.reached.store(true, Ordering::Relaxed);
                    return Ok(Box::new(stream));
                }
                // It was there when the machine had been booted. A VMM that ends by itself takes it
                // away.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(HypervisorError::ChannelClosed);
                }
                Err(error) if is_early(&error, self.reached.load(Ordering::Relaxed)) => {
                    tokio::time::sleep(self.again).await;
                }
                Err(source) => return Err(HypervisorError::Dial { port, source }),
            }
        }
    }

    async fn attempt(&self, port: u32) -> io::Result<UnixStream> {
        let mut stream = self.directory.connect(self.socket).await?;
        match handshake::open(&mut stream, port).await {
            Ok(()) => Ok(stream),
            Err(ChannelError::Io { source, .. }) => Err(source),
            Err(ChannelError::Refused { .. }) => Err(io::ErrorKind::ConnectionReset.into()),
            Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        }
    }
}

/// Whether a later dial may succeed, or the VMM is about to be found dead.
fn is_early(error: &io::Error, reached: bool) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, WouldBlock};
    match error.kind() {
        // The guest's answer.
        ConnectionReset => !reached,
        // The VMM's own.
        kind => matches!(kind, ConnectionRefused | BrokenPipe | WouldBlock),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_that_does_not_listen_yet_is_dialled_again() {
        assert!(is_early(&io::ErrorKind::ConnectionReset.into(), false));
        assert!(!is_early(&io::ErrorKind::ConnectionReset.into(), true));
        assert!(!is_early(&io::ErrorKind::PermissionDenied.into(), false));
        assert!(!is_early(&io::ErrorKind::NotFound.into(), false));
    }
}
