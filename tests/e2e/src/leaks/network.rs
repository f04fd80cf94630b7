//! Network devices and named network namespaces of the host.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};

use crate::mark::Mark;
use crate::netns::Netns;

/// The multicast group of changes of devices: RTMGRP_LINK in rtnetlink(7).
const LINKS: u32 = 1;

/// Where devices and named namespaces have their names.
const PLACES: &[(&str, &str)] = &[("network device", "/sys/class/net"), ("netns", "/run/netns")];

/// Every device and named namespace, but for those that stand for an engine's host.
pub(super) fn names() -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for (what, place) in PLACES {
        // No /run/netns means no named namespace.
        for entry in fs::read_dir(place).into_iter().flatten() {
            let entry = entry.with_context(|| format!("cannot list {place}"))?;
            if !Netns::is_one(&entry.path()) {
                names.insert(format!("{what}: {}", entry.file_name().display()));
            }
        }
    }
    Ok(names)
}

/// What has come since `before`, but for what carries the mark of another test. A device carries
/// none; it goes with the test that has made it, well before a leak check gives up.
pub(super) fn left(before: &BTreeSet<String>, ours: &[Mark]) -> Result<Vec<String>> {
    let names = names()?;
    let new = names.difference(before);
    Ok(new.filter(|name| !Mark::is_anothers(name.as_bytes(), ours)).cloned().collect())
}

/// What of it is ours for sure, since it carries the mark or is a tap, which only the network
/// namespace of a sandbox may have.
pub(super) fn left_by_hand(before: &BTreeSet<String>, mark: &Mark) -> Result<Vec<String>> {
    let is_ours = |name: &String| mark.is_in(name.as_bytes()) || name.ends_with("_kata");
    Ok(left(before, std::slice::from_ref(mark))?.into_iter().filter(is_ours).collect())
}

/// A descriptor that is readable when a device has come or gone.
pub(super) fn changes() -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // Protocol 0 is NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)
        .context("cannot watch network devices")?;
    bind(&socket, &SocketAddrNetlink::new(0, LINKS)).context("cannot watch network devices")?;
    Ok(socket)
}

/// Forgets the changes so far.
pub(super) fn drain(changes: &OwnedFd) {
    let mut buffer = [0; 8192];
    while rustix::io::read(changes, &mut buffer).is_ok_and(|length| length > 0) {}
}
