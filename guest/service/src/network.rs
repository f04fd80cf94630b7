//! The protocol's words for the network, and ours.

use std::net::IpAddr;

use kata_agent_api::types::{self, IPAddress, IPFamily};
use kata_guest_setup::network::{self, Interface, Neighbour, Network, Prefix, Route};

use crate::agent::Agent;
use crate::status::{Tell, invalid};

/// `IFF_NOARP` of linux/if.h.
const NO_ARP: u32 = 0x80;
/// Longest name of an interface, without the final NUL.
const MAX_NAME: usize = 15;

impl Agent {
    /// Makes an interface be as wanted.
    pub(crate) async fn update_interface(
        &self,
        wanted: Option<&types::Interface>,
    ) -> ttrpc::Result<types::Interface> {
        let wanted = wanted.ok_or_else(|| invalid("the request has no interface"))?;
        let interface = interface_from_wire(wanted)?;
        let network = Network::connect().map_err(Tell::tell)?;
        let patience = self.settings.hotplug_timeout;
        let updated = network.update_interface(&interface, patience).await.map_err(Tell::tell)?;
        Ok(interface_to_wire(&updated))
    }

    /// All interfaces.
    pub(crate) async fn list_interfaces(&self) -> ttrpc::Result<Vec<types::Interface>> {
        let network = Network::connect().map_err(Tell::tell)?;
        let interfaces = network.interfaces().await.map_err(Tell::tell)?;
        Ok(interfaces.iter().map(interface_to_wire).collect())
    }

    /// Replaces all routes.
    pub(crate) async fn update_routes(
        &self,
        wanted: &[types::Route],
    ) -> ttrpc::Result<Vec<types::Route>> {
        let routes = wanted.iter().map(route_from_wire).collect::<ttrpc::Result<Vec<_>>>()?;
        let network = Network::connect().map_err(Tell::tell)?;
        let routes = network.update_routes(&routes).await.map_err(Tell::tell)?;
        Ok(routes.iter().map(route_to_wire).collect())
    }

    /// All routes that are not the kernel's own.
    pub(crate) async fn list_routes(&self) -> ttrpc::Result<Vec<types::Route>> {
        let network = Network::connect().map_err(Tell::tell)?;
        let routes = network.routes().await.map_err(Tell::tell)?;
        Ok(routes.iter().map(route_to_wire).collect())
    }

    /// Adds neighbours.
    pub(crate) async fn add_neighbours(&self, wanted: &[types::ARPNeighbor]) -> ttrpc::Result<()> {
        let neighbours =
            wanted.iter().map(neighbour_from_wire).collect::<ttrpc::Result<Vec<_>>>()?;
        let network = Network::connect().map_err(Tell::tell)?;
        network.add_neighbours(&neighbours).await.map_err(Tell::tell)
    }
}

fn name(name: &str) -> ttrpc::Result<String> {
    let good = (1..=MAX_NAME).contains(&name.len())
        && !matches!(name, "." | "..")
        && name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':'));
    if good { Ok(name.to_owned()) } else { Err(invalid(format!("{name:?} is no interface name"))) }
}

fn address(text: &str) -> ttrpc::Result<IpAddr> {
    text.parse().map_err(|_| invalid(format!("{text:?} is no IP address")))
}

/// The mask is the prefix's length, or (IPv4) written as an address.
fn prefix(wire: &IPAddress) -> ttrpc::Result<Prefix> {
    let address = address(&wire.address)?;
    let length = match wire.mask.parse::<u8>() {
        Ok(length) => Some(length),
        Err(_) => wire.mask.parse::<std::net::Ipv4Addr>().ok().and_then(length_of_mask),
    };
    length
        .and_then(|length| Prefix::new(address, length))
        .ok_or_else(|| invalid(format!("{:?} is no network mask of {address}", wire.mask)))
}

fn length_of_mask(mask: std::net::Ipv4Addr) -> Option<u8> {
    let bits = u32::from(mask);
    let length = bits.leading_ones();
    (bits.checked_shl(length).unwrap_or(0) == 0).then_some(u8::try_from(length).ok()?)
}

/// `10.0.0.0/8`, or an address that means itself alone.
fn destination(text: &str) -> ttrpc::Result<Option<Prefix>> {
    if text.is_empty() || text == "default" {
        return Ok(None);
    }
    let (text, length) = match text.split_once('/') {
        Some((text, length)) => (text, length.parse().ok()),
        None => (text, None),
    };
    let address = address(text)?;
    let whole = if address.is_ipv4() { 32 } else { 128 };
    let prefix = Prefix::new(address, length.unwrap_or(whole))
        .ok_or_else(|| invalid(format!("{text:?} is no destination")))?;
    Ok(Some(prefix).filter(|prefix| prefix.length != 0))
}

fn optional_address(text: &str) -> ttrpc::Result<Option<IpAddr>> {
    if text.is_empty() { Ok(None) } else { address(text).map(Some) }
}

fn interface_from_wire(wire: &types::Interface) -> ttrpc::Result<Interface> {
    let wanted = if wire.name.is_empty() { &wire.device } else { &wire.name };
    let hardware_address = network::parse_hardware_address(&wire.hwAddr)
        .ok_or_else(|| invalid(format!("{:?} is no hardware address", wire.hwAddr)))?;
    Ok(Interface {
        name: name(wanted)?,
        hardware_address,
        mtu: u32::try_from(wire.mtu).map_err(|_| invalid("the MTU is too large"))?,
        addresses: wire.IPAddresses.iter().map(prefix).collect::<ttrpc::Result<_>>()?,
        no_arp: wire.raw_flags & NO_ARP != 0,
    })
}

fn family(address: &IpAddr) -> IPFamily {
    if address.is_ipv4() { IPFamily::v4 } else { IPFamily::v6 }
}

fn interface_to_wire(interface: &Interface) -> types::Interface {
    let mut wire = types::Interface::new();
    wire.device.clone_from(&interface.name);
    wire.name.clone_from(&interface.name);
    wire.hwAddr = interface.hardware_address_text();
    wire.mtu = interface.mtu.into();
    wire.raw_flags = if interface.no_arp { NO_ARP } else { 0 };
    wire.IPAddresses = interface
        .addresses
        .iter()
        .map(|prefix| {
            let mut address = IPAddress::new();
            address.family = family(&prefix.address).into();
            address.address = prefix.address.to_string();
            address.mask = prefix.length.to_string();
            address
        })
        .collect();
    wire
}

fn route_from_wire(wire: &types::Route) -> ttrpc::Result<Route> {
    let destination = destination(&wire.dest)?;
    let gateway = optional_address(&wire.gateway)?;
    let is_ipv6 = match (destination, gateway) {
        (Some(prefix), _) => prefix.address.is_ipv6(),
        (None, Some(gateway)) => gateway.is_ipv6(),
        (None, None) => wire.family == IPFamily::v6.into(),
    };
    Ok(Route {
        destination,
        gateway,
        source: optional_address(&wire.source)?,
        device: name(&wire.device)?,
        is_ipv6,
        scope: u8::try_from(wire.scope).map_err(|_| invalid("a route's scope is 0 to 255"))?,
        flags: wire.flags,
        mtu: wire.mtu,
    })
}

fn route_to_wire(route: &Route) -> types::Route {
    let mut wire = types::Route::new();
    if let Some(prefix) = route.destination {
        wire.dest = format!("{}/{}", prefix.address, prefix.length);
    }
    wire.gateway = route.gateway.map(|address| address.to_string()).unwrap_or_default();
    wire.source = route.source.map(|address| address.to_string()).unwrap_or_default();
    wire.device.clone_from(&route.device);
    wire.scope = route.scope.into();
    wire.family = if route.is_ipv6 { IPFamily::v6 } else { IPFamily::v4 }.into();
    wire.flags = route.flags;
    wire.mtu = route.mtu;
    wire
}

fn neighbour_from_wire(wire: &types::ARPNeighbor) -> ttrpc::Result<Neighbour> {
    let to = wire.toIPAddress.as_ref().ok_or_else(|| invalid("a neighbour has no address"))?;
    Ok(Neighbour {
        address: address(&to.address)?,
        device: name(&wire.device)?,
        hardware_address: network::parse_hardware_address(&wire.lladdr)
            .ok_or_else(|| invalid(format!("{:?} is no hardware address", wire.lladdr)))?,
        state: u16::try_from(wire.state)
            .map_err(|_| invalid("a neighbour's state is out of range"))?,
        flags: u8::try_from(wire.flags)
            .map_err(|_| invalid("a neighbour's flags are out of range"))?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn prefix_mask_is_a_length_or_an_address() {
        let prefix = |address: &str, mask: &str| {
            let mut wire = IPAddress::new();
            (wire.address, wire.mask) = (address.into(), mask.into());
            prefix(&wire).ok().map(|prefix| prefix.length)
        };
        assert_eq!(prefix("10.0.0.1", "24"), Some(24));
        assert_eq!(prefix("10.0.0.1", "255.255.0.0"), Some(16));
        assert_eq!(prefix("10.0.0.1", "255.255.255.255"), Some(32));
        assert_eq!(prefix("10.0.0.1", "255.0.255.0"), None);
        assert_eq!(prefix("10.0.0.1", "33"), None);
        assert_eq!(prefix("fd00::1", "64"), Some(64));
    }

    #[test]
    fn destination_of_everything_is_the_default_route() {
        for everything in ["", "default", "0.0.0.0/0", "::/0"] {
            assert_eq!(destination(everything).unwrap(), None, "{everything}");
        }
        assert_eq!(destination("10.1.0.0/16").unwrap().unwrap().length, 16);
        assert_eq!(destination("10.1.0.1").unwrap().unwrap().length, 32);
        assert!(destination("10.1.0.0/99").is_err());
    }

    #[test]
    fn name_is_what_the_kernel_takes() {
        assert!(name("eth0").is_ok());
        for bad in ["", ".", "..", "a/b", "a b", "a:b", "sixteen-letters-"] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn routes_round_trip(a: [u8; 4], length in 1u8..=32, mtu: u32, scope: u8) {
            let route = Route {
                destination: Prefix::new(IpAddr::from(a), length),
                gateway: Some(IpAddr::from(a)),
                source: None,
                device: "eth0".into(),
                is_ipv6: false,
                scope,
                flags: 4,
                mtu,
            };
            prop_assert_eq!(route_from_wire(&route_to_wire(&route)).unwrap(), route);
        }
    }
}
