//! Who may talk to the shim.

use std::io;
use std::time::Duration;

use futures::stream;
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};
use ttrpc::asynchronous::transport::Listener;

/// The time after a connection that could not be taken until the next try: too many files are open,
/// and nothing tells when one is closed. The connection waits in the socket meanwhile.
const PAUSE: Duration = Duration::from_millis(100);

/// Connections on `socket` as the ttrpc server takes them, without those of other users.
///
/// The socket's mode keeps others out already; this holds when the socket is in a directory that
/// somebody else has made.
pub fn listener(socket: UnixListener) -> Listener {
    Listener::new(stream::unfold(socket, |socket| async {
        let connection = next(|| socket.accept()).await;
        Some((io::Result::Ok(connection), socket))
    }))
}

/// The next connection of somebody who may connect. Never an error: the server would ask again at
/// once, and find the same one.
async fn next<F>(accept: impl Fn() -> F) -> UnixStream
where
    F: Future<Output = io::Result<(UnixStream, SocketAddr)>>,
{
    loop {
        let connection = match accept().await {
            Ok((connection, _)) => connection,
            Err(error) => {
                tracing::warn!("a connection is not taken yet: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        match connection.peer_cred().map(|peer| peer.uid()) {
            Ok(peer) if may_connect(peer, rustix::process::geteuid().as_raw()) => {
                return connection;
            }
            Ok(peer) => tracing::warn!(peer, "refused a connection of another user"),
            Err(error) => tracing::warn!("refused a connection of nobody knows whom: {error}"),
        }
    }
}

/// Whether a peer with this uid may drive containers that run as `own`.
fn may_connect(peer: u32, own: u32) -> bool {
    peer == own || peer == 0
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Instant;

    use super::*;

    #[test]
    fn only_the_same_user_and_root_may_connect() {
        assert!(may_connect(0, 0));
        assert!(may_connect(7, 7));
        assert!(may_connect(0, 7));
        assert!(!may_connect(7, 0));
        assert!(!may_connect(7, 8));
    }

    #[tokio::test]
    async fn listening_goes_on_after_a_connection_that_could_not_be_taken() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let socket = UnixListener::bind(&path).unwrap();
        let _peer = UnixStream::connect(&path).await.unwrap();
        let begin = Instant::now();
        let tries = Cell::new(0);
        let accept = async || {
            tries.set(tries.get() + 1);
            match tries.get() {
                1 => Err(rustix::io::Errno::MFILE.into()),
                _ => socket.accept().await,
            }
        };
        next(accept).await;
        assert_eq!(tries.get(), 2);
        assert!(begin.elapsed() >= PAUSE);
    }
}
