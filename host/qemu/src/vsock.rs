//! vsock, where the host's kernel has it: reserving an address for the guest, and dialling it.
//!
//! Whoever is on the host may dial any guest. So this dials from ports that the kernel keeps for
//! the privileged, and the agent is told (by [`AGENT_PARAMETER`]) to take no others.

#![expect(
    unsafe_code,
    reason = "the ioctl that reserves an address, and tokio's watching of a descriptor"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kata_channel::ChannelStream;
use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType};
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::io::unix::AsyncFd;
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockStream};

/// Tries to find an address that is free; the addresses are many and the VMs few.
const ATTEMPTS: usize = 100;

/// Has the agent take connections from reserved ports only.
pub(crate) const AGENT_PARAMETER: &str = "agent.vsock_peers=privileged";

/// Ports below this one take `CAP_NET_BIND_SERVICE` in the first user namespace (Linux,
/// net/vmw_vsock/af_vsock.c, `LAST_RESERVED_PORT`). All connections of this host share them.
const FIRST_COMMON_PORT: u32 = 1024;

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
    /// Whether the guest has ever taken a connection: from then on its agent listens on all ports
    /// that it has.
    reached: AtomicBool,
}

impl Dialer {
    pub(crate) fn new(guest: Cid, again: Duration) -> Self {
        Self { guest, again, reached: AtomicBool::new(false) }
    }

    /// Connects; until somebody in the guest has listened, again and again: its kernel resets such
    /// a connection at once, and vsock has no event that would tell when to try next.
    pub(crate) async fn dial(&self, port: u32) -> io::Result<ChannelStream> {
        loop {
            match connect(reserved_socket()?, VsockAddr::new(self.guest.0, port)).await {
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

/// A socket that is bound to a reserved port.
fn reserved_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    let bind = |port| {
        socket::bind(socket.as_raw_fd(), &VsockAddr::new(VMADDR_CID_ANY, port)).map_err(Into::into)
    };
    bind_one(reserved_ports(random()?), bind)?;
    Ok(socket)
}

/// All reserved ports, from any one on, so that sandboxes seldom try the same ones.
fn reserved_ports(random: u32) -> impl Iterator<Item = u32> {
    let count = FIRST_COMMON_PORT - 1;
    (0..count).map(move |step| 1 + (random % count + step) % count)
}

/// Binds to the first port that nobody else has.
fn bind_one(
    mut ports: impl Iterator<Item = u32>,
    bind: impl Fn(u32) -> io::Result<()>,
) -> io::Result<()> {
    let taken = |error: &io::Error| error.kind() == io::ErrorKind::AddrInUse;
    let bound = ports.find_map(|port| match bind(port) {
        Err(error) if taken(&error) => None,
        result => Some(result),
    });
    bound.unwrap_or_else(|| {
        let count = FIRST_COMMON_PORT - 1;
        let text = format!(
            "all {count} reserved vsock ports of the host are in use, one for each connection to an agent"
        );
        Err(io::Error::new(io::ErrorKind::AddrInUse, text))
    })
}

async fn connect(socket: OwnedFd, guest: VsockAddr) -> io::Result<VsockStream> {
    match socket::connect(socket.as_raw_fd(), &guest) {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        Err(errno) => return Err(errno.into()),
    }
    // Writable when the guest has answered, or never will. SAFETY: an `OwnedFd` is open and the
    // same until it is dropped, which the `AsyncFd` does after deregistering it.
    let socket = unsafe { AsyncFd::register(socket) }?;
    drop(socket.writable().await?);
    let socket = socket.into_inner();
    rustix::net::sockopt::socket_error(&socket)??;
    VsockStream::new(vsock::VsockStream::from(socket))
}

/// Whether a later dial may succeed: the guest's driver (`ENODEV`, a timeout) or its listener (a
/// reset) is not there yet.
fn is_early(error: &io::Error, reached: bool) -> bool {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused => !reached,
        io::ErrorKind::TimedOut => true,
        _ => error.raw_os_error() == Some(Errno::ENODEV as i32),
    }
}

/// An open vhost device that holds an address no other guest has; `None` where the host has no such
/// device, or has it but does not let this process dial so that the agent can tell it from others.
pub(crate) fn reserve_cid() -> io::Result<Option<(File, Cid)>> {
    let vhost = match File::options().read(true).write(true).open("/dev/vhost-vsock") {
        Ok(vhost) => vhost,
        // Absent, or a node without a driver.
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    if !may_dial() {
        return Ok(None);
    }
    for _ in 0..ATTEMPTS {
        let cid = to_cid(random()?);
        // SAFETY: the device is open, and the argument is a valid pointer to the u64 that this
        // request reads.
        match unsafe { ioctl::set_guest_cid(vhost.as_raw_fd(), &u64::from(cid.0)) } {
            Ok(_) => return Ok(Some((vhost, cid))),
            Err(Errno::EADDRINUSE) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(io::Error::other("no free vsock address was found"))
}

/// Whether this process may use reserved ports, now or later.
pub(crate) fn may_dial() -> bool {
    !reserved_socket().is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(Errno::ENODEV as i32)
        || error.raw_os_error() == Some(Errno::ENXIO as i32)
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
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn reserved_addresses_are_never_given() {
        assert_eq!(to_cid(0).number(), 3);
        assert_eq!(to_cid(2).number(), 3);
        assert_eq!(to_cid(77).number(), 77);
        assert_eq!(to_cid(u32::MAX).number(), u32::MAX - 1);
    }

    #[test]
    fn every_reserved_port_is_tried_once() {
        for random in [0, 1022, 1023, u32::MAX] {
            let mut ports: Vec<_> = reserved_ports(random).collect();
            ports.sort_unstable();
            assert_eq!(ports, (1..1024).collect::<Vec<_>>(), "{random}");
        }
    }

    #[test]
    fn two_diallers_have_reserved_ports_of_their_own() {
        let (one, other) = match (reserved_socket(), reserved_socket()) {
            (Ok(one), Ok(other)) => (one, other),
            // Without vsock, or without the capability.
            (Err(error), _) | (_, Err(error)) => {
                let errno = error.raw_os_error().map(Errno::from_raw);
                assert!(matches!(errno, Some(Errno::EAFNOSUPPORT | Errno::EACCES)), "{error}");
                return;
            }
        };
        let port =
            |socket: &OwnedFd| socket::getsockname::<VsockAddr>(socket.as_raw_fd()).unwrap().port();
        let (one, other) = (port(&one), port(&other));
        assert!(one < FIRST_COMMON_PORT && other < FIRST_COMMON_PORT && one != other);
    }

    #[test]
    fn taken_ports_are_passed_over_and_other_errors_told() {
        let tried = RefCell::new(Vec::new());
        let bind = |port| {
            tried.borrow_mut().push(port);
            if port < 3 { Err(io::ErrorKind::AddrInUse.into()) } else { Ok(()) }
        };
        bind_one(1..5, bind).unwrap();
        assert_eq!(*tried.borrow(), [1, 2, 3]);

        let refused = bind_one(1..5, |_| Err(io::ErrorKind::PermissionDenied.into()));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        let full = bind_one(1..5, |_| Err(io::ErrorKind::AddrInUse.into())).unwrap_err();
        assert!(full.to_string().contains("1023 reserved"), "{full}");
    }

    #[test]
    fn guest_that_does_not_listen_yet_is_dialled_again() {
        assert!(is_early(&io::ErrorKind::ConnectionReset.into(), false));
        assert!(!is_early(&io::ErrorKind::ConnectionReset.into(), true));
        assert!(is_early(&io::Error::from_raw_os_error(Errno::ENODEV as i32), true));
        assert!(!is_early(&io::ErrorKind::PermissionDenied.into(), false));
    }
}
