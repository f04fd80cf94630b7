//! How host and guest reach each other: one `dial(port)`, one `accept()`, whatever carries the
//! bytes.
//!
//! Where there is no vsock, one virtio-serial port carries many streams through [yamux]. The host
//! is yamux's client and opens every stream, the guest is its server. A stream begins with the
//! handshake of hybrid vsock ([`handshake`]), so that a dialler for Firecracker's and Cloud
//! Hypervisor's unix sockets speaks the same words.
//!
//! ```text
//!  host                                         guest
//!  SerialDialer::dial(1024) ── CONNECT 1024\n ─▶ SerialListener::accept() -> PendingStream { port: 1024 }
//!        Ok(ChannelStream) ◀─────── OK 1024\n ── PendingStream::accept() -> ChannelStream
//!             Err(Refused) ◀── closed ────────── PendingStream::refuse()
//! ```
//!
//! Neither side trusts the other with its memory: streams, windows and line lengths have limits
//! ([`MAX_STREAMS`]).
//!
//! [yamux]: https://github.com/hashicorp/yamux/blob/master/spec.md

mod dial;
pub mod dns_relay;
mod error;
pub mod guest_socket;
pub mod handshake;
mod listen;
mod mux;
pub mod port_forward;

use tokio::io::{AsyncRead, AsyncWrite};

pub use dial::SerialDialer;
pub use error::ChannelError;
pub use listen::{PendingStream, SerialListener};
pub use mux::MAX_STREAMS;

/// The name of the virtio-serial port that carries the channel, as the guest finds it in
/// `/sys/class/virtio-ports/*/name`.
pub const SERIAL_PORT_NAME: &str = "agent.channel.0";

/// The port on which the agent serves ttrpc.
pub const AGENT_PORT: u32 = 1024;
/// The port on which the agent hands out its log.
pub const LOG_PORT: u32 = 1025;
/// The port on which the agent offers a shell, where the administrator allowed one.
pub const DEBUG_CONSOLE_PORT: u32 = 1026;
/// The port on which the agent hands over what programs ask a name server that only the host has
/// ([`dns_relay`]). It is one of ours: other agents, whose ports go on from 1027, do not have it.
pub const DNS_RELAY_PORT: u32 = 1053;
/// The port on which the agent connects the host to TCP ports of the guest's loopback interface
/// ([`port_forward`]). It is one of ours, too.
pub const PORT_FORWARD_PORT: u32 = 1080;

/// Anything that can carry a ttrpc connection.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Duplex for T {}

/// One byte stream between host and guest. Shutting its writing half down is seen by the other side
/// as the end of the file, after everything that was written. Whether the other direction stays
/// open then depends on what carries the stream: over virtio-serial it does, and the vsock of some
/// hypervisors closes both. A protocol that needs half-closed streams has to say the end of a
/// direction in words of its own, as [`port_forward`] does. Dropping a stream without a shutdown
/// ends both directions; what was written before still arrives.
pub type ChannelStream = Box<dyn Duplex>;
