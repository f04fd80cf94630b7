use proptest::prelude::*;

use super::*;
use crate::Mac;

fn link(index: u32, name: &str) -> Link {
    let last = u8::try_from(index).unwrap();
    Link {
        interface: Interface {
            index,
            name: name.into(),
            mac: Mac([2, 0, 0, 0, 0, last]),
            mtu: 1500,
            kind: "veth".into(),
            no_arp: false,
            addresses: vec![prefix(&format!("10.0.{last}.2"), 24)],
        },
        up: true,
        loopback: false,
        ethernet: true,
        port: false,
        ingress: false,
    }
}

fn lo() -> Link {
    let mut lo = link(1, "lo");
    (lo.loopback, lo.ethernet) = (true, false);
    lo
}

fn prefix(address: &str, length: u8) -> Prefix {
    Prefix { address: address.parse().unwrap(), length }
}

fn route(link: u32, destination: Option<Prefix>, gateway: Option<&str>, metric: u32) -> Route {
    Route {
        destination,
        gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        source: None,
        link,
        ipv6: gateway.is_some_and(|gateway| gateway.contains(':')),
        scope: 0,
        flags: 0,
        metric,
        mtu: 0,
    }
}

fn names(plan: &Plan) -> Vec<&str> {
    plan.interfaces.iter().map(|one| one.name.as_str()).collect()
}

fn refusal(link: Link) -> String {
    let snapshot = Snapshot { links: vec![lo(), link], ..Snapshot::default() };
    plan(&snapshot).unwrap_err().to_string()
}

#[test]
fn namespace_with_loopback_only_has_nothing_to_join() {
    assert!(plan(&Snapshot { links: vec![lo()], ..Snapshot::default() }).unwrap().is_empty());
}

#[test]
fn everything_in_use_is_joined_and_the_rest_is_not() {
    let mut idle = link(3, "sit0");
    (idle.up, idle.ethernet) = (false, false);
    idle.interface.addresses.clear();
    let mut port = link(4, "port");
    port.port = true;
    let mut bridge = link(5, "br0");
    bridge.interface.kind = "bridge".into();
    let mut tap = link(6, "tap2_kata");
    tap.ingress = true;
    let links = vec![lo(), link(2, "eth0"), idle, port, bridge, tap];
    let plan = plan(&Snapshot { links, ..Snapshot::default() }).unwrap();
    assert_eq!(names(&plan), ["eth0", "br0"]);
}

#[test]
fn link_local_addresses_are_left_to_the_guest() {
    let mut eth0 = link(2, "eth0");
    eth0.interface.addresses.extend([prefix("fe80::1", 64), prefix("fd00::2", 64)]);
    let plan = plan(&Snapshot { links: vec![eth0], ..Snapshot::default() }).unwrap();
    assert_eq!(plan.interfaces[0].addresses, [prefix("10.0.2.2", 24), prefix("fd00::2", 64)]);
}

#[test]
fn what_cannot_be_joined_is_named_with_the_reason() {
    let mut wireguard = link(2, "wg0");
    (wireguard.ethernet, wireguard.interface.kind) = (false, "wireguard".into());
    let text = refusal(wireguard);
    assert!(text.contains("wg0") && text.contains("wireguard"), "{text}");

    let mut filtered = link(2, "eth0");
    filtered.ingress = true;
    let text = refusal(filtered);
    assert!(text.contains("ingress qdisc"), "{text}");

    let mut twin = link(3, "eth1");
    twin.interface.mac = link(2, "eth0").interface.mac;
    let links = vec![link(2, "eth0"), twin];
    let text = plan(&Snapshot { links, ..Snapshot::default() }).unwrap_err().to_string();
    assert!(text.contains("eth1") && text.contains("of eth0"), "{text}");
}

#[test]
fn routes_on_the_link_come_before_those_that_need_them() {
    let links = vec![link(2, "eth0")];
    let routes = vec![
        route(2, None, Some("169.254.1.1"), 0),
        route(2, Some(prefix("169.254.1.1", 32)), None, 0),
    ];
    let plan = plan(&Snapshot { links, routes, ..Snapshot::default() }).unwrap();
    let gateways: Vec<_> = plan.routes.iter().map(|one| one.route.gateway.is_some()).collect();
    assert_eq!(gateways, [false, true]);
    assert!(plan.remarks.is_empty());
}

#[test]
fn of_several_routes_to_one_place_the_best_is_kept() {
    let links = vec![link(2, "eth0"), link(3, "eth1")];
    let routes = vec![
        route(2, None, Some("10.0.2.1"), 100),
        route(3, None, Some("10.0.3.1"), 50),
        route(2, None, Some("fd00::1"), 1024),
        route(3, None, None, 200),
    ];
    let plan = plan(&Snapshot { links, routes, ..Snapshot::default() }).unwrap();
    let kept: Vec<_> =
        plan.routes.iter().map(|one| (one.device.as_str(), one.route.ipv6)).collect();
    assert_eq!(kept, [("eth1", false), ("eth0", true)]);
}

#[test]
fn route_over_no_interface_of_the_vm_is_remarked() {
    let routes = vec![route(0, Some(prefix("192.0.2.0", 24)), None, 0)];
    let snapshot = Snapshot { links: vec![link(2, "eth0")], routes, ..Snapshot::default() };
    let plan = plan(&snapshot).unwrap();
    assert!(plan.routes.is_empty());
    assert!(plan.remarks[0].contains("192.0.2.0/24"), "{:?}", plan.remarks);
}

#[test]
fn neighbours_of_joined_interfaces_are_kept() {
    let neighbour = |link| Neighbour {
        address: "10.0.2.9".parse().unwrap(),
        mac: Mac([2; 6]),
        link,
        state: 0x80,
        flags: 0,
    };
    let snapshot = Snapshot {
        links: vec![lo(), link(2, "eth0")],
        neighbours: vec![neighbour(2), neighbour(1)],
        ..Snapshot::default()
    };
    assert_eq!(plan(&snapshot).unwrap().neighbours, [("eth0".to_owned(), neighbour(2))]);
}

#[test]
fn second_look_takes_what_came_beside_what_is_joined() {
    let first = plan(&Snapshot { links: vec![link(3, "eth0")], ..Snapshot::default() }).unwrap();
    let mut joined = link(3, "eth0");
    joined.ingress = true;
    joined.interface.addresses.push(prefix("10.9.0.1", 16));
    let snapshot = Snapshot {
        links: vec![lo(), link(2, "eth1"), joined.clone()],
        routes: vec![route(3, None, Some("10.0.3.1"), 0)],
        ..Snapshot::default()
    };
    let again = plan_again(&snapshot, &first).unwrap();
    assert_eq!(names(&again), ["eth0", "eth1"]);
    assert_eq!(again.interfaces[0].addresses.len(), 2);
    assert_eq!(again.routes.len(), 1);
    assert!(plan(&snapshot).unwrap_err().to_string().contains("ingress qdisc"));

    let mut twin = link(2, "eth1");
    twin.interface.mac = joined.interface.mac;
    let snapshot = Snapshot { links: vec![twin, joined.clone()], ..Snapshot::default() };
    let text = plan_again(&snapshot, &first).unwrap_err().to_string();
    assert!(text.contains("eth1") && text.contains("of eth0"), "{text}");

    joined.interface.mac = Mac([2, 0, 0, 0, 0, 9]);
    let snapshot = Snapshot { links: vec![joined], ..Snapshot::default() };
    let text = plan_again(&snapshot, &first).unwrap_err().to_string();
    assert!(text.contains("02:00:00:00:00:03") && text.contains("02:00:00:00:00:09"), "{text}");
}

proptest! {
    #[test]
    fn guest_never_has_two_routes_to_one_place(
        choices in proptest::collection::vec((2_u32..4, 0_u8..4, any::<bool>(), 0_u32..3), 0..20),
    ) {
        let routes = choices
            .iter()
            .map(|&(link, net, gateway, metric)| {
                let destination = (net != 0).then(|| prefix(&format!("192.0.{net}.0"), 24));
                route(link, destination, gateway.then_some("10.0.2.1"), metric)
            })
            .collect::<Vec<_>>();
        let snapshot =
            Snapshot { links: vec![link(2, "a"), link(3, "b")], routes: routes.clone(), ..Snapshot::default() };
        let plan = plan(&snapshot).unwrap();
        for (index, one) in plan.routes.iter().enumerate() {
            let to = one.route.destination;
            prop_assert!(plan.routes[index + 1..].iter().all(|other| other.route.destination != to));
            let best = routes.iter().filter(|other| other.destination == to).map(|other| other.metric).min();
            prop_assert_eq!(Some(one.route.metric), best);
        }
        prop_assert!(plan.routes.is_sorted_by_key(|one| one.route.gateway.is_some()));
    }
}
