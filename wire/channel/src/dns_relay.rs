//! What host and guest say to each other about names: DNS messages of the guest's programs, which a
//! name server on the host answers.
//!
//! A stream to [`DNS_RELAY_PORT`](crate::DNS_RELAY_PORT) begins with the address at which the guest
//! is to take questions, and the guest says so when it does. Then each side sends messages. Numbers
//! are big-endian.
//!
//! ```text
//!  host                                                 guest
//!  IPv4 address (4 bytes), port (2) ──────────────────▶  listens there, by UDP and TCP
//!                                   ◀── 1 (1 byte) ────  and does; a guest that cannot ends the stream
//!                                   ◀── message ───────  a program asks
//!      the name server's answer ─────── message ──────▶  its asker is told
//!
//!  message:  asker (8 bytes) │ transport (1): 0 UDP, 1 TCP │ length (2) │ the DNS message (RFC 1035, section 4)
//! ```
//!
//! The asker means something to the guest only; an answer has that of its question. Questions may
//! stay without an answer.

use std::io;
use std::net::SocketAddrV4;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The byte that says that the guest listens.
const LISTENING: u8 = 1;

/// What comes before a DNS message: asker, transport and length.
const HEADER: usize = 8 + 1 + 2;

/// How a program asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// In a datagram, of which an answer may be lost.
    Udp,
    /// On a connection.
    Tcp,
}

/// A question of a program in the guest, or the answer to one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who asks.
    pub asker: u64,
    /// How it asks.
    pub transport: Transport,
    /// The DNS message, without TCP's length; at most 65535 bytes.
    pub dns: Vec<u8>,
}

impl Message {
    /// Reads one; `None` at the stream's end. A transport that does not exist is
    /// [`io::ErrorKind::InvalidData`]. It takes no more memory than the message has bytes. What was
    /// read is lost when the future is dropped.
    pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Self>> {
        let asker = match stream.read_u64().await {
            Ok(asker) => asker,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        };
        let transport = match stream.read_u8().await? {
            0 => Transport::Udp,
            1 => Transport::Tcp,
            other => {
                let text = format!("{other} is no transport of DNS messages");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
        };
        let dns = read_with_length(stream).await?;
        Ok(Some(Self { asker, transport, dns }))
    }

    /// Writes one, whole. Longer than 65535 bytes is [`io::ErrorKind::InvalidInput`].
    pub async fn write(&self, stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(HEADER + self.dns.len());
        bytes.extend(self.asker.to_be_bytes());
        bytes.push(match self.transport {
            Transport::Udp => 0,
            Transport::Tcp => 1,
        });
        bytes.extend(with_length(&self.dns)?);
        stream.write_all(&bytes).await?;
        stream.flush().await
    }
}

/// The host's first words: where the guest is to listen. Resolves when it does; the stream's end
/// means that it cannot.
pub async fn ask_to_listen<T: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut T,
    address: SocketAddrV4,
) -> io::Result<()> {
    let mut words = address.ip().octets().to_vec();
    words.extend(address.port().to_be_bytes());
    stream.write_all(&words).await?;
    stream.flush().await?;
    match stream.read_u8().await? {
        LISTENING => Ok(()),
        other => {
            let text = format!("the guest answered {other} when it was asked to listen");
            Err(io::Error::new(io::ErrorKind::InvalidData, text))
        }
    }
}

/// What the guest is asked first: where to listen.
pub async fn where_to_listen(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<SocketAddrV4> {
    let ip = stream.read_u32().await?;
    Ok(SocketAddrV4::new(ip.into(), stream.read_u16().await?))
}

/// The guest's answer: it listens.
pub async fn listening(stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    stream.write_all(&[LISTENING]).await?;
    stream.flush().await
}

/// Reads a DNS message with its length before it, which is also how they come by TCP (RFC 1035,
/// section 4.2.2).
pub async fn read_with_length(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut dns = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut dns).await?;
    Ok(dns)
}

/// A DNS message with its length before it. Longer than 65535 bytes is
/// [`io::ErrorKind::InvalidInput`].
pub fn with_length(dns: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(dns.len()).map_err(|_| {
        let text = format!("a DNS message of {} bytes is too long", dns.len());
        io::Error::new(io::ErrorKind::InvalidInput, text)
    })?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend(dns);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    fn message() -> impl Strategy<Value = Message> {
        let dns = prop::collection::vec(any::<u8>(), 0..2000);
        (any::<u64>(), any::<bool>(), dns).prop_map(|(asker, udp, dns)| {
            let transport = if udp { Transport::Udp } else { Transport::Tcp };
            Message { asker, transport, dns }
        })
    }

    proptest! {
        #[test]
        fn messages_survive_the_stream(messages in prop::collection::vec(message(), 0..4)) {
            block_on(async {
                let mut stream = Vec::new();
                for message in &messages {
                    message.write(&mut stream).await.unwrap();
                }
                let mut rest = stream.as_slice();
                for message in messages {
                    prop_assert_eq!(Message::read(&mut rest).await.unwrap(), Some(message));
                }
                prop_assert_eq!(Message::read(&mut rest).await.unwrap(), None);
                Ok(())
            })?;
        }

        #[test]
        fn no_stream_makes_the_reader_panic(stream: Vec<u8>) {
            block_on(async {
                let mut rest = stream.as_slice();
                while let Ok(Some(_)) = Message::read(&mut rest).await {}
            });
        }
    }

    #[test]
    fn guest_learns_where_to_listen_and_says_that_it_does() {
        let address = "127.0.0.11:53".parse().unwrap();
        block_on(async {
            let (mut host, mut guest) = tokio::io::duplex(64);
            let guests = async {
                assert_eq!(where_to_listen(&mut guest).await.unwrap(), address);
                listening(&mut guest).await.unwrap();
            };
            let (asked, ()) = tokio::join!(ask_to_listen(&mut host, address), guests);
            asked.unwrap();

            let (mut host, guest) = tokio::io::duplex(64);
            drop(guest);
            ask_to_listen(&mut host, address).await.unwrap_err();
        });
    }

    #[test]
    fn message_that_is_too_long_is_refused() {
        assert!(with_length(&[0; 65535]).is_ok());
        let error = with_length(&[0; 65536]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
