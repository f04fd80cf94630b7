//! Joining interfaces of a namespace to taps, and taking that back.

use std::os::fd::OwnedFd;

use futures::TryStreamExt;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage, MacVtapMode};
use rtnetlink::packet_route::tc::TcHandle;
use rtnetlink::{Handle, LinkMacVtap, LinkUnspec};

use crate::error::kernel;
use crate::{Interface, Mac, Namespace, NetworkError, tap};

/// Every protocol (ETH_P_ALL of linux/if_ether.h), as tc counts: in the network's byte order.
pub(crate) const ALL_PROTOCOLS: u16 = 3_u16.to_be();

/// The parent of an ingress filter: `ffff:` in tc(8).
pub(crate) const INGRESS: u32 = 0xffff_0000;

/// How an interface is joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Model {
    /// By two tc(8) filters that pass every frame on, between the interface and a tap.
    TcFilter,
    /// By a macvtap in passthru mode on top of the interface (ip-link(8)).
    MacVtap,
}

/// The host's end of a guest's network device.
#[derive(Debug)]
pub struct Nic {
    /// The number of the interface that it is joined to.
    pub index: u32,
    /// The MAC address that the guest's device must have.
    pub mac: Mac,
    /// The most that a frame may carry, in bytes.
    pub mtu: u32,
    /// The open tap, for the VMM. Frames have a virtio-net header (IFF_VNET_HDR).
    pub tap: OwnedFd,
    /// An open vhost-net device for it, if there is to be one.
    pub vhost: Option<OwnedFd>,
}

/// Joins interfaces of the namespace to taps, and with `vhost` opens a vhost-net device for each,
/// where the host has it. On error nothing of it is left. It must be taken back with [`leave`] when
/// the VMM is gone.
pub async fn join(
    namespace: &Namespace,
    interfaces: &[Interface],
    model: Model,
    vhost: bool,
) -> Result<Vec<Nic>, NetworkError> {
    let interfaces = interfaces.to_vec();
    let work = move |netlink: Handle| async move {
        let mut nics = Vec::new();
        for interface in &interfaces {
            match join_one(&netlink, interface, model, vhost).await {
                Ok(nic) => nics.push(nic),
                Err(error) => {
                    drop(nics);
                    let indexes: Vec<u32> = interfaces.iter().map(|one| one.index).collect();
                    if let Err(left) = leave_all(&netlink, &indexes).await {
                        tracing::warn!("after the failure to join {}: {left}", interface.name);
                    }
                    return Err(error);
                }
            }
        }
        Ok(nics)
    };
    namespace.enter(work).await
}

/// Takes away what [`join`] has made for the interfaces with these numbers. What is gone already is
/// fine, and so is an interface that is. The qdisc is taken to be ours: [`join`] fails where there
/// was another.
pub async fn leave(namespace: &Namespace, indexes: &[u32]) -> Result<(), NetworkError> {
    let indexes = indexes.to_vec();
    namespace.enter(|netlink| async move { leave_all(&netlink, &indexes).await }).await
}

/// Like [`leave`], outside of any runtime.
pub fn leave_blocking(namespace: &Namespace, indexes: &[u32]) -> Result<(), NetworkError> {
    let indexes = indexes.to_vec();
    namespace.enter_blocking(|netlink| async move { leave_all(&netlink, &indexes).await })
}

/// Closes the tap but leaves it in its namespace, for a VMM that opens it by the name that is
/// returned, as the user `owner`. [`leave`] removes it.
pub fn leave_tap(nic: Nic, owner: u32) -> Result<String, NetworkError> {
    let Nic { index, tap, .. } = nic;
    let name = tap_name(index);
    tap::keep(&tap, owner).map_err(device(format!("keep the tap {name}")))?;
    Ok(name)
}

/// The tap of an interface. The name is upstream's, with the interface's number, so that it can be
/// found again; a shorter one where that has more digits than an interface's name of 15 bytes has
/// room for.
pub(crate) fn tap_name(index: u32) -> String {
    if index < 10_000_000 { format!("tap{index}_kata") } else { format!("t{index}kata") }
}

async fn join_one(
    netlink: &Handle,
    interface: &Interface,
    model: Model,
    vhost: bool,
) -> Result<Nic, NetworkError> {
    let tap = match model {
        Model::TcFilter => join_by_filter(netlink, interface).await?,
        Model::MacVtap => join_by_macvtap(netlink, interface).await?,
    };
    let vhost = if vhost { tap::open_vhost() } else { Ok(None) };
    let vhost = vhost.map_err(device("open vhost-net"))?;
    Ok(Nic { index: interface.index, mac: interface.mac, mtu: interface.mtu, tap, vhost })
}

async fn join_by_filter(netlink: &Handle, interface: &Interface) -> Result<OwnedFd, NetworkError> {
    let name = tap_name(interface.index);
    let tap = tap::make(&name).map_err(device(format!("make the tap {name}")))?;
    if let Err(error) = tap::silence(&name) {
        tracing::debug!("IPv6 stays on at {name}: {error}");
    }
    let index = index_of(netlink, &name).await?;
    let up = LinkUnspec::new_with_index(index).mtu(interface.mtu).up().build();
    let set = netlink.link().set(up).execute().await;
    set.map_err(kernel(format!("bring the tap {name} up")))?;
    for (from, to, shown) in
        [(interface.index, index, &interface.name), (index, interface.index, &name)]
    {
        redirect(netlink, from, to)
            .await
            .map_err(kernel(format!("redirect traffic of {shown}")))?;
    }
    Ok(tap)
}

/// Whatever comes in at `from` goes out at `to`.
async fn redirect(netlink: &Handle, from: u32, to: u32) -> Result<(), rtnetlink::Error> {
    let from = i32::try_from(from).map_err(|_| rtnetlink::Error::RequestFailed)?;
    netlink.qdisc().add(from).ingress().execute().await?;
    let filter = netlink.traffic_filter(from).add().parent(INGRESS).protocol(ALL_PROTOCOLS);
    filter.redirect(to)?.execute().await
}

async fn join_by_macvtap(netlink: &Handle, interface: &Interface) -> Result<OwnedFd, NetworkError> {
    let name = tap_name(interface.index);
    let made = format!("make the macvtap {name} on {}", interface.name);
    let link = LinkMacVtap::new(&name, interface.index, MacVtapMode::Passthrough).build();
    netlink.link().add(link).execute().await.map_err(kernel(made))?;
    if let Err(error) = tap::silence(&name) {
        tracing::debug!("IPv6 stays on at {name}: {error}");
    }
    let index = index_of(netlink, &name).await?;
    let up = LinkUnspec::new_with_index(index).mtu(interface.mtu).up().build();
    let set = netlink.link().set(up).execute().await;
    set.map_err(kernel(format!("bring the macvtap {name} up")))?;
    tap::open_macvtap(&name, index).map_err(device(format!("open the macvtap {name}")))
}

async fn leave_all(netlink: &Handle, indexes: &[u32]) -> Result<(), NetworkError> {
    for &index in indexes {
        let name = tap_name(index);
        let tap = index_of(netlink, &name).await;
        if let Ok(tap) = tap {
            let removed = netlink.link().del(tap).execute().await;
            removed.or_else(unless_gone).map_err(kernel(format!("remove {name}")))?;
        }
        let what = format!("remove the ingress qdisc of interface {index}");
        let mut removal = netlink.qdisc().del(i32::try_from(index).unwrap_or_default());
        removal.message_mut().header.parent = TcHandle::INGRESS;
        removal.execute().await.or_else(unless_gone).map_err(kernel(what))?;
    }
    Ok(())
}

/// Nothing to remove is as good as removed: no device, or (ENOENT, EINVAL) no such qdisc on it.
fn unless_gone(error: rtnetlink::Error) -> Result<(), rtnetlink::Error> {
    match &error {
        rtnetlink::Error::NetlinkError(message)
            if matches!(-message.raw_code(), libc::ENODEV | libc::ENOENT | libc::EINVAL) =>
        {
            Ok(())
        }
        _ => Err(error),
    }
}

pub(crate) async fn index_of(netlink: &Handle, name: &str) -> Result<u32, NetworkError> {
    let found = netlink.link().get().match_name(name.to_owned()).execute().try_next().await;
    let found: Option<LinkMessage> = found.map_err(kernel(format!("find {name}")))?;
    let is_it = |link: &LinkMessage| {
        link.attributes.iter().any(|one| matches!(one, LinkAttribute::IfName(own) if own == name))
    };
    let index = found.filter(is_it).map(|link| link.header.index);
    index.ok_or(rtnetlink::Error::RequestFailed).map_err(kernel(format!("find {name}")))
}

fn device(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> NetworkError {
    let action = action.into();
    move |source| NetworkError::Device { action, source }
}
