//! What of a namespace is joined to the VM, and how it is to look there. Pure.

use std::net::IpAddr;

use crate::join::tap_name;
use crate::{Interface, Link, Neighbour, NetworkError, Prefix, Route, Snapshot};

/// What the guest gets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The interfaces to join, each with the addresses that the guest's is to have.
    pub interfaces: Vec<Interface>,
    /// The guest's routes, those without a gateway first.
    pub routes: Vec<PlannedRoute>,
    /// The guest's permanent neighbours, each with its interface's name.
    pub neighbours: Vec<(String, Neighbour)>,
    /// What the guest does without although it is there, in sentences.
    pub remarks: Vec<String>,
}

/// A route with its interface's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedRoute {
    /// The interface's name, in the namespace as in the guest.
    pub device: String,
    /// The route.
    pub route: Route,
}

impl Plan {
    /// Whether there is nothing to join.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.interfaces.is_empty()
    }
}

/// Decides what is joined: every Ethernet interface that is in use. One that is in use and cannot
/// be joined is an error, for a container with half of its network is worse than none.
///
/// # Errors
///
/// Fails with the interface's name and the reason.
pub fn plan(snapshot: &Snapshot) -> Result<Plan, NetworkError> {
    plan_beside(snapshot, &[])
}

/// The plan for a namespace some of whose interfaces are joined by `before`. They stay as they are,
/// so none of them is missing in the new plan unless it is gone from the namespace, and all of them
/// have the MAC address that they had.
///
/// # Errors
///
/// As [`plan`]; and when a joined interface has another MAC address now, for the guest's device
/// cannot follow.
pub fn plan_again(snapshot: &Snapshot, before: &Plan) -> Result<Plan, NetworkError> {
    let again = plan_beside(snapshot, &before.interfaces)?;
    for old in &before.interfaces {
        let now = again.interfaces.iter().find(|one| one.index == old.index);
        if let Some(now) = now.filter(|now| now.mac != old.mac) {
            let reason = format!(
                "had the MAC address {} when the VM booted and has {} now, which the VM's device \
                 cannot follow; set it before the container is created",
                old.mac, now.mac
            );
            return Err(NetworkError::Interface { interface: now.name.clone(), reason });
        }
    }
    Ok(again)
}

fn plan_beside(snapshot: &Snapshot, joined: &[Interface]) -> Result<Plan, NetworkError> {
    let is_joined = |link: &Link| joined.iter().any(|one| one.index == link.interface.index);
    let mut plan = Plan::default();
    // One that is joined already comes first, so that of twins the newcomer is refused.
    let (old, new): (Vec<_>, Vec<_>) = in_use(snapshot).partition(|link| is_joined(link));
    for link in old.into_iter().chain(new) {
        check(link, &plan.interfaces, is_joined(link))?;
        let mut interface = link.interface.clone();
        // The guest's kernel makes its own from the same MAC.
        interface.addresses.retain(|prefix| !is_link_local(prefix.address));
        plan.interfaces.push(interface);
    }
    plan.routes = routes(snapshot, &mut plan);
    for neighbour in &snapshot.neighbours {
        if let Some(device) = name_of(&plan.interfaces, neighbour.link) {
            plan.neighbours.push((device, neighbour.clone()));
        }
    }
    Ok(plan)
}

/// The interfaces that a guest should have: all but loopback, ports of others, idle ones, and the
/// taps that [`crate::join`] has made.
pub fn in_use(snapshot: &Snapshot) -> impl Iterator<Item = &Link> {
    let is_tap = |link: &Link| {
        snapshot.links.iter().any(|one| tap_name(one.interface.index) == link.interface.name)
    };
    let wanted =
        move |link: &&Link| !link.loopback && !link.port && is_in_use(link) && !is_tap(link);
    snapshot.links.iter().filter(wanted)
}

/// Some kernels put idle tunnel devices (`sit0`, `tunl0`, …) into every namespace.
fn is_in_use(link: &Link) -> bool {
    link.up || link.interface.addresses.iter().any(|prefix| !is_link_local(prefix.address))
}

/// `is_ours` is whether the qdisc that it may have is what joins it.
fn check(link: &Link, joined: &[Interface], is_ours: bool) -> Result<(), NetworkError> {
    let interface = &link.interface;
    let refuse =
        |reason: String| Err(NetworkError::Interface { interface: interface.name.clone(), reason });
    if !link.ethernet {
        let kind = if interface.kind.is_empty() { "unknown" } else { &interface.kind };
        return refuse(format!(
            "is no Ethernet device (its kind is {kind}), and a VM takes no other"
        ));
    }
    if link.ingress && !is_ours {
        return refuse("has an ingress qdisc already, which a VM needs for itself".to_owned());
    }
    if let Some(twin) = joined.iter().find(|one| one.mac == interface.mac) {
        let (name, mac) = (&twin.name, interface.mac);
        return refuse(format!(
            "has the MAC address {mac} of {name}, by which the guest tells them apart"
        ));
    }
    Ok(())
}

/// The guest knows no metrics: of several routes to one place it gets that which the namespace
/// would take.
fn routes(snapshot: &Snapshot, plan: &mut Plan) -> Vec<PlannedRoute> {
    let mut wanted: Vec<&Route> = snapshot.routes.iter().collect();
    wanted.sort_by_key(|route| (route.gateway.is_some(), route.metric));
    let mut planned: Vec<PlannedRoute> = Vec::new();
    for route in wanted {
        let Some(device) = name_of(&plan.interfaces, route.link) else {
            plan.remarks.push(format!(
                "the route {} leads over no single interface of the VM",
                shown(route)
            ));
            continue;
        };
        if route.destination.is_some_and(|to| is_link_local(to.address)) {
            continue;
        }
        let same = |one: &PlannedRoute| {
            one.route.destination == route.destination && one.route.ipv6 == route.ipv6
        };
        match planned.iter_mut().find(|one| same(one)) {
            Some(known) if known.route.metric <= route.metric => {}
            Some(known) => *known = PlannedRoute { device, route: route.clone() },
            None => planned.push(PlannedRoute { device, route: route.clone() }),
        }
    }
    planned.sort_by_key(|one| one.route.gateway.is_some());
    planned
}

fn name_of(interfaces: &[Interface], index: u32) -> Option<String> {
    interfaces.iter().find(|one| one.index == index).map(|one| one.name.clone())
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

fn shown(route: &Route) -> String {
    match route.destination {
        Some(Prefix { address, length }) => format!("to {address}/{length}"),
        None if route.ipv6 => "to anywhere (IPv6)".to_owned(),
        None => "to anywhere".to_owned(),
    }
}

#[cfg(test)]
mod tests;
