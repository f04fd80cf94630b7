//! The sandbox's network: what of its namespace is joined to the VM, and what the guest is told of
//! it.
//!
//! ```text
//!   open ──▶ empty ──────────── start: looked at again ──▶ joined (hot-plugged), or empty for good
//!     │                                                       │
//!     └────▶ joined (a part of the machine that boots) ───────┴──▶ settled: later interfaces are only told of
//!   whatever it is, leave() takes away what was put into the namespace
//! ```

use std::fmt::Write;
use std::sync::Arc;

use kata_agent_client::{
    AgentClient, AgentError, GuestAddress, GuestInterface, GuestNeighbour, GuestRoute, IpFamily,
};
use kata_hypervisor::{HypervisorError, NicSpec, Tap, Vm};
use kata_log::chain;
use kata_network::{Link, Model, Namespace, NetworkError, Nic, Plan, PlannedRoute, Prefix};
use thiserror::Error;

use crate::{Footprint, FootprintError, NetworkPlan};

/// `IFF_NOARP` of linux/if.h.
const NO_ARP: u32 = 0x80;

/// Why a sandbox's network could not be set up.
#[derive(Debug, Error)]
pub enum JoinError {
    /// The namespace, or what is in it, cannot be used.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// It belongs to another sandbox, or could not be written down.
    #[error(transparent)]
    Footprint(#[from] FootprintError),
    /// The VM did not take an interface.
    #[error("cannot give the VM the network interface {interface}")]
    Vm {
        /// Its name.
        interface: String,
        /// What the driver said.
        #[source]
        source: HypervisorError,
    },
    /// There is an interface now that was not there at boot, and the driver takes none any more.
    #[error(
        "the network interface {0} came after the VM had booted, and its hypervisor takes no network devices then; \
         choose qemu with `hypervisor_name` in the section runtime, or set `internetworking_model` to \"none\""
    )]
    Late(String),
    /// The guest's agent could not set it up.
    #[error("the guest's agent could not set up the network")]
    Agent(#[from] AgentError),
}

/// The network of one sandbox, as far as it is joined.
#[derive(Debug)]
pub(crate) struct SandboxNetwork {
    namespace: Namespace,
    model: Model,
    vhost: bool,
    named_taps: Option<u32>,
    hot_plug: bool,
    joined: Plan,
    nics: Vec<NicSpec>,
    /// Containers have started: what comes now is not joined any more.
    settled: bool,
}

impl SandboxNetwork {
    /// Opens the namespace that the plan names, or makes one, and joins what is in it. `None` when
    /// the plan wants none. The namespace is entered in the footprint before it is touched.
    pub(crate) async fn open(
        plan: &NetworkPlan,
        footprint: &Footprint,
    ) -> Result<Option<Self>, JoinError> {
        let namespace = match &plan.namespace {
            // Also without a model: who asks for the host's network shall not get none.
            Some(path) => Namespace::open(path)?,
            None if plan.model.is_none() => return Ok(None),
            None => Namespace::fresh()?,
        };
        let Some(model) = plan.model else { return Ok(None) };
        if plan.namespace.is_some() {
            footprint.claim(&namespace)?;
        }
        let mut network = Self {
            namespace,
            model,
            vhost: plan.vhost,
            named_taps: plan.named_taps,
            hot_plug: plan.hot_plug,
            joined: Plan::default(),
            nics: Vec::new(),
            settled: false,
        };
        // A fresh one needs no look.
        if plan.namespace.is_some() {
            network.join(footprint).await?;
        }
        Ok(Some(network))
    }

    /// The namespace, for the VMM of a sandbox that has no other process in it.
    pub(crate) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Whether nothing is joined.
    pub(crate) fn is_empty(&self) -> bool {
        self.joined.is_empty()
    }

    /// The devices for the VM, once: a tap goes only when nobody holds it.
    pub(crate) fn take_nics(&mut self) -> Vec<NicSpec> {
        std::mem::take(&mut self.nics)
    }

    /// Reads the namespace and joins all that is in it.
    async fn join(&mut self, footprint: &Footprint) -> Result<(), JoinError> {
        let plan = kata_network::plan(&kata_network::scan(&self.namespace).await?)?;
        if plan.is_empty() {
            return Ok(());
        }
        for remark in &plan.remarks {
            tracing::warn!("network namespace {}: {remark}", self.namespace.path().display());
        }
        footprint.record_interfaces(plan.interfaces.iter().map(|one| one.index).collect())?;
        let nics =
            kata_network::join(&self.namespace, &plan.interfaces, self.model, self.vhost).await?;
        let nics = nics.into_iter().map(|nic| nic_spec(nic, self.named_taps));
        self.nics = nics.collect::<Result<_, _>>()?;
        self.joined = plan;
        Ok(())
    }

    /// Looks at a namespace that was empty again, before the first container starts: some engines
    /// fill it only then.
    pub(crate) async fn join_late(
        &mut self,
        footprint: &Footprint,
        vm: &dyn Vm,
        agent: &AgentClient,
    ) -> Result<(), JoinError> {
        if !self.hot_plug {
            return self.strangers().await?.map_or(Ok(()), |list| Err(JoinError::Late(list)));
        }
        self.join(footprint).await?;
        let names: Vec<String> =
            self.joined.interfaces.iter().map(|one| one.name.clone()).collect();
        for (nic, interface) in self.take_nics().iter().zip(names) {
            vm.add_nic(nic).await.map_err(|source| JoinError::Vm { interface, source })?;
        }
        self.configure(agent).await
    }

    /// Tells the guest what its interfaces are to be.
    pub(crate) async fn configure(&self, agent: &AgentClient) -> Result<(), JoinError> {
        let plan = &self.joined;
        for interface in &plan.interfaces {
            agent.update_interface(&guest_interface(interface)).await?;
        }
        if !plan.routes.is_empty() {
            let routes: Vec<_> = plan.routes.iter().map(guest_route).collect();
            agent.update_routes(&routes).await?;
        }
        if !plan.neighbours.is_empty() {
            let neighbours: Vec<_> = plan.neighbours.iter().map(guest_neighbour).collect();
            agent.add_arp_neighbors(&neighbours).await?;
        }
        Ok(())
    }

    /// From now on nothing is joined any more. `true` the first time.
    pub(crate) fn settle(&mut self) -> bool {
        !std::mem::replace(&mut self.settled, true)
    }

    /// Interfaces in the namespace that are not joined, as a list for people; `None` when there are
    /// none.
    pub(crate) async fn strangers(&self) -> Result<Option<String>, JoinError> {
        let there = kata_network::scan(&self.namespace).await?;
        let mut list = String::new();
        for Link { interface, .. } in kata_network::in_use(&there) {
            if !self.joined.interfaces.iter().any(|one| one.index == interface.index) {
                let comma = if list.is_empty() { "" } else { ", " };
                // Writing to a String cannot fail.
                let _ = write!(list, "{comma}{}", interface.name);
            }
        }
        Ok(Some(list).filter(|list| !list.is_empty()))
    }

    /// Lets sockets of the namespace itself be answered from outside, beside the guest; else the
    /// reason why they are not.
    pub(crate) async fn share_with_sockets(&self) -> Result<(), String> {
        match self.model {
            Model::TcFilter => {
                let indexes = self.joined_indexes();
                let shared = kata_network::share_with_sockets(&self.namespace, &indexes).await;
                shared.map_err(|error| chain(&error))
            }
            Model::MacVtap => {
                Err("a macvtap takes everything; set `internetworking_model` to \"tcfilter\""
                    .to_owned())
            }
        }
    }

    fn joined_indexes(&self) -> Vec<u32> {
        self.joined.interfaces.iter().map(|one| one.index).collect()
    }

    /// Takes away what was put into the namespace. The VMM must be gone.
    pub(crate) async fn leave(&self) {
        let indexes = self.joined_indexes();
        if indexes.is_empty() {
            return;
        }
        if let Err(error) = kata_network::leave(&self.namespace, &indexes).await {
            let shown = self.namespace.path().display();
            tracing::warn!("network namespace {shown} is not as it was found: {error}");
        }
    }
}

/// The device as the driver takes it: with an `opener` its tap stays in the namespace, open to
/// nobody, for that user.
fn nic_spec(nic: Nic, opener: Option<u32>) -> Result<NicSpec, NetworkError> {
    let (id, mac, mtu) = (nic.index.to_string(), nic.mac.to_string(), nic.mtu);
    if let Some(opener) = opener {
        let tap = Tap::Named(kata_network::leave_tap(nic, opener)?);
        return Ok(NicSpec { id, mac, mtu, tap, vhost: None });
    }
    let tap = Tap::Open(Arc::new(nic.tap));
    Ok(NicSpec { id, mac, mtu, tap, vhost: nic.vhost.map(Arc::new) })
}

fn guest_interface(interface: &kata_network::Interface) -> GuestInterface {
    GuestInterface {
        device: interface.name.clone(),
        name: interface.name.clone(),
        addresses: interface.addresses.iter().copied().map(guest_address).collect(),
        mtu: interface.mtu.into(),
        mac: interface.mac.to_string(),
        device_path: String::new(),
        kind: interface.kind.clone(),
        flags: if interface.no_arp { NO_ARP } else { 0 },
    }
}

fn guest_address(prefix: Prefix) -> GuestAddress {
    GuestAddress { address: prefix.address, prefix: prefix.length }
}

fn guest_route(planned: &PlannedRoute) -> GuestRoute {
    let route = &planned.route;
    GuestRoute {
        destination: route.destination.map(guest_address),
        gateway: route.gateway,
        device: planned.device.clone(),
        source: route.source,
        scope: route.scope.into(),
        family: if route.ipv6 { IpFamily::V6 } else { IpFamily::V4 },
        flags: route.flags,
        mtu: route.mtu,
    }
}

fn guest_neighbour((device, entry): &(String, kata_network::Neighbour)) -> GuestNeighbour {
    GuestNeighbour {
        address: entry.address,
        device: device.clone(),
        mac: entry.mac.to_string(),
        state: entry.state.into(),
        flags: entry.flags.into(),
    }
}
