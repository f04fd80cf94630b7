//! Names for containers whose name server is an address of the loopback interface that only the
//! host has: Docker's, which listens at 127.0.0.11 in the network namespace of each container.
//!
//! ```text
//!  the guest                  │ this process                       │ the sandbox's network namespace
//!  program ──▶ 127.0.0.11:53 ═╪═ stream ══▶ a task for a question ──┼─▶ its socket ──▶ 127.0.0.11:53, the engine's
//!              (the agent)    │                                    │
//! ```
//!
//! What is asked and answered passes through unread, as between a container and its name server
//! under any runtime. A guest that asks more than may wait, or does not take its answers, loses
//! questions, as on any network.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use kata_channel::dns_relay::{self, Message, Transport};
use kata_channel::{ChannelStream, DNS_RELAY_PORT};
use kata_log::chain;
use kata_network::Namespace;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Shared;
use crate::network::SandboxNetwork;

/// The port of every name server.
const DNS: u16 = 53;

/// Questions that wait for an answer; further ones are dropped.
const MAX_WAITING: usize = 64;

/// How long a question may wait for its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the guest's agent may take to listen: long for one that can, and short for whoever
/// waits for one that cannot.
const OPENING: Duration = Duration::from_secs(3);

/// The largest DNS message in bytes, and its header, without which it is none.
const MAX_MESSAGE: usize = u16::MAX as usize;
const MIN_MESSAGE: usize = 12;

/// Has the guest ask `server`. Where that does not work its containers run all the same, and the
/// log says what they do without.
pub(super) async fn open(shared: &Arc<Shared>, network: &SandboxNetwork, server: Ipv4Addr) {
    let server = SocketAddrV4::new(server, DNS);
    let opened = tokio::select! {
        opened = timeout(OPENING, dial(shared, server)) => opened,
        () = shared.until_gone() => return,
    };
    let failure = match opened {
        Ok(Ok(stream)) => {
            let namespace = network.namespace().clone();
            tokio::spawn(serve(Arc::clone(shared), stream, namespace, server));
            None
        }
        Ok(Err(error)) => Some(error),
        Err(_) => Some(format!("it did not answer within {} s", OPENING.as_secs())),
    };
    let id = &shared.id;
    if let Some(failure) = failure {
        tracing::warn!(
            "sandbox {id}: containers cannot ask their name server {}, which is the host's, for the guest's agent does not relay it \
             ({failure}); use the agent of this version",
            server.ip()
        );
    } else if let Err(reason) = network.share_with_sockets().await {
        tracing::warn!(
            "sandbox {id}: the name server {} knows the names of its own network only, since it gets no answers from others: {reason}",
            server.ip()
        );
    }
}

async fn dial(shared: &Shared, server: SocketAddrV4) -> Result<ChannelStream, String> {
    let mut stream = shared.vm.dial(DNS_RELAY_PORT).await.map_err(|error| chain(&error))?;
    let asked = dns_relay::ask_to_listen(&mut stream, server).await;
    asked.map_err(|error| format!("it cannot listen there: {error}"))?;
    Ok(stream)
}

/// Carries questions and answers until the sandbox is gone, or the guest breaks the protocol.
async fn serve(
    shared: Arc<Shared>,
    stream: ChannelStream,
    namespace: Namespace,
    server: SocketAddrV4,
) {
    let (from_guest, to_guest) = split(stream);
    let server = Server { namespace, address: server.into() };
    tokio::select! {
        carried = carry(from_guest, to_guest, server) => {
            if let Err(error) = carried {
                tracing::warn!("sandbox {}: names are not relayed any more: {error}", shared.id);
            }
        }
        () = shared.until_gone() => {}
    }
}

async fn carry(
    mut from_guest: ReadHalf<ChannelStream>,
    to_guest: WriteHalf<ChannelStream>,
    server: Server,
) -> io::Result<()> {
    let server = Arc::new(server);
    let to_guest = Arc::new(Mutex::new(to_guest));
    let seats = Arc::new(Semaphore::new(MAX_WAITING));
    // They end with this.
    let mut waiting = JoinSet::new();
    while let Some(question) = Message::read(&mut from_guest).await? {
        while waiting.try_join_next().is_some() {}
        // A seat is kept until the guest has taken the answer.
        let Ok(seat) = Arc::clone(&seats).try_acquire_owned() else { continue };
        if question.dns.len() < MIN_MESSAGE {
            continue;
        }
        let (server, to_guest) = (Arc::clone(&server), Arc::clone(&to_guest));
        waiting.spawn(async move {
            let _seat = seat;
            let answer = timeout(PATIENCE, server.ask(question)).await;
            if let Ok(Ok(answer)) = answer {
                // Who reads questions notices a broken stream, too.
                let _ = answer.write(&mut *to_guest.lock().await).await;
            }
        });
    }
    Ok(())
}

/// A name server in a network namespace.
struct Server {
    namespace: Namespace,
    address: SocketAddr,
}

impl Server {
    /// Asks on a socket of the question's own, as any program does: also a server that has been
    /// started anew hears it.
    async fn ask(&self, question: Message) -> io::Result<Message> {
        let dns = match question.transport {
            Transport::Udp => {
                let socket = self.namespace.connect_udp(self.address).await?;
                socket.send(&question.dns).await?;
                let mut answer = vec![0; MAX_MESSAGE];
                let length = socket.recv(&mut answer).await?;
                answer.truncate(length);
                answer
            }
            Transport::Tcp => {
                let mut connection = self.namespace.connect_tcp(self.address).await?;
                connection.write_all(&dns_relay::with_length(&question.dns)?).await?;
                dns_relay::read_with_length(&mut connection).await?
            }
        };
        Ok(Message { dns, ..question })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::io::duplex;
    use tokio::net::{TcpListener, UdpSocket};

    use super::*;

    /// A guest's end of a relay whose name server is in this process's own network namespace.
    fn relay_to(
        address: SocketAddr,
    ) -> (tokio::io::DuplexStream, tokio::task::JoinHandle<io::Result<()>>) {
        // Less than a message, so that whoever has written one knows that the one before was read.
        let (host, guest) = duplex(16);
        let namespace = Namespace::reopen(Path::new("/proc/self/ns/net")).unwrap();
        let (from_guest, to_guest) = split(Box::new(host) as ChannelStream);
        (guest, tokio::spawn(carry(from_guest, to_guest, Server { namespace, address })))
    }

    fn question(asker: u64, transport: Transport) -> Message {
        Message { asker, transport, dns: format!("question {asker:04}").into_bytes() }
    }

    #[tokio::test]
    async fn every_asker_gets_its_own_answer_and_a_flood_is_cut_off() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (mut guest, relay) = relay_to(server.local_addr().unwrap());
        for asker in 0..200 {
            question(asker, Transport::Udp).write(&mut guest).await.unwrap();
        }
        let no_question = Message { dns: b"too short".to_vec(), ..question(0, Transport::Udp) };
        no_question.write(&mut guest).await.unwrap();
        let mut asked = Vec::new();
        for _ in 0..MAX_WAITING {
            let mut buffer = [0; 64];
            let (length, asker) = server.recv_from(&mut buffer).await.unwrap();
            asked.push((buffer[..length].to_vec(), asker));
        }
        for (dns, asker) in asked.iter().rev() {
            server.send_to(&[b"answer to ", dns.as_slice()].concat(), asker).await.unwrap();
        }
        for _ in 0..MAX_WAITING {
            let answer = Message::read(&mut guest).await.unwrap().unwrap();
            let expected =
                [b"answer to ".as_slice(), &question(answer.asker, answer.transport).dns].concat();
            assert_eq!(answer.dns, expected);
        }
        // The others were dropped, and so is what is no DNS message: the next to be heard is a new
        // one.
        no_question.write(&mut guest).await.unwrap();
        question(4711, Transport::Udp).write(&mut guest).await.unwrap();
        let mut buffer = [0; 64];
        let (length, _) = server.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], b"question 4711");

        drop(guest);
        relay.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn question_by_tcp_is_asked_by_tcp() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (mut guest, _relay) = relay_to(server.local_addr().unwrap());
        question(7, Transport::Tcp).write(&mut guest).await.unwrap();
        let (mut connection, _) = server.accept().await.unwrap();
        let asked = dns_relay::read_with_length(&mut connection).await.unwrap();
        assert_eq!(asked, question(7, Transport::Tcp).dns);
        let large = vec![b'x'; MAX_MESSAGE];
        connection.write_all(&dns_relay::with_length(&large).unwrap()).await.unwrap();
        let answer = Message::read(&mut guest).await.unwrap().unwrap();
        assert_eq!(answer, Message { dns: large, ..question(7, Transport::Tcp) });
    }

    #[tokio::test]
    async fn what_is_no_message_ends_it() {
        let (mut guest, relay) = relay_to("127.0.0.1:9".parse().unwrap());
        guest.write_all(&[0xff; 9]).await.unwrap();
        assert_eq!(relay.await.unwrap().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
