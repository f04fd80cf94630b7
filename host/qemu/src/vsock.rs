//! vsock, where the host's kernel has it: reserving an address for the guest, and dialling it.

#![expect(unsafe_code, reason = "the ioctl that reserves an address")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kata_channel::ChannelStream;
use rustix::rand::{GetRandomFlags, getrandom};
use tokio_vsock::{VsockAddr, VsockStream};

/// Tries to find an address that is free; the addresses are many and the VMs few.
const ATTEMPTS: usize = 100;

mod ioctl {
    // linux/vhost.h
    nix::ioctl_write_ptr!(
        /// VHOST_VSOCK_SET_GUEST_CID
        set_guest_cid, 0xaf, 0x60, u64
    );
}

/// The address of a guest (vsock(7), "context identifier").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cid(u32);

impl Cid {
    pub(crate) fn number(self) -> u32 {
        self.0
    }
}

/// Reaches the ports of a guest.
#[derive(Debug)]
pub(crate) struct Dialer {
    guest: Cid,
    /// The time between two tries.
    again: Duration,
    /// Whether the guest has ever taken a connection: from then on its agent listens on all ports that it has.
    reached: AtomicBool,
}

impl Dialer {
    pub(crate) fn new(guest: Cid, again: Duration) -> Self {
        Self { guest, again, reached: AtomicBool::new(false) }
    }

    /// Connects; until somebody in the guest has listened, again and again: its kernel resets such a connection at once, and vsock
    /// has no event that would tell when to try next.
    pub(crate) async fn dial(&self, port: u32) -> io::Result<ChannelStream> {
        loop {
            match VsockStream::connect(VsockAddr::new(self.guest.0, port)).await {
                Ok(stream) => {
                    self.reached.store(true, Ordering::Relaxed);
                    return Ok(Box::new(stream));
                }
                Err(error) if is_early(&error, self.reached.load(Ordering::Relaxed)) => {
                    tokio::time::sleep(self.again).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether a later dial may succeed: the guest's driver (`ENODEV`, a timeout) or its listener (a reset) is not there yet.
fn is_early(error: &io::Error, reached: bool) -> bool {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused => !reached,
        io::ErrorKind::TimedOut => true,
        _ => error.raw_os_error() == Some(nix::errno::Errno::ENODEV as i32),
    }
}

/// An open vhost device that holds an address no other guest has; `None` where the host has no such device.
pub(crate) fn reserve_cid() -> io::Result<Option<(File, Cid)>> {
    let vhost = match File::options().read(true).write(true).open("/dev/vhost-vsock") {
        Ok(vhost) => vhost,
        // Absent, or a node without a driver.
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    for _ in 0..ATTEMPTS {
        let cid = to_cid(random()?);
        // SAFETY: the device is open, and the argument is a valid pointer to the u64 that this request reads.
        match unsafe { ioctl::set_guest_cid(vhost.as_raw_fd(), &u64::from(cid.0)) } {
            Ok(_) => return Ok(Some((vhost, cid))),
            Err(nix::errno::Errno::EADDRINUSE) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(io::Error::other("no free vsock address was found"))
}

fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(nix::errno::Errno::ENODEV as i32)
        || error.raw_os_error() == Some(nix::errno::Errno::ENXIO as i32)
}

/// 0 to 2 are the hypervisor, the local machine and the host; 2³²-1 means any.
fn to_cid(random: u32) -> Cid {
    Cid(random.clamp(3, u32::MAX - 1))
}

fn random() -> io::Result<u32> {
    let mut bytes = [0; 4];
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(u32::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_addresses_are_never_given() {
        assert_eq!(to_cid(0).number(), 3);
        assert_eq!(to_cid(2).number(), 3);
        assert_eq!(to_cid(77).number(), 77);
        assert_eq!(to_cid(u32::MAX).number(), u32::MAX - 1);
    }

    #[test]
    fn guest_that_does_not_listen_yet_is_dialled_again() {
        assert!(is_early(&io::ErrorKind::ConnectionReset.into(), false));
        assert!(!is_early(&io::ErrorKind::ConnectionReset.into(), true));
        assert!(is_early(&io::Error::from_raw_os_error(nix::errno::Errno::ENODEV as i32), true));
        assert!(!is_early(&io::ErrorKind::PermissionDenied.into(), false));
    }
}
