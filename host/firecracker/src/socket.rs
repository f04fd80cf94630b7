//! The connection to a socket that the VMM makes.

use std::io;
use std::time::Duration;

use kata_hypervisor::VmmDir;
use kata_linux::directory::DirectoryWatch;
use tokio::net::UnixStream;

/// Connects to the socket `name` as soon as it is there and somebody listens. Whoever calls bounds
/// it with the VMM's end.
pub(crate) async fn connect(
    directory: &VmmDir,
    name: &str,
    again: Duration,
) -> io::Result<UnixStream> {
    let watch = DirectoryWatch::open(directory.path(".").as_ref())?;
    loop {
        match directory.connect(name).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => watch.next().await?,
            // Between bind(2) and listen(2), for which there is no event.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                tokio::time::sleep(again).await;
            }
            connected => return connected,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[tokio::test]
    async fn socket_that_comes_later_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        let directory = VmmDir::make(&path).unwrap();
        let connecting = connect(&directory, "api", Duration::from_millis(1));
        tokio::pin!(connecting);
        // Polled until it waits, so the socket is what wakes it.
        assert!(tokio::time::timeout(Duration::ZERO, &mut connecting).await.is_err());
        std::fs::write(path.join("other"), "").unwrap();
        let _listener = UnixListener::bind(path.join("api")).unwrap();
        tokio::time::timeout(Duration::from_secs(10), connecting).await.unwrap().unwrap();
    }
}
