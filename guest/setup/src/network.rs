//! The guest's network, as the host tells it to be: interfaces with their addresses, routes and
//! neighbours, over rtnetlink.
//!
//! All containers share the guest's network namespace. The types here are plain; the agent service
//! converts the protocol's.

mod interfaces;
mod neighbours;
mod routes;

use std::io;
use std::net::IpAddr;

pub use interfaces::{Interface, parse_hardware_address};
pub use neighbours::Neighbour;
pub use routes::Route;

use futures::TryStreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};

/// An address and the length of its network's prefix: at most 32 for IPv4, 128 for IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// The address.
    pub address: IpAddr,
    /// How many leading bits name the network.
    pub length: u8,
}

impl Prefix {
    /// Checks `length` against the family of `address`.
    #[must_use]
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let most = if address.is_ipv4() { 32 } else { 128 };
        (length <= most).then_some(Self { address, length })
    }
}

/// Why the network could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No netlink.
    #[error("cannot reach the kernel's network configuration")]
    Connect(#[source] io::Error),
    /// No interface has this name or hardware address, and none appeared in time.
    #[error("no network interface {wanted:?} in the guest")]
    NoInterface {
        /// Name or hardware address.
        wanted: String,
    },
    /// The kernel refused a change.
    #[error("cannot {what}")]
    Change {
        /// The change, as it would follow "to".
        what: String,
        /// What the kernel said.
        #[source]
        source: rtnetlink::Error,
    },
    /// The kernel refused to list something.
    #[error("cannot list {what}")]
    List {
        /// Of what.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: rtnetlink::Error,
    },
}

/// A connection to the kernel's network configuration; dropping it ends the connection.
#[derive(Debug)]
pub struct Network {
    handle: Handle,
}

impl Network {
    /// Connects. Call it inside of the runtime.
    ///
    /// # Errors
    ///
    /// Fails without netlink, or when file descriptors have run out.
    pub fn connect() -> Result<Self, NetworkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetworkError::Connect)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    async fn links(&self) -> Result<Vec<LinkMessage>, NetworkError> {
        self.handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|source| NetworkError::List { what: "network interfaces", source })
    }

    async fn index_of(&self, name: &str) -> Result<u32, NetworkError> {
        let links = self.links().await?;
        links
            .iter()
            .find(|link| link_name(link) == Some(name))
            .map(|link| link.header.index)
            .ok_or_else(|| NetworkError::NoInterface { wanted: name.to_owned() })
    }
}

fn link_name(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

fn change(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    let what = what.into();
    move |source| NetworkError::Change { what, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_length_is_bounded_by_family() {
        let v4: IpAddr = "10.0.0.1".parse().unwrap();
        let v6: IpAddr = "fd00::1".parse().unwrap();
        assert!(Prefix::new(v4, 32).is_some());
        assert!(Prefix::new(v4, 33).is_none());
        assert!(Prefix::new(v6, 128).is_some());
        assert!(Prefix::new(v6, 129).is_none());
    }
}
