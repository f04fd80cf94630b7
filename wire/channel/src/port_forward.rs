//! What host and guest say to each other about a TCP connection that ends at a port of the guest's
//! loopback interface.
//!
//! A stream to [`PORT_FORWARD_PORT`](crate::PORT_FORWARD_PORT) is one connection. It begins with
//! the port, and the guest says whether somebody listens there. Then each side sends what its end
//! of the connection brings, in pieces. Numbers are big-endian.
//!
//! ```text
//!  host                                                 guest
//!  port (2 bytes) ────────────────────────────────────▶  connects to it
//!                         ◀── 1 (1 byte) ─────────────  and has; 2 if nobody takes it
//!                         ◀── piece ─────▶  and so on, both ways
//!                         ◀── 0 (2 bytes) ▶  nothing follows this way
//!
//!  piece:  length (2 bytes), at least 1 │ bytes
//! ```
//!
//! The end of one direction is a word of its own, for two reasons. Not every hypervisor's vsock
//! keeps a stream half open. And a stream that ends without it tells that the connection was
//! broken, so that half a file is not taken for a whole one.

use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::time::timeout;

/// How long one direction may bring nothing after the other has ended.
const SILENCE: Duration = Duration::from_secs(300);

/// The guest's answers.
const CONNECTED: u8 = 1;
const REFUSED: u8 = 2;

/// The largest piece that is sent, in bytes, and so what a connection keeps in each direction. The
/// other side may send larger ones.
const PIECE: usize = 16 * 1024;

/// A piece's length before it.
const HEADER: usize = 2;

/// The host's first word: which port is wanted. Resolves when the guest is connected to it; nobody
/// there, or nobody who takes it, is [`io::ErrorKind::ConnectionRefused`].
pub async fn ask_for_port<T: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut T,
    port: u16,
) -> io::Result<()> {
    stream.write_all(&port.to_be_bytes()).await?;
    stream.flush().await?;
    match stream.read_u8().await? {
        CONNECTED => Ok(()),
        REFUSED => Err(io::ErrorKind::ConnectionRefused.into()),
        other => {
            let text = format!("the guest answered {other} when it was asked for a port");
            Err(io::Error::new(io::ErrorKind::InvalidData, text))
        }
    }
}

/// What the guest is asked first: the port.
pub async fn wanted_port(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<u16> {
    stream.read_u16().await
}

/// The guest's answer: whether it is connected. If not, nothing follows.
pub async fn answer(stream: &mut (impl AsyncWrite + Unpin), connected: bool) -> io::Result<()> {
    stream.write_all(&[if connected { CONNECTED } else { REFUSED }]).await?;
    stream.flush().await
}

/// Carries both directions between the stream and this side's end of the connection, until both
/// have ended well. On an error, also one of the other side's that shows as
/// [`io::ErrorKind::UnexpectedEof`], the connection is to be reset, and dropping the stream has the
/// other side do the same. It is one, too, when one direction has ended and the other brings
/// nothing for five minutes: nobody tells whether a dialler that says no more still listens.
pub async fn carry<S, C>(stream: S, connection: C) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite,
    C: AsyncRead + AsyncWrite + Unpin,
{
    carry_within(stream, connection, SILENCE).await
}

async fn carry_within<S, C>(stream: S, connection: C, silence: Duration) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite,
    C: AsyncRead + AsyncWrite + Unpin,
{
    let (mut from_stream, mut to_stream) = split(stream);
    let (mut from_connection, mut to_connection) = split(connection);
    let carried = AtomicU64::new(0);
    let mut sent = pin!(send(&mut from_connection, &mut to_stream, &carried));
    let mut received = pin!(receive(&mut from_stream, &mut to_connection, &carried));
    tokio::select! {
        ended = &mut sent => {
            ended?;
            rest(received, &carried, silence).await
        }
        ended = &mut received => {
            ended?;
            rest(sent, &carried, silence).await
        }
    }
}

/// The other direction, which may go on for as long as it brings something.
async fn rest(
    mut direction: impl Future<Output = io::Result<()>> + Unpin,
    carried: &AtomicU64,
    silence: Duration,
) -> io::Result<()> {
    loop {
        let before = carried.load(Ordering::Relaxed);
        match timeout(silence, &mut direction).await {
            Ok(ended) => return ended,
            Err(_) if carried.load(Ordering::Relaxed) == before => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(_) => {}
        }
    }
}

/// What the connection brings, in pieces, and then its end.
async fn send(
    connection: &mut (impl AsyncRead + Unpin),
    stream: &mut (impl AsyncWrite + Unpin),
    carried: &AtomicU64,
) -> io::Result<()> {
    let mut buffer = vec![0; HEADER + PIECE];
    loop {
        let length = connection.read(&mut buffer[HEADER..]).await?;
        let header = u16::try_from(length).expect("a piece is shorter than 64 KiB").to_be_bytes();
        buffer[..HEADER].copy_from_slice(&header);
        stream.write_all(&buffer[..HEADER + length]).await?;
        stream.flush().await?;
        if length == 0 {
            return Ok(());
        }
        carried.fetch_add(1, Ordering::Relaxed);
    }
}

/// What the other side sends, until it says that nothing follows.
async fn receive(
    stream: &mut (impl AsyncRead + Unpin),
    connection: &mut (impl AsyncWrite + Unpin),
    carried: &AtomicU64,
) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    loop {
        let mut left = usize::from(stream.read_u16().await?);
        if left == 0 {
            return connection.shutdown().await;
        }
        while left > 0 {
            let part = &mut buffer[..left.min(PIECE)];
            stream.read_exact(part).await?;
            connection.write_all(part).await?;
            left -= part.len();
            carried.fetch_add(1, Ordering::Relaxed);
        }
        connection.flush().await?;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{DuplexStream, duplex};

    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap()
            .block_on(future)
    }

    /// Both sides of a connection: a program's end on the host, and one in the guest.
    async fn between(
        work: impl AsyncFnOnce(DuplexStream, DuplexStream),
    ) -> (io::Result<()>, io::Result<()>) {
        let (dialler, hosts) = duplex(100);
        let (server, guests) = duplex(100);
        let (host, guest) = duplex(1000);
        let (host, guest, ()) =
            tokio::join!(carry(host, hosts), carry(guest, guests), work(dialler, server));
        (host, guest)
    }

    #[test]
    fn direction_that_stays_silent_after_the_other_has_ended_is_given_up() {
        let (mut dialler, hosts) = duplex(100);
        let (host, guest) = duplex(1000);
        let ended = block_on(async {
            dialler.shutdown().await.unwrap();
            carry_within(host, hosts, Duration::from_millis(10)).await
        });
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(guest);
    }

    proptest! {
        #[test]
        fn both_directions_are_whole_and_end_each_for_itself(asked: Vec<u8>, told: Vec<u8>) {
            let (host, guest) = block_on(between(async |mut dialler, mut server| {
                let dialler = async {
                    dialler.write_all(&asked).await.unwrap();
                    dialler.shutdown().await.unwrap();
                    let mut heard = Vec::new();
                    dialler.read_to_end(&mut heard).await.unwrap();
                    assert_eq!(heard, told);
                };
                let server = async {
                    let mut heard = Vec::new();
                    server.read_to_end(&mut heard).await.unwrap();
                    assert_eq!(heard, asked);
                    // It answers when it has heard all.
                    server.write_all(&told).await.unwrap();
                    server.shutdown().await.unwrap();
                };
                tokio::join!(dialler, server);
            }));
            host.unwrap();
            guest.unwrap();
        }

        #[test]
        fn only_a_stream_that_ends_with_the_word_for_it_ends_well(bytes: Vec<u8>) {
            let mut connection = Vec::new();
            let received = block_on(receive(&mut bytes.as_slice(), &mut connection, &AtomicU64::new(0)));
            prop_assert!(connection.len() <= bytes.len());
            let mut rest = bytes.as_slice();
            let whole = loop {
                let [high, low, after @ ..] = rest else { break false };
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                if length == 0 {
                    break true;
                }
                rest = after.get(length..).unwrap_or_default();
            };
            prop_assert_eq!(received.is_ok(), whole);
        }
    }

    #[test]
    fn piece_larger_than_ours_is_taken() {
        let mut stream = u16::MAX.to_be_bytes().to_vec();
        stream.extend([7; u16::MAX as usize]);
        stream.extend([0, 0]);
        let mut connection = Vec::new();
        block_on(receive(&mut stream.as_slice(), &mut connection, &AtomicU64::new(0))).unwrap();
        assert_eq!(connection, [7; u16::MAX as usize]);
    }

    #[test]
    fn end_of_the_stream_alone_breaks_the_connection() {
        let (mut host, hosts) = duplex(100);
        let (dialler, connection) = duplex(100);
        let carried = block_on(async {
            host.write_all(b"\0\x04half").await.unwrap();
            drop(host);
            carry(hosts, connection).await
        });
        assert_eq!(carried.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        drop(dialler);
    }

    #[test]
    fn guest_learns_the_port_and_says_whether_it_is_connected() {
        block_on(async {
            for connected in [true, false] {
                let (mut host, mut guest) = duplex(64);
                let guests = async {
                    assert_eq!(wanted_port(&mut guest).await.unwrap(), 8080);
                    answer(&mut guest, connected).await.unwrap();
                };
                let (asked, ()) = tokio::join!(ask_for_port(&mut host, 8080), guests);
                match asked {
                    Ok(()) => assert!(connected),
                    Err(error) => {
                        assert!(!connected);
                        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
                    }
                }
            }
            let (mut host, mut guest) = duplex(64);
            guest.write_all(b"x").await.unwrap();
            let error = ask_for_port(&mut host, 1).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        });
    }
}
