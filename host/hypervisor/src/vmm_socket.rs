//! Connecting to a socket in a directory that the VMM can write to.
//!
//! A VMM that its guest has taken over may have put a link there in place of its socket, to one
//! that only this process may speak to. So the name is followed nowhere, and what is connected to
//! is what was looked at.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use tokio::net::UnixStream;

/// Connects to the socket `name` in `directory`. As the path of the descriptor is short, the
/// directory's own may have any length.
///
/// # Errors
/// Those of connect(2); also for a symbolic link wherever it leads, and for what is no socket.
pub async fn connect_in(directory: impl AsFd, name: &str) -> io::Result<UnixStream> {
    let socket = open_socket(directory, name)?;
    // Held until the connection is made or refused.
    UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd())).await
}

fn open_socket(directory: impl AsFd, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let socket = openat2(directory, name, flags, Mode::empty(), resolve)?;
    if FileType::from_raw_mode(fstat(&socket)?.st_mode) != FileType::Socket {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{name} in the VMM's directory is no socket"),
        ));
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn socket_of_the_directory_is_connected_to_and_none_that_a_link_leads_to() {
        let outside = tempfile::tempdir().unwrap();
        let foreign = outside.path().join("foreign");
        let _foreign = UnixListener::bind(&foreign).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let _own = UnixListener::bind(at("own")).unwrap();
        symlink(&foreign, at("link")).unwrap();
        symlink("own", at("link-inside")).unwrap();
        symlink(outside.path(), at("way")).unwrap();
        fs::write(at("file"), "").unwrap();
        let opened = File::open(directory.path()).unwrap();
        let error = async |name: &str| connect_in(&opened, name).await.unwrap_err();

        connect_in(&opened, "own").await.unwrap();
        for name in ["link", "link-inside", "way/foreign", "../foreign"] {
            let error = error(name).await;
            assert_ne!(error.kind(), io::ErrorKind::NotFound, "{name}: {error}");
        }
        assert!(error("file").await.to_string().contains("no socket"));
        assert_eq!(error("missing").await.kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn socket_that_nobody_listens_on_any_more_is_refused_as_ever() {
        let directory = tempfile::tempdir().unwrap();
        drop(UnixListener::bind(directory.path().join("own")).unwrap());
        let opened = File::open(directory.path()).unwrap();
        let error = connect_in(&opened, "own").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
