use tokio::io::AsyncReadExt;

use super::*;

/// QEMU's end of a connection.
pub(crate) struct Peer(UnixStream);

impl Peer {
    pub(crate) async fn say(&mut self, line: &str) {
        self.0.write_all(format!("{line}\r\n").as_bytes()).await.unwrap();
    }

    pub(crate) async fn hear(&mut self) -> String {
        let mut line = Vec::new();
        loop {
            match self.0.read_u8().await.unwrap() {
                b'\n' => return String::from_utf8(line).unwrap(),
                byte => line.push(byte),
            }
        }
    }
}

pub(crate) async fn connected() -> (Qmp, Peer) {
    connected_with(Box::new(|_| {})).await
}

async fn connected_with(deleted: Deleted) -> (Qmp, Peer) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut peer = Peer(theirs);
    let greet = async {
        peer.say(r#"{"QMP": {"version": {}, "capabilities": []}}"#).await;
        assert_eq!(peer.hear().await, r#"{"execute":"qmp_capabilities"}"#);
        peer.say(r#"{"return": {}}"#).await;
    };
    let (qmp, ()) = tokio::join!(Qmp::connect(ours, deleted), greet);
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
async fn number_is_told_or_it_is_said_that_there_is_none() {
    let (qmp, mut peer) = connected().await;
    let size = Command::QomGet { path: "/machine/peripheral/more", property: "size" };
    let answer = async {
        let asked = peer.hear().await;
        assert!(
            asked.contains(r#""path":"/machine/peripheral/more","property":"size""#),
            "{asked}"
        );
        peer.say(r#"{"return": 805306368}"#).await;
        peer.hear().await;
        peer.say(r#"{"return": "much"}"#).await;
    };
    let ask = async { (qmp.number(size.clone()).await, qmp.number(size.clone()).await) };
    let ((number, none), ()) = tokio::join!(ask, answer);
    assert_eq!(number.unwrap(), 805_306_368);
    assert!(none.unwrap_err().to_string().contains("qom-get"));
}

#[tokio::test]
async fn descriptor_goes_with_its_command() {
    let (qmp, mut peer) = connected().await;
    let (read, write) = io::pipe().unwrap();
    let answer = async {
        let mut text = [0; 256];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = rustix::net::RecvAncillaryBuffer::new(&mut space);
        let receive = || {
            let flags = rustix::net::RecvFlags::empty();
            let mut parts = [io::IoSliceMut::new(&mut text)];
            Ok(rustix::net::recvmsg(&peer.0, &mut parts, &mut ancillary, flags)?)
        };
        let received = peer.0.async_io(Interest::READABLE, receive).await;
        let line = &text[..received.unwrap().bytes];
        assert_eq!(line, b"{\"execute\":\"getfd\",\"arguments\":{\"fdname\":\"tap\"}}\n");
        let Some(rustix::net::RecvAncillaryMessage::ScmRights(mut fds)) = ancillary.drain().next()
        else {
            panic!("no descriptor came")
        };
        io::Write::write_all(&mut std::fs::File::from(fds.next().unwrap()), b"it works").unwrap();
        peer.say(r#"{"return": {}}"#).await;
    };
    let write: Arc<OwnedFd> = Arc::new(write.into());
    let (passed, ()) = tokio::join!(qmp.pass_fd("tap", &write), answer);
    passed.unwrap();
    drop(write);
    assert_eq!(io::read_to_string(read).unwrap(), "it works");
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
