//! Table and picture of one start, compared with what was looked at and found good. After a change
//! that is meant, run with `UPDATE_SNAPSHOTS=1` and look again.

use std::fs;
use std::path::Path;

use kata_timeline::{Moment, Stage, Stamp, Timeline, svg, table};

/// A start as it was measured, in tenths of milliseconds.
const START: &[(Stage, u64)] = &[
    (Stage::ShimAsked, 0),
    (Stage::ServerUp, 95),
    (Stage::CreateAsked, 310),
    (Stage::PlanReady, 362),
    (Stage::FootprintMade, 371),
    (Stage::NetworkReady, 389),
    (Stage::FileServerExecuted, 402),
    (Stage::VmmExecuted, 451),
    (Stage::VmmGreeted, 1150),
    (Stage::KernelEntered, 1502),
    (Stage::KernelDone, 11_210),
    (Stage::AgentStarted, 11_295),
    (Stage::AgentReady, 14_020),
    (Stage::AgentReached, 14_110),
    (Stage::SandboxCreated, 14_803),
    (Stage::GuestNetworkReady, 14_805),
    (Stage::RoomMade, 14_812),
    (Stage::StorageShared, 14_840),
    (Stage::ContainerCreated, 17_777),
    (Stage::StartAsked, 17_904),
    (Stage::ProcessExecuted, 18_100),
    (Stage::FirstOutput, 18_950),
];

fn timeline() -> Timeline {
    let stamps = START.iter().map(|&(stage, tenths)| Stamp {
        stage,
        at: Moment::from_nanos(1_000_000_000 + tenths * 100_000),
    });
    Timeline {
        sandbox: "web-1".into(),
        stamps: stamps.collect(),
        guest_uncertainty_ns: Some(1_300_000),
    }
}

fn compare(name: &str, fresh: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name);
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs::write(&path, fresh).expect("the snapshot cannot be written");
    }
    let kept = fs::read_to_string(&path).expect("the snapshot cannot be read");
    assert_eq!(fresh, kept, "{name} differs; look at it, and update it if the change is meant");
}

#[test]
fn table_is_as_it_was() {
    compare("start.txt", &table(&timeline()));
}

#[test]
fn picture_is_as_it_was() {
    compare("start.svg", &svg(&timeline()));
}

#[test]
fn late_first_byte_does_not_squeeze_the_picture() {
    let mut late = timeline();
    let last = late.stamps.last_mut().unwrap();
    last.at = Moment::from_nanos(3600 * 1_000_000_000);
    let picture = svg(&late);
    assert!(picture.contains("first output after 3599000 ms"), "{picture}");
    assert!(picture.contains("boots 971"), "{picture}");
}

#[test]
fn empty_record_is_a_picture_too() {
    let empty = Timeline { sandbox: String::new(), stamps: Vec::new(), guest_uncertainty_ns: None };
    assert!(svg(&empty).contains("nothing was recorded"));
    assert_eq!(table(&empty).lines().count(), 1);
}
