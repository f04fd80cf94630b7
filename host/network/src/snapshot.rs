//! A network namespace as plain data.

use std::fmt;
use std::net::IpAddr;

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// `None` for an address of another length.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// An address and the length of its network's prefix: at most 32 for IPv4, 128 for IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// The address.
    pub address: IpAddr,
    /// How many leading bits name the network.
    pub length: u8,
}

/// An interface of the namespace, whatever its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// What every interface that can be joined has.
    pub interface: Interface,
    /// Whether it is up (IFF_UP).
    pub up: bool,
    /// Whether it is the loopback interface.
    pub loopback: bool,
    /// Whether its frames are Ethernet's (ARPHRD_ETHER).
    pub ethernet: bool,
    /// Whether it is a port of another interface, as of a bridge.
    pub port: bool,
    /// Whether it has an ingress or clsact qdisc.
    pub ingress: bool,
}

/// An interface as the guest gets it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Interface {
    /// Its number in the namespace.
    pub index: u32,
    /// Its name, at most 15 bytes.
    pub name: String,
    /// Its Ethernet address; zeros for what has none.
    pub mac: Mac,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// What kind of link it is, like `veth`; empty for hardware.
    pub kind: String,
    /// Whether it does without ARP (IFF_NOARP).
    pub no_arp: bool,
    /// Its addresses.
    pub addresses: Vec<Prefix>,
}

/// A unicast route of the main table that the kernel has not made itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// `None` for the default route.
    pub destination: Option<Prefix>,
    /// `None` for what is on the link itself.
    pub gateway: Option<IpAddr>,
    /// The source address to prefer.
    pub source: Option<IpAddr>,
    /// The interface's number; 0 when there is not exactly one.
    pub link: u32,
    /// Whether it is IPv6's.
    pub ipv6: bool,
    /// As the kernel counts it: 0 global, 253 link, 254 host (rtnetlink(7)).
    pub scope: u8,
    /// `RTNH_F_*` flags, for example 4 for "the gateway is on the link".
    pub flags: u32,
    /// The lower, the sooner it is taken.
    pub metric: u32,
    /// The path's MTU in bytes; 0 is the interface's.
    pub mtu: u32,
}

/// A permanent entry of the neighbour table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// Its address.
    pub address: IpAddr,
    /// Its Ethernet address.
    pub mac: Mac,
    /// The interface's number.
    pub link: u32,
    /// `NUD_*` of linux/neighbour.h.
    pub state: u16,
    /// `NTF_*` of linux/neighbour.h.
    pub flags: u8,
}

/// Everything in a namespace that matters for a guest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// All interfaces, in the order of their numbers.
    pub links: Vec<Link>,
    /// The routes.
    pub routes: Vec<Route>,
    /// The permanent neighbours.
    pub neighbours: Vec<Neighbour>,
}
