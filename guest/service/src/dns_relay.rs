//! Questions of the guest's programs for a name server that only the host has, as Docker's at
//! 127.0.0.11: taken here, and handed to the host, which knows whom to ask
//! ([`kata_channel::dns_relay`]).
//!
//! ```text
//!  program ── UDP ──▶ socket ─────────────┐            the asker of a datagram is its sender's address and port,
//!  program ── TCP ──▶ a task for each ────┼──▶ host     that of a connection its number
//!     ▲                   ▲               │
//!     └───────────────────┴── Answers ◀───┴─── host
//! ```

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use kata_channel::ChannelStream;
use kata_channel::dns_relay::{self, Message, Transport};
use kata_guest_setup::network::Network;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Mutex, Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// TCP connections at a time; others wait to be taken.
const MAX_CONNECTIONS: usize = 32;

/// How long a TCP connection may be silent, an answer on it may take, and the program may take to
/// read that: a little longer than the host tries.
const PATIENCE: Duration = Duration::from_secs(12);

/// The time after a connection that could not be taken until the next one is.
const PAUSE: Duration = Duration::from_millis(100);

/// The largest DNS message in bytes.
const MAX_MESSAGE: usize = u16::MAX as usize;

/// Listens where the host says, and carries questions and answers until it ends the stream.
pub(crate) async fn serve(mut stream: ChannelStream) -> io::Result<()> {
    let address = dns_relay::where_to_listen(&mut stream).await?;
    if !address.ip().is_loopback() {
        let text = format!("{address} is not the guest's own, so nobody is to listen there");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    // Its address is there only when the interface is up, which nobody has waited for.
    let up = async { Network::connect()?.loopback_up().await };
    up.await.map_err(io::Error::other)?;
    let udp = UdpSocket::bind(SocketAddr::from(address)).await?;
    let tcp = TcpListener::bind(SocketAddr::from(address)).await?;
    dns_relay::listening(&mut stream).await?;
    tracing::debug!(%address, "programs may ask for names");
    let (from_host, to_host) = split(stream);
    let relay =
        Arc::new(Relay { to_host: Mutex::new(to_host), waiting: std::sync::Mutex::default() });
    tokio::select! {
        result = relay.take_datagrams(&udp) => result,
        result = relay.take_connections(&tcp) => result,
        result = relay.tell_answers(from_host, &udp) => result,
    }
}

struct Relay {
    to_host: Mutex<WriteHalf<ChannelStream>>,
    /// Connections that wait for an answer, by their number.
    waiting: std::sync::Mutex<HashMap<u64, oneshot::Sender<Vec<u8>>>>,
}

impl Relay {
    async fn ask(&self, message: Message) -> io::Result<()> {
        message.write(&mut *self.to_host.lock().await).await
    }

    async fn take_datagrams(&self, udp: &UdpSocket) -> io::Result<()> {
        let mut buffer = vec![0; MAX_MESSAGE];
        loop {
            let (length, SocketAddr::V4(sender)) = udp.recv_from(&mut buffer).await? else {
                continue;
            };
            let dns = buffer[..length].to_vec();
            self.ask(Message { asker: number_of(sender), transport: Transport::Udp, dns }).await?;
        }
    }

    async fn take_connections(self: &Arc<Self>, tcp: &TcpListener) -> io::Result<()> {
        let seats = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        // They end with this.
        let mut connections = JoinSet::new();
        for asker in 0.. {
            let seat = Arc::clone(&seats).acquire_owned().await.map_err(io::Error::other)?;
            // Too many files are open, or the program has gone: the next one may fare better.
            let Ok((stream, _)) = tcp.accept().await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let relay = Arc::clone(self);
            connections.spawn(async move {
                if let Err(error) = relay.serve_connection(asker, stream).await {
                    tracing::debug!(%error, "a connection for names ended");
                }
                relay.waiting().remove(&asker);
                drop(seat);
            });
            while connections.try_join_next().is_some() {}
        }
        Ok(())
    }

    /// One question after the other, until the program has no more.
    async fn serve_connection(&self, asker: u64, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let dns = timeout(PATIENCE, dns_relay::read_with_length(&mut stream)).await??;
            let (sender, answer) = oneshot::channel();
            self.waiting().insert(asker, sender);
            self.ask(Message { asker, transport: Transport::Tcp, dns }).await?;
            let answer = timeout(PATIENCE, answer).await?.map_err(io::Error::other)?;
            let answer = dns_relay::with_length(&answer)?;
            timeout(PATIENCE, stream.write_all(&answer)).await??;
        }
    }

    /// Ends with the host's stream.
    async fn tell_answers(
        &self,
        mut from_host: ReadHalf<ChannelStream>,
        udp: &UdpSocket,
    ) -> io::Result<()> {
        while let Some(answer) = Message::read(&mut from_host).await? {
            match answer.transport {
                Transport::Udp => {
                    // Whoever is gone gets no answer.
                    let _ = udp.send_to(&answer.dns, address_of(answer.asker)).await;
                }
                Transport::Tcp => {
                    let waiting = self.waiting().remove(&answer.asker);
                    let _ = waiting.map(|connection| connection.send(answer.dns));
                }
            }
        }
        Ok(())
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<Vec<u8>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn number_of(sender: SocketAddrV4) -> u64 {
    u64::from(sender.ip().to_bits()) << 16 | u64::from(sender.port())
}

/// What [`number_of`] has made a number of.
fn address_of(number: u64) -> SocketAddr {
    let [_, _, a, b, c, d, high, low] = number.to_be_bytes();
    (Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([high, low])).into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn sender_is_found_again(ip: u32, port: u16) {
            let sender = SocketAddrV4::new(Ipv4Addr::from_bits(ip), port);
            prop_assert_eq!(address_of(number_of(sender)), SocketAddr::from(sender));
        }
    }
}
