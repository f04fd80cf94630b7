//! The guest's network.

use std::net::IpAddr;

use kata_agent_api::{agent, types};

use crate::client::request;
use crate::{AgentClient, AgentError, text};

/// The longest name of a link, a kind or an address that is kept, in bytes.
const MAX_NAME: usize = 256;
/// The most links, addresses of a link, or routes that the guest may list.
const MAX_ENTRIES: usize = 4096;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// An address and the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestAddress {
    /// The address.
    pub address: IpAddr,
    /// The length of the prefix in bits.
    pub prefix: u8,
}

/// A network interface, as it is to be or as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestInterface {
    /// The name it had on the host; informative.
    pub device: String,
    /// Its name in the guest.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<GuestAddress>,
    /// Its MTU in bytes; 0 leaves it.
    pub mtu: u64,
    /// Its MAC address, by which the agent finds it.
    pub mac: String,
    /// The PCI path of a device to wait for; empty when it is there already.
    pub device_path: String,
    /// The kind of link that it is on the host; informative.
    pub kind: String,
    /// Flags to set beside IFF_UP (netdevice(7)).
    pub flags: u32,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestRoute {
    /// The destination; `None` is the default route.
    pub destination: Option<GuestAddress>,
    /// The next hop; `None` when the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The interface's name in the guest.
    pub device: String,
    /// The preferred source address.
    pub source: Option<IpAddr>,
    /// The scope by its number (rtnetlink(7)).
    pub scope: u32,
    /// The family, which a default route on the link does not tell otherwise.
    pub family: IpFamily,
    /// RTNH_F_* flags (rtnetlink(7)).
    pub flags: u32,
    /// The path's MTU in bytes; 0 is the interface's.
    pub mtu: u32,
}

/// A permanent entry of the neighbour table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestNeighbour {
    /// The neighbour's address.
    pub address: IpAddr,
    /// The interface's name in the guest.
    pub device: String,
    /// The neighbour's MAC address.
    pub mac: String,
    /// NUD_* state (rtnetlink(7)).
    pub state: i32,
    /// NTF_* flags (rtnetlink(7)).
    pub flags: i32,
}

impl AgentClient {
    /// Configures an interface and answers what it has become.
    pub async fn update_interface(
        &self,
        interface: &GuestInterface,
    ) -> Result<GuestInterface, AgentError> {
        let message = agent::UpdateInterfaceRequest {
            interface: Some(interface_message(interface)).into(),
            ..Default::default()
        };
        let answer = request!(self, agent.update_interface, "UpdateInterface", message)?;
        read_interface("UpdateInterface", &answer)
    }

    /// The guest's interfaces.
    pub async fn list_interfaces(&self) -> Result<Vec<GuestInterface>, AgentError> {
        let message = agent::ListInterfacesRequest::new();
        let answer = request!(self, agent.list_interfaces, "ListInterfaces", message)?;
        read_list("ListInterfaces", &answer.Interfaces, read_interface)
    }

    /// Replaces the guest's routes and answers what they have become.
    pub async fn update_routes(
        &self,
        routes: &[GuestRoute],
    ) -> Result<Vec<GuestRoute>, AgentError> {
        let routes = routes.iter().map(route_message).collect();
        let routes = agent::Routes { Routes: routes, ..Default::default() };
        let message =
            agent::UpdateRoutesRequest { routes: Some(routes).into(), ..Default::default() };
        let answer = request!(self, agent.update_routes, "UpdateRoutes", message)?;
        read_list("UpdateRoutes", &answer.Routes, read_route)
    }

    /// The guest's routes.
    pub async fn list_routes(&self) -> Result<Vec<GuestRoute>, AgentError> {
        let message = agent::ListRoutesRequest::new();
        let answer = request!(self, agent.list_routes, "ListRoutes", message)?;
        read_list("ListRoutes", &answer.Routes, read_route)
    }

    /// Adds entries to the neighbour table.
    pub async fn add_arp_neighbors(&self, entries: &[GuestNeighbour]) -> Result<(), AgentError> {
        let entries = entries.iter().map(neighbour_message).collect();
        let neighbors = agent::ARPNeighbors { ARPNeighbors: entries, ..Default::default() };
        let message = agent::AddARPNeighborsRequest {
            neighbors: Some(neighbors).into(),
            ..Default::default()
        };
        request!(self, agent.add_arp_neighbors, "AddARPNeighbors", message).map(drop)
    }
}

fn family_message(family: IpFamily) -> types::IPFamily {
    match family {
        IpFamily::V4 => types::IPFamily::v4,
        IpFamily::V6 => types::IPFamily::v6,
    }
}

fn address_message(address: IpAddr, mask: String) -> types::IPAddress {
    let family = if address.is_ipv4() { IpFamily::V4 } else { IpFamily::V6 };
    types::IPAddress {
        family: family_message(family).into(),
        address: address.to_string(),
        mask,
        ..Default::default()
    }
}

fn interface_message(interface: &GuestInterface) -> types::Interface {
    let addresses = &interface.addresses;
    types::Interface {
        device: interface.device.clone(),
        name: interface.name.clone(),
        IPAddresses: addresses
            .iter()
            .map(|at| address_message(at.address, at.prefix.to_string()))
            .collect(),
        mtu: interface.mtu,
        hwAddr: interface.mac.clone(),
        devicePath: interface.device_path.clone(),
        type_: interface.kind.clone(),
        raw_flags: interface.flags,
        ..Default::default()
    }
}

fn route_message(route: &GuestRoute) -> types::Route {
    let text = |address: Option<IpAddr>| address.map_or_else(String::new, |a| a.to_string());
    types::Route {
        dest: route
            .destination
            .map_or_else(String::new, |to| format!("{}/{}", to.address, to.prefix)),
        gateway: text(route.gateway),
        device: route.device.clone(),
        source: text(route.source),
        scope: route.scope,
        family: family_message(route.family).into(),
        flags: route.flags,
        mtu: route.mtu,
        ..Default::default()
    }
}

fn neighbour_message(entry: &GuestNeighbour) -> types::ARPNeighbor {
    types::ARPNeighbor {
        toIPAddress: Some(address_message(entry.address, String::new())).into(),
        device: entry.device.clone(),
        lladdr: entry.mac.clone(),
        state: entry.state,
        flags: entry.flags,
        ..Default::default()
    }
}

fn read_list<W, T>(
    method: &'static str,
    list: &[W],
    read: impl Fn(&'static str, &W) -> Result<T, AgentError>,
) -> Result<Vec<T>, AgentError> {
    if list.len() > MAX_ENTRIES {
        return Err(AgentError::hostile(method, format!("{} entries", list.len())));
    }
    list.iter().map(|entry| read(method, entry)).collect()
}

fn read_interface(
    method: &'static str,
    wire: &types::Interface,
) -> Result<GuestInterface, AgentError> {
    let name = |name: &str| text::one_line(name, MAX_NAME);
    Ok(GuestInterface {
        device: name(&wire.device),
        name: name(&wire.name),
        addresses: read_list(method, &wire.IPAddresses, |method, address| {
            read_address(method, &address.address, &address.mask)
        })?,
        mtu: wire.mtu,
        mac: name(&wire.hwAddr),
        device_path: name(&wire.devicePath),
        kind: name(&wire.type_),
        flags: wire.raw_flags,
    })
}

fn read_route(method: &'static str, wire: &types::Route) -> Result<GuestRoute, AgentError> {
    let destination = match wire.dest.as_str() {
        "" | "default" => None,
        to => {
            let (address, prefix) = to.split_once('/').unwrap_or((to, ""));
            Some(read_address(method, address, prefix)?)
        }
    };
    let optional = |address: &str| match address {
        "" => Ok(None),
        address => read_ip(method, address).map(Some),
    };
    Ok(GuestRoute {
        destination,
        gateway: optional(&wire.gateway)?,
        device: text::one_line(&wire.device, MAX_NAME),
        source: optional(&wire.source)?,
        scope: wire.scope,
        family: if wire.family == types::IPFamily::v6.into() { IpFamily::V6 } else { IpFamily::V4 },
        flags: wire.flags,
        mtu: wire.mtu,
    })
}

fn read_ip(method: &'static str, address: &str) -> Result<IpAddr, AgentError> {
    address.parse().map_err(|_| AgentError::hostile(method, "a text that is no address"))
}

/// An absent prefix is the address alone.
fn read_address(
    method: &'static str,
    address: &str,
    prefix: &str,
) -> Result<GuestAddress, AgentError> {
    let address = read_ip(method, address)?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let prefix = if prefix.is_empty() { Some(longest) } else { prefix.parse().ok() };
    match prefix {
        Some(prefix) if prefix <= longest => Ok(GuestAddress { address, prefix }),
        _ => Err(AgentError::hostile(method, "a prefix that is none")),
    }
}
