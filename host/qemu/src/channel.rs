//! The channel to the agent: vsock where the host has it and lets this process guard it, else a
//! serial port.

use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::Duration;

use kata_channel::{ChannelError, ChannelStream, SERIAL_PORT_NAME, SerialDialer};
use kata_hypervisor::HypervisorError;
use kata_linux::process::Spawn;
use tokio::net::UnixStream;

use crate::device::Device;
use crate::vsock;

/// The host's end of the channel.
#[derive(Debug)]
pub(crate) enum Channel {
    Serial(SerialDialer),
    /// A serial port on which nothing is said, of a guest that is to be saved: what it had not read
    /// by then would be read by each guest that goes on from it.
    Silent {
        _ours: UnixStream,
    },
    Vsock(vsock::Dialer),
}

impl Channel {
    /// Makes both ends: this one, and the device whose descriptor is passed to QEMU. `dial_again`
    /// is the time between two tries where the channel has no other way to learn that the agent
    /// listens. One that is `silent` is for a guest that is to be saved.
    pub(crate) fn open(
        spawn: &mut Spawn,
        dial_again: Duration,
        silent: bool,
    ) -> Result<(Self, Device), HypervisorError> {
        let setup = |source| HypervisorError::Setup { what: "the channel to the agent", source };
        match vsock::reserve_cid().map_err(setup)? {
            Some((vhost, cid)) => {
                let device = Device::Vsock { vhost: spawn.pass_fd(vhost), cid: cid.number() };
                Ok((Self::Vsock(vsock::Dialer::new(cid, dial_again)), device))
            }
            None => {
                let (ours, theirs) = socket_pair().map_err(setup)?;
                let device =
                    Device::SerialPort { socket: spawn.pass_fd(theirs), name: SERIAL_PORT_NAME };
                let channel = if silent {
                    Self::Silent { _ours: ours }
                } else {
                    Self::Serial(SerialDialer::new(ours))
                };
                Ok((channel, device))
            }
        }
    }

    /// Whether others of the host may dial the guest too.
    pub(crate) fn is_vsock(&self) -> bool {
        matches!(self, Self::Vsock(_))
    }

    pub(crate) async fn dial(&self, port: u32) -> Result<ChannelStream, HypervisorError> {
        match self {
            Self::Serial(dialer) => dialer.dial(port).await.map_err(|error| match error {
                ChannelError::Closed => HypervisorError::ChannelClosed,
                error => HypervisorError::Dial { port, source: io::Error::other(error) },
            }),
            Self::Silent { .. } => Err(HypervisorError::ChannelClosed),
            Self::Vsock(dialer) => {
                dialer.dial(port).await.map_err(|source| HypervisorError::Dial { port, source })
            }
        }
    }
}

/// Two connected sockets: one for this runtime, one to be inherited.
pub(crate) fn socket_pair() -> io::Result<(UnixStream, StdUnixStream)> {
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((UnixStream::from_std(ours)?, theirs))
}
