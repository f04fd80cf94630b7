use std::sync::Mutex;

use serde_json::json;
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

/// A QEMU that does what it is told, but for what it refuses, and writes that down.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    commands: Vec<String>,
    refuses: &'static str,
    lets_go: bool,
}

impl Told {
    pub(crate) async fn connected(deleted: Deleted) -> (Qmp, Self) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let told = Self::default();
        tokio::spawn(told.clone().serve(theirs));
        let qmp = Qmp::connect(ours, deleted).await.unwrap();
        told.since();
        (qmp, told)
    }

    /// The commands since the last look, each with the one word of its arguments that tells the
    /// most.
    pub(crate) fn since(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().commands)
    }

    /// Refuses this command from now on, and no other one.
    pub(crate) fn refuse(&self, command: &'static str) {
        self.0.lock().unwrap().refuses = command;
    }

    /// Its guest lets go of devices when it is asked to.
    pub(crate) fn let_go(&self) {
        self.0.lock().unwrap().lets_go = true;
    }

    fn answer(&self, line: &str) -> String {
        let message: Value = serde_json::from_str(line).unwrap();
        let (command, arguments) = (&message["execute"], &message["arguments"]);
        let keys = ["fdset-id", "fdname", "node-name", "id"];
        let word = keys.iter().find_map(|key| arguments.get(key)).unwrap_or(&Value::Null);
        let command = command.as_str().unwrap();
        let mut state = self.0.lock().unwrap();
        state.commands.push(format!("{command} {word}"));
        if command == state.refuses {
            "{\"error\": {\"desc\": \"not now\"}}\n".to_owned()
        } else if command == "device_del" && state.lets_go {
            let event = json!({ "event": "DEVICE_DELETED", "data": { "device": word } });
            format!("{event}\n{{\"return\": {{}}}}\n")
        } else {
            "{\"return\": {}}\n".to_owned()
        }
    }

    async fn serve(self, socket: UnixStream) {
        let (read, mut write) = socket.into_split();
        write.write_all(b"{\"QMP\": {}}\n").await.unwrap();
        let mut lines = BufReader::new(read).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            write.write_all(self.answer(&line).as_bytes()).await.unwrap();
        }
    }
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
