//! The protocol between the host and the agent in the guest: ttrpc services and protobuf messages,
//! generated from `proto/`, which is compatible with Kata Containers 4 in both directions.
//!
//! The agent serves [`agent_ttrpc::AgentService`] and [`health_ttrpc::Health`] on one connection.
//! Messages carry no documentation here: it stands in the `.proto` files.

mod boot_stamps;
pub mod convert;
mod cpu_count;
mod out_of_memory;

pub use boot_stamps::BootStamps;
pub use cpu_count::{cpu_count, cpu_count_request};
pub use generated::{agent, agent_ttrpc, csi, health, health_ttrpc, oci, types};
pub use out_of_memory::{say_out_of_memory, says_out_of_memory};
pub use protobuf::well_known_types::empty;

#[allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::needless_pass_by_value,
    clippy::semicolon_if_nothing_returned,
    clippy::too_many_lines,
    clippy::unwrap_used,
    reason = "generated code"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/modules.rs"));
}
