//! Time on the wire.

use std::time::{SystemTime, UNIX_EPOCH};

use protobuf::well_known_types::timestamp::Timestamp;

/// `at` as the protocol writes it. A time before 1970 becomes 1970: containerd takes no earlier one
/// for real.
pub fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        // Below 10^9 by Duration's own promise.
        nanos: since.subsec_nanos().cast_signed(),
        ..Timestamp::default()
    }
}
