//! What can go wrong on the channel.

/// Why a stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The carrier is gone: the VM has ended, or the other side broke the multiplexing protocol.
    #[error("the channel between host and guest is closed")]
    Closed,
    /// The other side has nothing that listens on this port.
    #[error("nothing in the guest listens on port {port}")]
    Refused {
        /// The port that was dialled.
        port: u32,
    },
    /// [`MAX_STREAMS`](crate::MAX_STREAMS) streams are open.
    #[error("{limit} streams to the guest are open already; no more are allowed")]
    TooManyStreams {
        /// How many are allowed.
        limit: usize,
    },
    /// The other side did not speak the handshake.
    #[error("the guest answered port {port} with something that is not a handshake")]
    Handshake {
        /// The port that was dialled.
        port: u32,
        /// What was wrong with its answer.
        #[source]
        source: crate::handshake::HandshakeError,
    },
    /// Writing to or reading from the stream failed during the handshake.
    #[error("cannot open port {port} of the guest")]
    Io {
        /// The port that was dialled.
        port: u32,
        /// What the stream said.
        #[source]
        source: std::io::Error,
    },
}
