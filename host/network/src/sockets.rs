//! Sockets of a namespace for tasks that live outside of it.

use std::io;
use std::net::{SocketAddr, TcpStream as StdTcpStream, UdpSocket as StdUdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::sync::oneshot;

use crate::Namespace;

impl Namespace {
    /// A UDP socket of the namespace that speaks to `server` and nobody else. It keeps the
    /// namespace. Call it inside of a runtime.
    pub async fn connect_udp(&self, server: SocketAddr) -> io::Result<UdpSocket> {
        let socket = self.socket(server, SocketType::DGRAM).await?;
        let socket = UdpSocket::from_std(StdUdpSocket::from(socket))?;
        socket.connect(server).await?;
        Ok(socket)
    }

    /// A TCP connection of the namespace to `server`, which takes as long as it takes. It keeps the
    /// namespace. Call it inside of a runtime.
    pub async fn connect_tcp(&self, server: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.socket(server, SocketType::STREAM).await?;
        TcpSocket::from_std_stream(StdTcpStream::from(socket)).connect(server).await
    }

    /// A non-blocking socket.
    async fn socket(&self, server: SocketAddr, kind: SocketType) -> io::Result<OwnedFd> {
        let family = if server.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        self.inside(move || Ok(socket_with(family, kind, flags, None)?)).await
    }

    /// Does something short on a thread that enters the namespace and ends there: a socket stays
    /// where it was made.
    pub(crate) async fn inside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (done, result) = oneshot::channel();
        let namespace = self.clone();
        let enter_and_work = move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        };
        // Whoever asked may have lost interest.
        thread::Builder::new().spawn(move || drop(done.send(enter_and_work())))?;
        result
            .await
            .unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
    }
}
