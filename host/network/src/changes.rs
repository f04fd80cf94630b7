//! News of the interfaces of a namespace, so that nobody has to look again and again.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;

use kata_linux::descriptors;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::io::unix::AsyncFd;

use crate::Namespace;

/// The multicast group of changes of interfaces: RTMGRP_LINK in rtnetlink(7).
const LINKS: u32 = 1;

/// What happens to the interfaces of a namespace, from [`Changes::of`] on.
#[derive(Debug)]
pub struct Changes {
    socket: AsyncFd<OwnedFd>,
}

impl Changes {
    /// Subscribes. Call it inside of a runtime.
    pub fn of(namespace: &Namespace) -> io::Result<Self> {
        let namespace = namespace.clone();
        let opener = thread::spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            // Protocol 0 is NETLINK_ROUTE.
            let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
            bind(&socket, &SocketAddrNetlink::new(0, LINKS))?;
            Ok::<_, io::Error>(socket)
        });
        let socket = opener
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that subscribed panicked")))?;
        Ok(Self { socket: descriptors::register(socket)? })
    }

    /// Resolves when something has happened since the last call. What it was is for the caller to
    /// look at.
    pub async fn next(&self) -> io::Result<()> {
        let mut buffer = [0; 8192];
        let mut heard = false;
        loop {
            let mut guard = self.socket.readable().await?;
            loop {
                match guard.try_io(|socket| Ok(rustix::io::read(socket, &mut buffer)?)) {
                    // Lost messages are news, too.
                    Ok(Err(error)) if error.raw_os_error() != Some(libc::ENOBUFS) => {
                        return Err(error);
                    }
                    Ok(_) => heard = true,
                    Err(_would_block) if heard => return Ok(()),
                    Err(_would_block) => break,
                }
            }
        }
    }
}
