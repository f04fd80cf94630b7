use tokio::io::AsyncReadExt;

use super::*;

/// QEMU's end of a connection.
struct Peer(UnixStream);

impl Peer {
    async fn say(&mut self, line: &str) {
        self.0.write_all(format!("{line}\r\n").as_bytes()).await.unwrap();
    }

    async fn hear(&mut self) -> String {
        let mut line = Vec::new();
        loop {
            match self.0.read_u8().await.unwrap() {
                b'\n' => return String::from_utf8(line).unwrap(),
                byte => line.push(byte),
            }
        }
    }
}

async fn connected() -> (Qmp, Peer) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut peer = Peer(theirs);
    let greet = async {
        peer.say(r#"{"QMP": {"version": {}, "capabilities": []}}"#).await;
        assert_eq!(peer.hear().await, r#"{"execute":"qmp_capabilities"}"#);
        peer.say(r#"{"return": {}}"#).await;
    };
    let (qmp, ()) = tokio::join!(Qmp::connect(ours), greet);
    (qmp.unwrap(), peer)
}

#[tokio::test]
async fn command_waits_for_its_answer_across_events() {
    let (qmp, mut peer) = connected().await;
    let answer = async {
        assert_eq!(peer.hear().await, r#"{"execute":"stop"}"#);
        peer.say(r#"{"event": "STOP"}"#).await;
        peer.say(r#"{"return": {}}"#).await;
    };
    let (stopped, ()) = tokio::join!(qmp.execute(Command::Stop), answer);
    stopped.unwrap();
}

#[tokio::test]
async fn refusal_quotes_qemu() {
    let (qmp, mut peer) = connected().await;
    let answer = async {
        peer.hear().await;
        peer.say(r#"{"error": {"class": "GenericError", "desc": "not now"}}"#).await;
    };
    let (refused, ()) = tokio::join!(qmp.execute(Command::Cont), answer);
    assert_eq!(refused.unwrap_err().to_string(), "the hypervisor refused `cont`: not now");
}

#[tokio::test]
async fn first_reason_of_the_end_is_kept() {
    let (qmp, mut peer) = connected().await;
    peer.say(r#"{"event": "GUEST_PANICKED", "data": {"action": "shutdown"}}"#).await;
    peer.say(r#"{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}"#).await;
    drop(peer);
    assert_eq!(qmp.closed().await.as_deref(), Some("guest-panic"));
    assert!(qmp.execute(Command::Stop).await.is_err());
}

#[tokio::test]
async fn endless_line_closes_the_connection() {
    let (qmp, mut peer) = connected().await;
    let flood = async {
        // Fails once the client has given up.
        while peer.0.write_all(&[b'x'; 4096]).await.is_ok() {}
    };
    let (reason, ()) = tokio::join!(qmp.closed(), flood);
    assert_eq!(reason, None);
}
