//! Who may talk to the shim.

use std::io;

use futures::stream;
use tokio::net::{UnixListener, UnixStream};
use ttrpc::asynchronous::transport::Listener;

/// Connections on `socket` as the ttrpc server takes them, without those of other users.
///
/// The socket's mode keeps others out already; this holds when the socket is in a directory that somebody else has made.
pub fn listener(socket: UnixListener) -> Listener {
    Listener::new(stream::unfold(socket, |socket| async {
        let connection = next(&socket).await;
        Some((connection, socket))
    }))
}

async fn next(socket: &UnixListener) -> io::Result<UnixStream> {
    loop {
        let (connection, _) = socket.accept().await?;
        let peer = connection.peer_cred()?.uid();
        if may_connect(peer, rustix::process::geteuid().as_raw()) {
            return Ok(connection);
        }
        tracing::warn!(peer, "refused a connection of another user");
    }
}

/// Whether a peer with this uid may drive containers that run as `own`.
fn may_connect(peer: u32, own: u32) -> bool {
    peer == own || peer == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_user_and_root_may_connect() {
        assert!(may_connect(0, 0));
        assert!(may_connect(7, 7));
        assert!(may_connect(0, 7));
        assert!(!may_connect(7, 0));
        assert!(!may_connect(7, 8));
    }
}
