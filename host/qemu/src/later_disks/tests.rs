use std::collections::BTreeSet;

use kata_hypervisor::{GuestRoot, LaterDisks as Room};

use super::*;
use crate::machine::Machine;
use crate::qmp::tests::Told;

/// A VM with room for two disks, on a machine with a port for each.
async fn vm(lets_go: bool) -> (Arc<LaterDisks>, Qmp, Told) {
    let spec = VmSpec {
        later_disks: Room { readonly: 1, writable: 1 },
        ..VmSpec::bare("web", "/kernel", GuestRoot::Initrd("/initrd".into()), "/run/kata/web")
    };
    let places = Arc::new(HotPlug::of(Machine::MicrovmPci, &spec));
    let later = Arc::new(LaterDisks::of(&spec, places, DiskIo::default()));
    let deleted = Arc::clone(&later);
    let (qmp, told) = Told::connected(Box::new(move |device| deleted.deleted(device))).await;
    if lets_go {
        told.let_go();
    }
    (later, qmp, told)
}

fn disk(id: &str) -> DiskSpec {
    DiskSpec { id: id.into(), path: "/dev/null".into(), readonly: false }
}

#[tokio::test]
async fn disk_that_goes_is_free_before_the_guest_lets_go() {
    let (later, qmp, told) = vm(true).await;
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
    let (later, qmp, _told) = vm(false).await;
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
    let (later, qmp, told) = vm(true).await;
    told.refuse("device_add");
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

#[tokio::test]
async fn detaching_goes_on_where_qemu_has_refused_to() {
    let (later, qmp, told) = vm(true).await;
    later.attach(&qmp, &disk("one")).await.unwrap();
    told.since();
    let steps = [
        ("blockdev-add", "blockdev-add \"nothing-one\""),
        ("blockdev-reopen", "blockdev-reopen null"),
        ("blockdev-del", "blockdev-del \"file-one\""),
        ("remove-fd", "remove-fd 1048576"),
    ];
    for (number, (command, _)) in steps.iter().enumerate() {
        told.refuse(command);
        later.detach(&qmp, "one").await.unwrap_err();
        assert!(later.has("one"), "it is said to be gone, and QEMU has the host's device open");
        let refused = steps[number].1;
        let before = number.checked_sub(1).map(|before| steps[before].1);
        assert_eq!(told.since(), before.into_iter().chain([refused]).collect::<Vec<_>>());
    }
    told.refuse("");
    later.detach(&qmp, "one").await.unwrap();
    assert!(!later.has("one"));
    assert_eq!(told.since()[..2], ["remove-fd 1048576", "device_del \"disk-one\""]);
}
