//! The metrics that a task's stats are made of, in the shapes of both cgroup versions.

use protobuf::Message;
use protobuf::well_known_types::any::Any;

/// `io.containerd.cgroups.v1`: what a host with legacy cgroups shows.
pub mod v1 {
    pub use containerd_shim_protos::cgroups::metrics::*;
}

/// `io.containerd.cgroups.v2`: what a host with the unified hierarchy shows.
pub mod v2 {
    pub use containerd_shim_protos::cgroups_v2::metrics::*;
}

/// Metrics as [`StatsResponse`](crate::api::StatsResponse) carries them. Engines choose how to read them by this name.
pub fn v1_any(metrics: &v1::Metrics) -> Any {
    pack("io.containerd.cgroups.v1.Metrics", metrics)
}

/// As [`v1_any`], for version 2.
pub fn v2_any(metrics: &v2::Metrics) -> Any {
    pack("io.containerd.cgroups.v2.Metrics", metrics)
}

fn pack(type_name: &str, metrics: &impl Message) -> Any {
    let value =
        metrics.write_to_bytes().expect("a message that lives in memory can be written to memory");
    Any { type_url: type_name.to_owned(), value, ..Any::default() }
}

#[cfg(test)]
mod tests {
    use protobuf::MessageFull;

    use super::*;

    #[test]
    fn type_names_are_those_of_the_messages() {
        assert_eq!(v1_any(&v1::Metrics::default()).type_url, v1::Metrics::descriptor().full_name());
        assert_eq!(v2_any(&v2::Metrics::default()).type_url, v2::Metrics::descriptor().full_name());
    }
}
