//! Points in time as containerd writes them.

use std::time::{SystemTime, UNIX_EPOCH};

use protobuf::well_known_types::timestamp::Timestamp;

/// A point in time, as `google.protobuf.Timestamp`. Before 1970 it is the epoch: no clock of a running host says so.
pub(crate) fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).expect("less than a thousand million"),
        ..Default::default()
    }
}
