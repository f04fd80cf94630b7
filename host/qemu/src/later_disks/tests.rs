use std::collections::BTreeSet;

use kata_hypervisor::{GuestRoot, LaterDisks as Room};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::*;
use crate::machine::Machine;

/// A QEMU that does what it is told, and writes that down.
#[derive(Debug, Clone, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    /// The commands since the last look, each with the one word of its arguments that tells the
    /// most.
    fn since(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    async fn serve(self, socket: UnixStream, lets_go: bool, refuses: &'static str) {
        let (read, mut write) = socket.into_split();
        write.write_all(b"{\"QMP\": {}}\n").await.unwrap();
        let mut lines = BufReader::new(read).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let message: Value = serde_json::from_str(&line).unwrap();
            let (command, arguments) = (&message["execute"], &message["arguments"]);
            let keys = ["fdset-id", "node-name", "id"];
            let word = keys.iter().find_map(|key| arguments.get(key)).unwrap_or(&Value::Null);
            let command = command.as_str().unwrap();
            self.0.lock().unwrap().push(format!("{command} {word}"));
            let answer = if command == refuses {
                "{\"error\": {\"desc\": \"not now\"}}\n".to_owned()
            } else if command == "device_del" && lets_go {
                let event = json!({ "event": "DEVICE_DELETED", "data": { "device": word } });
                format!("{event}\n{{\"return\": {{}}}}\n")
            } else {
                "{\"return\": {}}\n".to_owned()
            };
            write.write_all(answer.as_bytes()).await.unwrap();
        }
    }
}

/// A VM with room for two disks, on a machine with a port for each.
async fn vm(lets_go: bool, refuses: &'static str) -> (Arc<LaterDisks>, Qmp, Told) {
    let spec = VmSpec {
        later_disks: Room { readonly: 1, writable: 1 },
        ..VmSpec::bare("web", "/kernel", GuestRoot::Initrd("/initrd".into()), "/run/kata/web")
    };
    let places = Arc::new(HotPlug::of(Machine::MicrovmPci, &spec));
    let later = Arc::new(LaterDisks::of(&spec, places, DiskIo::default()));
    let (ours, theirs) = UnixStream::pair().unwrap();
    let told = Told::default();
    tokio::spawn(told.clone().serve(theirs, lets_go, refuses));
    let deleted = Arc::clone(&later);
    let deleted = Box::new(move |device: &str| deleted.deleted(device));
    let qmp = Qmp::connect(ours, deleted).await.unwrap();
    told.since();
    (later, qmp, told)
}

fn disk(id: &str) -> DiskSpec {
    DiskSpec { id: id.into(), path: "/dev/null".into(), readonly: false }
}

#[tokio::test]
async fn disk_that_goes_is_free_before_the_guest_lets_go() {
    let (later, qmp, told) = vm(true, "").await;
    let found = later.attach(&qmp, &disk("one")).await.unwrap();
    assert_eq!(found, GuestDisk::with_serial("one"));
    assert!(later.has("one"));
    assert_eq!(
        told.since(),
        [
            "add-fd 1048576",
            "blockdev-add \"file-one\"",
            "blockdev-add \"raw-one\"",
            "device_add \"disk-one\"",
        ]
    );
    later.detach(&qmp, "one").await.unwrap();
    later.detach(&qmp, "one").await.unwrap();
    assert!(!later.has("one"));
    assert_eq!(
        told.since(),
        [
            "blockdev-add \"nothing-one\"",
            "blockdev-reopen null",
            "blockdev-del \"file-one\"",
            "remove-fd 1048576",
            "device_del \"disk-one\"",
            "blockdev-del \"raw-one\"",
            "blockdev-del \"nothing-one\"",
        ]
    );
    // Its id and its place can be had again.
    for id in ["one", "two"] {
        later.attach(&qmp, &disk(id)).await.unwrap();
    }
    let refused = later.attach(&qmp, &disk("three")).await.unwrap_err().to_string();
    assert!(refused.contains("no room for the disk three"), "{refused}");
}

#[tokio::test]
async fn disk_that_the_guest_keeps_keeps_its_place() {
    let (later, qmp, _told) = vm(false, "").await;
    for id in ["one", "two"] {
        later.attach(&qmp, &disk(id)).await.unwrap();
    }
    later.detach(&qmp, "one").await.unwrap();
    let third = disk("three");
    let waiting = later.attach(&qmp, &third);
    tokio::pin!(waiting);
    assert!(timeout(Duration::from_millis(50), &mut waiting).await.is_err(), "it has no place");
    later.deleted("disk-one");
    waiting.await.unwrap();
    assert!(later.has("three") && !later.has("one"));
}

#[tokio::test]
async fn disk_that_is_refused_leaves_nothing() {
    let (later, qmp, told) = vm(true, "device_add").await;
    let refused = later.attach(&qmp, &disk("one")).await.unwrap_err().to_string();
    assert_eq!(refused, "the hypervisor refused `device_add`: not now");
    assert!(!later.has("one"));
    let undone = ["blockdev-del \"raw-one\"", "blockdev-del \"file-one\"", "remove-fd 1048576"];
    assert_eq!(told.since()[4..], undone);
    let missing = DiskSpec { path: "/no/such/disk".into(), ..disk("two") };
    let refused = later.attach(&qmp, &missing).await.unwrap_err();
    assert!(kata_log::chain(&refused).contains("/no/such/disk"), "{refused}");
    let free: BTreeSet<_> = std::iter::from_fn(|| later.places.take()).collect();
    assert_eq!(free.into_iter().collect::<Vec<_>>(), ["hot0", "hot1"]);
}
