//! Reading a namespace.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteType,
};
use rtnetlink::packet_route::tc::TcHandle;
use rtnetlink::{Handle, RouteMessageBuilder};

use crate::error::kernel;
use crate::{Interface, Link, Mac, Namespace, Neighbour, NetworkError, Prefix, Route, Snapshot};

/// Reads what is in the namespace.
pub async fn scan(namespace: &Namespace) -> Result<Snapshot, NetworkError> {
    namespace.enter(|netlink| async move { read(&netlink).await }).await
}

/// Like [`scan`], for callers outside of any runtime.
pub fn scan_blocking(namespace: &Namespace) -> Result<Snapshot, NetworkError> {
    namespace.enter_blocking(|netlink| async move { read(&netlink).await })
}

async fn read(netlink: &Handle) -> Result<Snapshot, NetworkError> {
    let mut links = links(netlink).await?;
    let addresses: Vec<AddressMessage> = netlink
        .address()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(kernel("list the network addresses"))?;
    for link in &mut links {
        let own = addresses.iter().filter(|one| one.header.index == link.interface.index);
        link.interface.addresses = own.filter_map(address).collect();
    }
    // Most often there is nothing besides lo, and that has no route.
    if links.iter().all(|link| link.loopback) {
        return Ok(Snapshot { links, ..Snapshot::default() });
    }
    Ok(Snapshot { links, routes: routes(netlink).await?, neighbours: neighbours(netlink).await? })
}

async fn links(netlink: &Handle) -> Result<Vec<Link>, NetworkError> {
    let messages: Vec<LinkMessage> = netlink
        .link()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(kernel("list the network interfaces"))?;
    let qdiscs: Vec<_> = netlink
        .qdisc()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(kernel("list the queueing disciplines"))?;
    let filtered: Vec<i32> = qdiscs
        .iter()
        .filter(|qdisc| qdisc.header.parent == TcHandle::INGRESS)
        .map(|qdisc| qdisc.header.index)
        .collect();
    let mut links: Vec<Link> = messages
        .iter()
        .map(|message| {
            let mut link = link(message);
            link.ingress =
                i32::try_from(link.interface.index).is_ok_and(|index| filtered.contains(&index));
            link
        })
        .collect();
    links.sort_by_key(|link| link.interface.index);
    Ok(links)
}

fn link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut interface = Interface {
        index: message.header.index,
        no_arp: flags.contains(LinkFlags::Noarp),
        ..Interface::default()
    };
    let mut port = false;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Address(bytes) => {
                interface.mac = Mac::from_slice(bytes).unwrap_or_default();
            }
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::Controller(index) => port = *index != 0,
            LinkAttribute::LinkInfo(infos) => interface.kind = kind(infos),
            _ => {}
        }
    }
    Link {
        interface,
        up: flags.contains(LinkFlags::Up),
        loopback: flags.contains(LinkFlags::Loopback),
        ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        port,
        ingress: false,
    }
}

fn kind(infos: &[LinkInfo]) -> String {
    let kind = infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    });
    kind.map(InfoKind::to_string).unwrap_or_default()
}

/// On a point-to-point link `Address` is the peer and `Local` is ours; elsewhere both are ours.
fn address(message: &AddressMessage) -> Option<Prefix> {
    let mut found = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => found = Some(*address),
            AddressAttribute::Address(address) => found = found.or(Some(*address)),
            _ => {}
        }
    }
    Some(Prefix { address: found?, length: message.header.prefix_len })
}

async fn routes(netlink: &Handle) -> Result<Vec<Route>, NetworkError> {
    let mut routes = Vec::new();
    for family in [
        RouteMessageBuilder::<Ipv4Addr>::new().build(),
        RouteMessageBuilder::<Ipv6Addr>::new().build(),
    ] {
        let messages: Vec<RouteMessage> = netlink
            .route()
            .get(family)
            .execute()
            .try_collect()
            .await
            .map_err(kernel("list the routes"))?;
        routes.extend(messages.iter().filter(|message| is_configured(message)).map(route));
    }
    Ok(routes)
}

/// The kernel's own routes come with the addresses, in the guest as here. Those of other tables
/// mean nothing without their rules.
fn is_configured(message: &RouteMessage) -> bool {
    message.header.table == RouteHeader::RT_TABLE_MAIN
        && message.header.protocol != RouteProtocol::Kernel
        && message.header.kind == RouteType::Unicast
}

fn route(message: &RouteMessage) -> Route {
    let header = &message.header;
    let mut route = Route {
        destination: None,
        gateway: None,
        source: None,
        link: 0,
        ipv6: header.address_family == rtnetlink::packet_route::AddressFamily::Inet6,
        scope: header.scope.into(),
        // The kernel's own remarks (dead, link down, offloaded) are no wish of anybody's.
        flags: header.flags.bits() & ON_LINK,
        metric: 0,
        mtu: 0,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                let length = header.destination_prefix_length;
                route.destination = ip(address).map(|address| Prefix { address, length });
            }
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            RouteAttribute::Oif(index) => route.link = *index,
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Metrics(metrics) => {
                let mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
                route.mtu = mtu.unwrap_or_default();
            }
            _ => {}
        }
    }
    route
}

/// `RTNH_F_ONLINK`.
const ON_LINK: u32 = 4;

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

async fn neighbours(netlink: &Handle) -> Result<Vec<Neighbour>, NetworkError> {
    let messages: Vec<NeighbourMessage> = netlink
        .neighbours()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(kernel("list the neighbours"))?;
    Ok(messages.iter().filter_map(neighbour).collect())
}

/// `None` for what the kernel has learned by itself: the guest learns that, too.
fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    let header = &message.header;
    if header.state != NeighbourState::Permanent {
        return None;
    }
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(to)) => {
                address = Some((*to).into());
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(to)) => {
                address = Some((*to).into());
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = Mac::from_slice(bytes),
            _ => {}
        }
    }
    Some(Neighbour {
        address: address?,
        mac: mac?,
        link: header.ifindex,
        state: header.state.into(),
        flags: header.flags.bits(),
    })
}
