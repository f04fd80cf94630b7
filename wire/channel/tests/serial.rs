//! Both ends of the serial channel over an in-memory carrier.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use kata_channel::{ChannelError, ChannelStream, MAX_STREAMS, SerialDialer, SerialListener};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

const MIB: usize = 1024 * 1024;

fn carrier() -> (DuplexStream, DuplexStream) {
    // As narrow as a socket buffer, so that back pressure is part of every test.
    tokio::io::duplex(64 * 1024)
}

/// A guest that grants every port but 1 and sends everything back, half close included.
fn echo_guest(carrier: DuplexStream) {
    tokio::spawn(async move {
        let mut listener = SerialListener::new(carrier);
        while let Some((port, pending)) = listener.accept().await {
            if port == 1 {
                pending.refuse();
                continue;
            }
            tokio::spawn(async move {
                let mut stream = pending.accept().await.unwrap();
                let (mut read, mut write) = tokio::io::split(&mut stream);
                tokio::io::copy(&mut read, &mut write).await.unwrap();
                write.shutdown().await.unwrap();
            });
        }
    });
}

/// Bytes that differ everywhere, so that a lost or doubled frame changes the checksum.
fn pattern(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = vec![0; length];
    for byte in &mut bytes {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = (state >> 24) as u8;
    }
    bytes
}

async fn send_and_receive(stream: ChannelStream, bytes: Vec<u8>) -> Vec<u8> {
    let (mut read, mut write) = tokio::io::split(stream);
    let sender = tokio::spawn(async move {
        write.write_all(&bytes).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut back = Vec::new();
    read.read_to_end(&mut back).await.unwrap();
    sender.await.unwrap();
    back
}

#[tokio::test]
async fn sixty_four_mebibytes_arrive_whole_both_ways() {
    let (host, guest) = carrier();
    echo_guest(guest);
    let stream = SerialDialer::new(host).dial(1024).await.unwrap();
    let sent = pattern(64 * MIB, 7);
    let expected = Sha256::digest(&sent);
    let back = send_and_receive(stream, sent).await;
    assert_eq!(back.len(), 64 * MIB);
    assert_eq!(Sha256::digest(&back), expected);
}

#[tokio::test]
async fn many_streams_at_once_do_not_mix() {
    let (host, guest) = carrier();
    echo_guest(guest);
    let dialer = SerialDialer::new(host);
    let mut tasks = Vec::new();
    for port in 1000..1100 {
        let dialer = dialer.clone();
        tasks.push(tokio::spawn(async move {
            let sent = pattern(300 * 1024, port);
            let back = send_and_receive(dialer.dial(port).await.unwrap(), sent.clone()).await;
            assert!(back == sent, "stream {port} came back changed");
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn half_close_ends_one_direction_only() {
    let (host, guest) = carrier();
    let dialer = SerialDialer::new(host);
    let guest = tokio::spawn(async move {
        let mut listener = SerialListener::new(guest);
        let mut stream = listener.accept().await.unwrap().1.accept().await.unwrap();
        let mut request = String::new();
        stream.read_to_string(&mut request).await.unwrap();
        stream.write_all(format!("got {request}").as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        // Held until the host has read it all.
        stream.read_u8().await.unwrap_err();
    });
    let mut stream = dialer.dial(1024).await.unwrap();
    stream.write_all(b"question").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "got question");
    drop(stream);
    guest.await.unwrap();
}

#[tokio::test]
async fn bytes_written_before_a_drop_still_arrive() {
    let (host, guest) = carrier();
    let dialer = SerialDialer::new(host);
    tokio::spawn(async move {
        let mut listener = SerialListener::new(guest);
        while let Some((_, pending)) = listener.accept().await {
            let mut stream = pending.accept().await.unwrap();
            stream.write_all(b"last words").await.unwrap();
        }
    });
    for _ in 0..100 {
        let mut words = String::new();
        dialer.dial(1024).await.unwrap().read_to_string(&mut words).await.unwrap();
        assert_eq!(words, "last words");
    }
}

#[tokio::test]
async fn refused_port_is_an_error_and_the_channel_lives_on() {
    let (host, guest) = carrier();
    echo_guest(guest);
    let dialer = SerialDialer::new(host);
    let refused = dialer.dial(1).await.err().unwrap();
    assert!(matches!(refused, ChannelError::Refused { port: 1 }), "{refused}");
    assert_eq!(send_and_receive(dialer.dial(2).await.unwrap(), b"hi".to_vec()).await, b"hi");
}

#[tokio::test]
async fn dialling_before_the_guest_listens_waits_for_it() {
    let (host, guest) = carrier();
    let dialer = SerialDialer::new(host);
    let dial = tokio::spawn(async move { dialer.dial(1024).await.map(drop) });
    tokio::task::yield_now().await;
    assert!(!dial.is_finished());
    echo_guest(guest);
    dial.await.unwrap().unwrap();
}

#[tokio::test]
async fn end_of_the_vm_closes_the_channel() {
    let (host, guest) = carrier();
    let dialer = SerialDialer::new(host);
    let dial = tokio::spawn({
        let dialer = dialer.clone();
        async move { dialer.dial(1024).await.err().unwrap() }
    });
    tokio::task::yield_now().await;
    drop(guest);
    assert!(matches!(dial.await.unwrap(), ChannelError::Closed | ChannelError::Io { .. }));
    assert!(matches!(dialer.dial(1).await.err().unwrap(), ChannelError::Closed));
}

#[tokio::test]
async fn garbage_from_the_guest_closes_the_channel() {
    let (host, mut guest) = carrier();
    let dialer = SerialDialer::new(host);
    guest.write_all(&[0xff; 4096]).await.unwrap();
    let error = dialer.dial(1024).await.err().unwrap();
    assert!(matches!(error, ChannelError::Closed | ChannelError::Io { .. }), "{error}");
}

#[tokio::test]
async fn streams_are_limited_and_given_back() {
    let (host, guest) = carrier();
    echo_guest(guest);
    let dialer = SerialDialer::new(host);
    let mut open = Vec::new();
    for port in 0..u32::try_from(MAX_STREAMS).unwrap() {
        open.push(dialer.dial(port + 2).await.unwrap());
    }
    let error = dialer.dial(2).await.err().unwrap();
    assert!(matches!(error, ChannelError::TooManyStreams { .. }), "{error}");
    open.clear();
    dialer.dial(2).await.unwrap();
}
