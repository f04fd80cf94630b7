//! Routes of the main table.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
    RouteProtocol, RouteScope,
};

use super::{Network, NetworkError, Prefix, change};

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// `None` for the default route.
    pub destination: Option<Prefix>,
    /// `None` for what is on the link itself.
    pub gateway: Option<IpAddr>,
    /// The source address to prefer.
    pub source: Option<IpAddr>,
    /// Name of the interface.
    pub device: String,
    /// Needed where neither destination nor gateway says it.
    pub is_ipv6: bool,
    /// As the kernel counts it: 0 global, 253 link, 254 host.
    pub scope: u8,
    /// `RTNH_F_*` flags, for example 4 for "the gateway is on the link".
    pub flags: u32,
    /// 0 for the interface's own.
    pub mtu: u32,
}

impl Network {
    /// The routes that are not the kernel's own.
    ///
    /// # Errors
    ///
    /// Fails when the kernel refuses to list them.
    pub async fn routes(&self) -> Result<Vec<Route>, NetworkError> {
        let links = self.links().await?;
        let name = |index| {
            links
                .iter()
                .find(|link| link.header.index == index)
                .and_then(super::link_name)
                .unwrap_or_default()
                .to_owned()
        };
        let messages = self.route_messages().await?;
        Ok(messages.iter().map(|message| describe(message, &name)).collect())
    }

    /// Replaces all routes by these; those without a gateway first, since the others need them.
    /// Link-local IPv6 is left to the kernel.
    ///
    /// # Errors
    ///
    /// Fails when an interface is missing or when the kernel refuses a route; the routes before it
    /// stay.
    pub async fn update_routes(&self, wanted: &[Route]) -> Result<Vec<Route>, NetworkError> {
        for message in self.route_messages().await? {
            let removed = self.handle.route().del(message).execute().await;
            removed.map_err(change("remove a route"))?;
        }
        let mut ordered: Vec<_> = wanted.iter().filter(|route| !is_link_local(route)).collect();
        ordered.sort_by_key(|route| route.gateway.is_some());
        for route in ordered {
            let message = self.message(route).await?;
            let what = format!("add the route {}", name_of(route));
            let added = self.handle.route().add(message).replace().execute().await;
            added.map_err(change(what))?;
        }
        self.routes().await
    }

    async fn message(&self, route: &Route) -> Result<RouteMessage, NetworkError> {
        let index = self.index_of(&route.device).await?;
        let mut message = if route.is_ipv6 {
            RouteMessageBuilder::<Ipv6Addr>::new().build()
        } else {
            RouteMessageBuilder::<Ipv4Addr>::new().build()
        };
        let attributes = &mut message.attributes;
        attributes.push(RouteAttribute::Oif(index));
        if let Some(prefix) = route.destination {
            message.header.destination_prefix_length = prefix.length;
            attributes.push(RouteAttribute::Destination(prefix.address.into()));
        }
        if let Some(gateway) = route.gateway {
            attributes.push(RouteAttribute::Gateway(gateway.into()));
        }
        if let Some(source) = route.source {
            attributes.push(RouteAttribute::PrefSource(source.into()));
        }
        if route.mtu != 0 {
            attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(route.mtu)]));
        }
        message.header.scope = RouteScope::from(route.scope);
        message.header.flags = RouteFlags::from_bits_truncate(route.flags);
        Ok(message)
    }

    async fn route_messages(&self) -> Result<Vec<RouteMessage>, NetworkError> {
        let mut messages = Vec::new();
        for family in [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ] {
            let listed: Vec<_> = self
                .handle
                .route()
                .get(family)
                .execute()
                .try_collect()
                .await
                .map_err(|source| NetworkError::List { what: "routes", source })?;
            messages.extend(listed.into_iter().filter(is_configured));
        }
        Ok(messages)
    }
}

/// The kernel's own routes come and go with addresses; touching them breaks those.
fn is_configured(message: &RouteMessage) -> bool {
    message.header.table == RouteHeader::RT_TABLE_MAIN
        && message.header.protocol != RouteProtocol::Kernel
}

fn is_link_local(route: &Route) -> bool {
    matches!(route.destination, Some(Prefix { address: IpAddr::V6(address), .. })
        if address.is_unicast_link_local())
}

fn describe(message: &RouteMessage, name: &dyn Fn(u32) -> String) -> Route {
    let header = &message.header;
    let mut route = Route {
        destination: None,
        gateway: None,
        source: None,
        device: String::new(),
        is_ipv6: header.address_family == rtnetlink::packet_route::AddressFamily::Inet6,
        scope: header.scope.into(),
        flags: header.flags.bits(),
        mtu: 0,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                route.destination = ip(address)
                    .and_then(|address| Prefix::new(address, header.destination_prefix_length));
            }
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            RouteAttribute::Oif(index) => route.device = name(*index),
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

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn name_of(route: &Route) -> String {
    match route.destination {
        Some(prefix) => format!("to {}/{} on {}", prefix.address, prefix.length, route.device),
        None => format!("to anywhere on {}", route.device),
    }
}
