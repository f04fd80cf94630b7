//! The server's socket.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use anyhow::Context;
use kata_shim_api::address::SocketAddress;

/// The outcome of [`bind`].
#[derive(Debug)]
pub(crate) enum Bound {
    /// The socket is new and listens: who connects is heard as soon as somebody accepts.
    Fresh(UnixListener),
    /// A living server has it.
    Served,
}

/// Whether somebody listens at `address`.
pub(crate) fn is_served(address: &SocketAddress) -> bool {
    UnixStream::connect(address.path()).is_ok()
}

/// Makes the socket, for its owner's eyes only, and the directory that it is in. One that a dead
/// server left is replaced.
pub(crate) fn bind(address: &SocketAddress) -> anyhow::Result<Bound> {
    let path = address.path();
    if let Some(dir) = path.parent() {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.with_context(|| format!("cannot create the directory {}", dir.display()))?;
    }
    match listen(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if is_served(address) {
                return Ok(Bound::Served);
            }
            fs::remove_file(path).and_then(|()| listen(path))
        }
        result => result,
    }
    .map(Bound::Fresh)
    .with_context(|| format!("cannot listen on {}", path.display()))
}

/// Removes the socket of a server that is dead. That of a living one stays: the bundle of a pod's
/// member names it too.
pub(crate) fn remove_stale(address: &SocketAddress) -> anyhow::Result<()> {
    if is_served(address) {
        return Ok(());
    }
    let path = address.path();
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Listens, for connections of this user only. Before the mode is set nobody else could do harm
/// either: the server looks at who connects.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_private_found_while_served_and_replaced_when_stale() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s/socket");
        let address: SocketAddress = format!("unix://{}", path.display()).parse().unwrap();
        let Bound::Fresh(listener) = bind(&address).unwrap() else {
            panic!("nobody else is there")
        };
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(bind(&address).unwrap(), Bound::Served));
        drop(listener);
        assert!(!is_served(&address));
        let Bound::Fresh(listener) = bind(&address).unwrap() else {
            panic!("the old one is stale")
        };
        remove_stale(&address).unwrap();
        assert!(path.exists(), "it is served");
        drop(listener);
        remove_stale(&address).unwrap();
        assert!(!path.exists());
        remove_stale(&address).unwrap();
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let address: SocketAddress = "unix:///proc/nowhere/socket".parse().unwrap();
        assert!(bind(&address).unwrap_err().to_string().contains("/proc/nowhere"));
    }
}
