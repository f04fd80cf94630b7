//! To be written: yamux over one serial port, hybrid-vsock handshake. Contract:
use tokio::io::{AsyncRead, AsyncWrite};

/// Anything that can carry a ttrpc connection.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Duplex for T {}

/// One byte stream between host and guest.
pub type ChannelStream = Box<dyn Duplex>;
