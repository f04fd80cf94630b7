//! Network devices: frames are carried between an open tap, which may be in any network namespace,
//! and libkrun, which would open taps by name, and has neither the right nor the namespace for that
//! here.
//!
//! ```text
//!   tap ◀═══ a header of its own, frame ═══▶ two threads ◀═══ frame ═══▶ socket pair ◀─▶ libkrun ◀─▶ virtio-net
//! ```
//!
//! Nothing in a header is used: the host's kernel and the guest each make whole frames with whole
//! checksums for the other.

#![expect(unsafe_code, reason = "a tap's settings are made by ioctl(2)")]

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::str::FromStr;
use std::thread;

use anyhow::{Context, bail};
use kata_linux::descriptors::take_inherited;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::options;

/// Bytes of a tap's header without the number of buffers (struct virtio_net_hdr of
/// linux/virtio_net.h).
const HEADER: usize = 10;

/// The longest frame: of the largest MTU, with an Ethernet header and a VLAN's tag.
const FRAME: usize = 65535 + 14 + 4;

/// The longest packet that fits into the buffers of a guest that was promised no longer ones.
const ORDINARY_MTU: u32 = 1500;

/// Whoever negotiates these makes buffers for the longest packets (linux/virtio_net.h: GUEST_CSUM,
/// GUEST_TSO4, GUEST_TSO6).
const LONG_PACKETS: u32 = 1 << 1 | 1 << 7 | 1 << 8;

mod ioctl {
    // linux/if_tun.h
    nix::ioctl_write_ptr!(tun_set_vnet_hdr_size, b'T', 216, libc::c_int);
    nix::ioctl_write_int!(tun_set_offload, b'T', 208);
}

/// A MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mac(pub(crate) [u8; 6]);

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let byte = |part: &str| match part.as_bytes() {
            [high, low] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                u8::from_str_radix(part, 16).ok()
            }
            _ => None,
        };
        let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| format!("{text} is no MAC address"))
    }
}

/// A device whose frames are not carried yet.
#[derive(Debug)]
pub(crate) struct Nic {
    tap: File,
    socket: OwnedFd,
}

impl Nic {
    /// Takes the tap over, and returns libkrun's end as well.
    pub(crate) fn open(nic: &options::Nic) -> anyhow::Result<(Self, OwnedFd)> {
        let tap = take_inherited(nic.tap);
        let tap = File::from(tap.with_context(|| format!("there is no tap {}", nic.tap))?);
        // Whoever had it before may have wanted otherwise.
        let flags = rustix::fs::fcntl_getfl(&tap).context("cannot look at a tap")?;
        rustix::fs::fcntl_setfl(&tap, flags - OFlags::NONBLOCK).context("cannot wait for a tap")?;
        let header = libc::c_int::try_from(HEADER).expect("it is small");
        // SAFETY: the descriptor is open, and the pointer is to an int, which is what the request
        // reads.
        unsafe { ioctl::tun_set_vnet_hdr_size(tap.as_raw_fd(), &raw const header) }
            .context("cannot choose a tap's header; it is no tap with IFF_VNET_HDR")?;
        // SAFETY: the descriptor is open, and the argument is a number.
        unsafe { ioctl::tun_set_offload(tap.as_raw_fd(), 0) }
            .context("cannot ask for whole frames")?;
        let (socket, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .context("cannot make a socket pair")?;
        Ok((Self { tap, socket }, theirs))
    }

    /// Starts the threads that carry frames, for the rest of the process's life.
    pub(crate) fn carry(self) -> anyhow::Result<()> {
        let (tap, socket) = (self.tap.try_clone()?, self.socket.try_clone()?);
        spawn("nic to guest", move || to_guest(&self.tap, &self.socket))?;
        spawn("nic from guest", move || from_guest(&socket, &tap))
    }
}

/// What libkrun shall offer to the guest.
pub(crate) fn features(nic: &options::Nic) -> u32 {
    if nic.mtu > ORDINARY_MTU { LONG_PACKETS } else { 0 }
}

fn spawn(
    name: &str,
    carry: impl FnOnce() -> io::Result<Infallible> + Send + 'static,
) -> anyhow::Result<()> {
    let run = move || {
        // The engine may take the network away while the guest runs.
        let Err(error) = carry();
        eprintln!("a network device carries nothing any more: {error}");
    };
    let thread = thread::Builder::new().name(name.to_owned()).spawn(run);
    thread.map(drop).context("cannot start a thread")
}

fn to_guest(mut tap: &File, socket: &OwnedFd) -> io::Result<Infallible> {
    let mut buffer = vec![0; HEADER + FRAME];
    loop {
        let length = match tap.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            length => length?,
        };
        let frame = buffer.get(HEADER..length).unwrap_or_default();
        match rustix::net::send(socket, frame, SendFlags::NOSIGNAL) {
            // Waits while the guest has no room. What memory is missing for is lost, as on any
            // wire.
            Ok(_) | Err(Errno::INTR | Errno::NOBUFS | Errno::NOMEM | Errno::MSGSIZE) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn from_guest(socket: &OwnedFd, mut tap: &File) -> io::Result<Infallible> {
    let mut buffer = vec![0; HEADER + FRAME];
    loop {
        let length = match rustix::net::recv(socket, &mut buffer[HEADER..], RecvFlags::empty()) {
            Err(Errno::INTR) => continue,
            received => received?.0,
        };
        match tap.write(&buffer[..HEADER + length]) {
            // The tap is gone.
            Err(error) if error.raw_os_error() == Some(libc::EBADFD) => return Err(error),
            // A frame that the host does not take is lost, as on any wire; the guest may send
            // whatever it likes.
            _ => {}
        }
    }
}

/// Refuses what no device has.
pub(crate) fn parse(text: &str) -> anyhow::Result<options::Nic> {
    let parts: Vec<&str> = text.split(',').collect();
    let [tap, mac, mtu] = parts.as_slice() else { bail!("write it as FD,MAC,MTU") };
    let tap = tap.parse().context("FD is a number")?;
    let mac = mac.parse().map_err(anyhow::Error::msg)?;
    let mtu = mtu.parse().context("MTU is a number")?;
    Ok(options::Nic { tap, mac, mtu })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_is_a_tap_an_address_and_a_size() {
        let nic = parse("7,02:42:ac:11:00:0f,9000").unwrap();
        assert_eq!((nic.tap, nic.mtu), (7, 9000));
        assert_eq!(nic.mac, Mac([0x02, 0x42, 0xac, 0x11, 0x00, 0x0f]));
        for bad in
            ["7", "7,02:42:ac:11:00,1500", "7,02:42:ac:11:00:0g,1500", "x,02:42:ac:11:00:0f,1"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!("+2:42:ac:11:00:0f".parse::<Mac>().is_err());
    }

    #[test]
    fn guest_makes_room_for_long_packets_only_where_there_are_some() {
        assert_eq!(features(&parse("7,02:42:ac:11:00:0f,1500").unwrap()), 0);
        assert_ne!(features(&parse("7,02:42:ac:11:00:0f,1501").unwrap()), 0);
    }

    #[test]
    fn what_is_no_tap_is_refused() {
        let null = OwnedFd::from(File::open("/dev/null").unwrap());
        let nic = options::Nic { tap: null.as_raw_fd(), mac: Mac([0; 6]), mtu: 1500 };
        std::mem::forget(null);
        let error = Nic::open(&nic).unwrap_err();
        assert!(error.to_string().contains("it is no tap"), "{error}");
    }
}
