use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use kata_grpc::STATUS;

use super::*;

/// A throttler that counts, and refuses the third kick.
fn throttler(socket: &Path) -> Arc<AtomicU32> {
    let kicks = Arc::new(AtomicU32::new(0));
    let listener = UnixListener::bind(socket).unwrap();
    let counted = Arc::clone(&kicks);
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let counted = Arc::clone(&counted);
            let kicked = move || {
                let count = counted.fetch_add(1, Ordering::Relaxed) + 1;
                async move { if count == 3 { Err("no\nmore".to_owned()) } else { Ok(()) } }
            };
            tokio::spawn(serve(connection, kicked));
        }
    });
    kicks
}

#[tokio::test]
async fn a_kick_arrives_or_says_why_not() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("ksm.sock");
    assert!(matches!(kick(&socket).await, Err(KickError::Connect(_))));
    let kicks = throttler(&socket);
    kick(&socket).await.unwrap();
    kick(&socket).await.unwrap();
    assert_eq!(kicks.load(Ordering::Relaxed), 2);
    let error = kick(&socket).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the KSM throttler has answered with the gRPC status 13: no?more"
    );
}

#[tokio::test]
async fn another_method_is_unimplemented_and_kicks_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("ksm.sock");
    let kicks = throttler(&socket);
    let stream = UnixStream::connect(&socket).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    let request = http::Request::post("http://localhost/ksm.KSMThrottler/Stop").body(()).unwrap();
    let (answer, _) = client.send_request(request, true).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(answer.headers()[STATUS], "12");
    let _: h2::client::SendRequest<bytes::Bytes> = client;
    assert_eq!(kicks.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_listener_that_does_not_speak_http_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    tokio::spawn(async move {
        let (mut connection, _) = listener.accept().await.unwrap();
        let _ = connection.write_all(b"hello, who are you, and what is it that you want\n").await;
        let _ = connection.read_to_end(&mut Vec::new()).await;
    });
    assert!(matches!(kick(&socket).await, Err(KickError::Protocol(_))));
}
