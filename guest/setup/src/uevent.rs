//! Events of the kernel's device model, so that nobody has to poll for a device.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use tokio::io::unix::AsyncFd;

/// The kernel's own multicast group; udev's is 2.
const KERNEL_GROUP: u32 = 1;

/// What happened to a device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Uevent {
    /// `add`, `change`, `remove`, ...
    pub action: String,
    /// For example `net`, `block`, `virtio-ports`.
    pub subsystem: String,
    /// Path below `/sys`, with a leading slash.
    pub devpath: String,
    /// Name of the node below `/dev`, if it has one.
    pub devname: Option<String>,
}

impl Uevent {
    /// The kernel's datagram is `action@devpath`, then `KEY=value` texts, each ended by a NUL.
    /// `None` for what does not look like that (udev's own messages, for example).
    #[must_use]
    pub fn parse(datagram: &[u8]) -> Option<Self> {
        let mut texts = datagram.split(|byte| *byte == 0).map(std::str::from_utf8);
        let (action, devpath) = texts.next()?.ok()?.split_once('@')?;
        let mut event = Self { action: action.into(), devpath: devpath.into(), ..Self::default() };
        for (key, value) in texts.flatten().filter_map(|text| text.split_once('=')) {
            match key {
                "SUBSYSTEM" => event.subsystem = value.into(),
                "DEVNAME" => event.devname = Some(value.into()),
                _ => {}
            }
        }
        Some(event)
    }
}

/// A stream of device events, beginning with the moment of [`Uevents::open`]. To wait for a device,
/// open this first, then look whether it is there, then wait for events.
#[derive(Debug)]
pub struct Uevents {
    socket: AsyncFd<OwnedFd>,
}

impl Uevents {
    /// Subscribes. Call it inside of the runtime.
    ///
    /// # Errors
    ///
    /// Fails without netlink, or when file descriptors have run out.
    pub fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            flags,
            Some(KOBJECT_UEVENT),
        )?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP))?;
        Ok(Self { socket: registered(socket)? })
    }

    /// The next event; `None` says that events were lost, so that the caller should look again.
    ///
    /// # Errors
    ///
    /// Fails when the socket does, which no known kernel makes it do.
    pub async fn next(&self) -> io::Result<Option<Uevent>> {
        let mut datagram = [0; 4096];
        loop {
            let mut guard = self.socket.readable().await?;
            let received = guard.try_io(|socket| {
                Ok(rustix::net::recv(socket, &mut datagram, RecvFlags::empty())?.0)
            });
            match received {
                Err(_would_block) => {}
                Ok(Ok(length)) => {
                    if let Some(event) = Uevent::parse(&datagram[..length]) {
                        return Ok(Some(event));
                    }
                }
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(None),
                Ok(Err(error)) => return Err(error),
            }
        }
    }
}

#[expect(unsafe_code, reason = "the runtime asks for a promise that OwnedFd cannot break")]
fn registered(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open, and stays the same descriptor for as long as it lives.
    unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parse_kernel_datagram_takes_the_named_fields() {
        let datagram = b"add@/devices/virtio1/virtio-ports/vport1p1\0ACTION=add\0\
            SUBSYSTEM=virtio-ports\0MAJOR=246\0DEVNAME=vport1p1\0SEQNUM=7\0";
        let event = Uevent::parse(datagram).unwrap();
        assert_eq!(event.action, "add");
        assert_eq!(event.subsystem, "virtio-ports");
        assert_eq!(event.devname.as_deref(), Some("vport1p1"));
        assert_eq!(event.devpath, "/devices/virtio1/virtio-ports/vport1p1");
    }

    #[test]
    fn parse_udev_message_is_skipped() {
        assert_eq!(Uevent::parse(b"libudev\0\xfe\xed\xca\xfe"), None);
    }

    proptest! {
        #[test]
        fn parse_any_bytes_never_panics(bytes: Vec<u8>) {
            let _ = Uevent::parse(&bytes);
        }
    }
}
