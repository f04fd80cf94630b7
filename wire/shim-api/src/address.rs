//! Where a shim listens. The address is computed, never looked up: every `start` for a container of
//! a pod must come to the same socket from the sandbox's id alone.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Where sockets are, unless containerd (2.3 and later) names another place.
pub const SOCKET_DIR: &str = "/run/containerd/s";

/// The file in a bundle that holds the address, for a containerd that has been restarted.
pub const ADDRESS_FILE: &str = "address";

/// The longest path that fits a `sockaddr_un` with room to spare, as containerd counts (unix(7):
/// 108 with the final NUL).
const MAX_PATH: usize = 106;

/// The address of a shim's socket. Displays as containerd wants it: `unix:///path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketAddress(PathBuf);

/// Why an address cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// The directory leaves no room for the name.
    #[error("the socket path {} has {} bytes, at most {MAX_PATH} are possible: use a shorter socket directory", path.display(), path.as_os_str().len())]
    TooLong {
        /// What was asked for.
        path: PathBuf,
    },
    /// Only sockets in the file system are used.
    #[error("the shim address {text:?} is not of the form unix:///path")]
    NotUnix {
        /// What was found.
        text: String,
    },
}

impl SocketAddress {
    /// The socket of sandbox `id`: `dir` (or [`SOCKET_DIR`]) and the SHA-256 of containerd's
    /// address, its namespace, and the id joined as a path.
    pub fn of_sandbox(
        dir: Option<&Path>,
        containerd: &str,
        namespace: &str,
        id: &str,
    ) -> Result<Self, AddressError> {
        let mut name = String::with_capacity(64);
        for byte in Sha256::digest(join(&[containerd, namespace, id])) {
            name.push_str(&format!("{byte:02x}"));
        }
        let path = dir.unwrap_or(Path::new(SOCKET_DIR)).join(name);
        if path.as_os_str().len() > MAX_PATH {
            return Err(AddressError::TooLong { path });
        }
        Ok(Self(path))
    }

    /// The socket file.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The address that [`write_to`](Self::write_to) left in `bundle`. Reads a file;
    /// [`io::ErrorKind::NotFound`] if there is none.
    pub fn read_from(bundle: &Path) -> io::Result<Self> {
        let text = fs::read_to_string(bundle.join(ADDRESS_FILE))?;
        text.trim().parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Leaves the address in `bundle`, whole or not at all. Writes a file.
    pub fn write_to(&self, bundle: &Path) -> io::Result<()> {
        write_whole(bundle, ADDRESS_FILE, &self.to_string())
    }
}

impl fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix://{}", self.0.display())
    }
}

impl std::str::FromStr for SocketAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text.strip_prefix("unix://") {
            Some(path) if path.starts_with('/') => Ok(Self(path.into())),
            _ => Err(AddressError::NotUnix { text: text.to_owned() }),
        }
    }
}

/// Puts `content` into `bundle`/`name` so that a reader finds the old file or the new one, never
/// half of it.
///
/// No newline is added: containerd takes the content as it is.
pub fn write_whole(bundle: &Path, name: &str, content: &str) -> io::Result<()> {
    use std::io::Write;
    let unfinished = bundle.join(format!(".{name}"));
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished)?;
    file.write_all(content.as_bytes())?;
    fs::rename(&unfinished, bundle.join(name))
}

/// Joins path elements as containerd does (Go's `filepath.Join`): empty ones are left out, the
/// result is cleaned lexically.
fn join(elements: &[&str]) -> String {
    let joined = elements
        .iter()
        .copied()
        .filter(|element| !element.is_empty())
        .collect::<Vec<_>>()
        .join("/");
    let absolute = joined.starts_with('/');
    let mut clean: Vec<&str> = Vec::new();
    for part in joined.split('/') {
        match part {
            "" | "." => {}
            ".." if clean.last().is_some_and(|last| *last != "..") => {
                clean.pop();
            }
            ".." if absolute => {}
            part => clean.push(part),
        }
    }
    format!("{}{}", if absolute { "/" } else { "" }, clean.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_sandbox_is_the_hash_of_the_joined_path() {
        let address =
            SocketAddress::of_sandbox(None, "/run/containerd/containerd.sock", "default", "abc")
                .unwrap();
        // printf %s /run/containerd/containerd.sock/default/abc | sha256sum
        assert_eq!(
            address.to_string(),
            "unix:///run/containerd/s/8cb244a719603fe00870d5ce1d8e1f1db43a654cb993d107df1f1ae23ddffa59"
        );
    }

    #[test]
    fn join_cleans_like_go() {
        for (elements, expected) in [
            (["/run/c.sock", "ns", "id"], "/run/c.sock/ns/id"),
            (["", "default", "id"], "default/id"),
            (["/run//c/", "ns", "id"], "/run/c/ns/id"),
            (["unix:///run/c.sock", "ns", "id"], "unix:/run/c.sock/ns/id"),
            (["/a/./b/../c", "ns", "id"], "/a/c/ns/id"),
            (["/../a", "ns", "id"], "/a/ns/id"),
            (["../a", "ns", "id"], "../a/ns/id"),
        ] {
            assert_eq!(join(&elements), expected);
        }
    }

    #[test]
    fn of_sandbox_refuses_a_directory_that_leaves_no_room() {
        let long = PathBuf::from(format!("/{}", "d".repeat(60)));
        assert!(matches!(
            SocketAddress::of_sandbox(Some(&long), "", "n", "i"),
            Err(AddressError::TooLong { .. })
        ));
    }

    #[test]
    fn an_address_survives_its_file_without_a_newline() {
        let bundle = tempfile::tempdir().unwrap();
        let address = SocketAddress::of_sandbox(Some(Path::new("/run/x")), "a", "n", "i").unwrap();
        address.write_to(bundle.path()).unwrap();
        address.write_to(bundle.path()).unwrap();
        assert_eq!(fs::read_to_string(bundle.path().join("address")).unwrap(), address.to_string());
        assert_eq!(SocketAddress::read_from(bundle.path()).unwrap(), address);
        assert_eq!(fs::read_dir(bundle.path()).unwrap().count(), 1);
    }

    #[test]
    fn parsing_refuses_other_transports() {
        assert!("vsock://3:1024".parse::<SocketAddress>().is_err());
        assert!("unix://relative".parse::<SocketAddress>().is_err());
    }
}
