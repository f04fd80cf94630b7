//! What the KSM throttler hears: a kick, when a virtual machine is about to start.
//!
//! It is gRPC without encryption over a unix socket: the service `ksm.KSMThrottler` with the one
//! unary method `Kick`, whose request and answer are both `google.protobuf.Empty`. An empty message
//! is no bytes at all, so that nothing but the frames of HTTP/2 is left of gRPC (its "gRPC over
//! HTTP2" document), see [`kick`] and [`serve`].
//!
//! ```text
//!   client                                          throttler
//!     POST /ksm.KSMThrottler/Kick, 00 00000000 ───▶   changes the settings
//!     ◀──────── 200, 00 00000000, grpc-status: 0
//! ```

mod client;
mod server;

pub use client::{KickError, kick};
pub use server::serve;

/// Where the throttler listens unless it was told otherwise.
pub const SOCKET: &str = "/var/run/kata-ksm-throttler/ksm.sock";

/// The method's path.
const KICK: &str = "/ksm.KSMThrottler/Kick";

/// A message of no bytes that is not compressed: a flag and the length.
const EMPTY: [u8; 5] = [0; 5];

#[cfg(test)]
mod tests;
