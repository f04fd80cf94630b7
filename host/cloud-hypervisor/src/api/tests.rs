use std::fs::File;
use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::thread::{self, JoinHandle};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::*;

/// A peer that answers each request with the next of `answers`, and tells what it was sent,
/// requests and descriptors.
fn peer(answers: Vec<String>) -> (Client, JoinHandle<(String, Vec<OwnedFd>)>) {
    let (ours, mut theirs) = StdUnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let peer = thread::spawn(move || {
        let (mut heard, mut fds) = (String::new(), Vec::new());
        for answer in answers {
            let mut bytes = [0; 4096];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut buffers = [IoSliceMut::new(&mut bytes)];
            let message =
                recvmsg(&theirs, &mut buffers, &mut ancillary, RecvFlags::empty()).unwrap();
            for passed in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(passed) = passed {
                    fds.extend(passed);
                }
            }
            heard += str::from_utf8(&bytes[..message.bytes]).unwrap();
            theirs.write_all(answer.as_bytes()).unwrap();
        }
        (heard, fds)
    });
    (Client::new(UnixStream::from_std(ours).unwrap()), peer)
}

fn done() -> String {
    "HTTP/1.1 204 \r\nServer: x\r\nConnection: keep-alive\r\n\r\n".to_owned()
}

fn answer(status: u16, body: &str) -> String {
    format!("HTTP/1.1 {status} \r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn nic() -> NetConfig {
    NetConfig { id: "eth0".into(), mac: "02:00:00:00:00:01".into(), num_queues: 2 }
}

#[tokio::test]
async fn requests_share_one_connection() {
    let pong = answer(200, r#"{"version": "54.0.0"}"#);
    let (client, peer) = peer(vec![pong, done()]);
    assert_eq!(client.ping().await.unwrap().version, "54.0.0");
    client.add_net(&nic(), Vec::new()).await.unwrap();
    let (heard, _) = peer.join().unwrap();
    assert!(heard.starts_with("GET /api/v1/vmm.ping HTTP/1.1\r\n"), "{heard}");
    assert!(heard.contains("PUT /api/v1/vm.add-net HTTP/1.1\r\n"), "{heard}");
    assert!(heard.ends_with(",\"num_queues\":2}"), "{heard}");
}

#[tokio::test]
async fn descriptors_go_with_their_request() {
    let (client, peer) = peer(vec![done()]);
    let (reader, mut writer) = io::pipe().unwrap();
    client.add_net(&nic(), vec![reader.into()]).await.unwrap();
    writer.write_all(b"frame").unwrap();
    drop(writer);
    let (_, mut fds) = peer.join().unwrap();
    let mut passed = String::new();
    File::from(fds.remove(0)).read_to_string(&mut passed).unwrap();
    assert_eq!((passed.as_str(), fds.len()), ("frame", 0));
}

#[tokio::test]
async fn refusal_is_told_in_the_vmms_words() {
    let refusal = answer(500, r#"["Error", "no such\u001b device"]"#);
    let (client, _peer) = peer(vec![refusal]);
    let error = client.boot().await.unwrap_err();
    assert_eq!(error.to_string(), "`vm.boot` was refused: Error: no such device");
}

#[tokio::test]
async fn connection_that_broke_is_not_used_again() {
    let (client, peer) = peer(vec!["HTTP/1.1 204 \r\n\r\nand more".to_owned()]);
    assert!(matches!(client.boot().await, Err(ApiError::Broken { request: "vm.boot", .. })));
    peer.join().unwrap();
    assert!(matches!(client.pause().await, Err(ApiError::Broken { request: "vm.pause", .. })));
}

#[tokio::test]
async fn request_that_nobody_waits_for_is_followed_to_its_end() {
    let (client, peer) = peer(vec![done(), done()]);
    {
        let pause = client.pause();
        tokio::pin!(pause);
        // Polled once, so it is on its way, then dropped.
        tokio::select! {
            biased;
            _ = &mut pause => {}
            () = std::future::ready(()) => {}
        }
    }
    client.resume().await.unwrap();
    let (heard, _) = peer.join().unwrap();
    assert!(heard.contains("vm.pause") && heard.contains("vm.resume"), "{heard}");
}
