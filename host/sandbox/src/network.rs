//! The sandbox's network: what of its namespace is joined to the VM, and what the guest is told of
//! it.
//!
//! ```text
//!   open ──▶ empty ──────────────────────────────┐
//!     └────▶ joined (a part of the machine that boots) ── start: looked at again ──▶ settled: later interfaces
//!                                                   what came is hot-plugged,         are only told of
//!                                                   what changed is told the guest
//!   whatever it is, leave() takes away what was put into the namespace
//! ```

use std::fmt::Write;
use std::sync::Arc;

use kata_agent_client::{
    AgentClient, AgentError, GuestAddress, GuestInterface, GuestNeighbour, GuestRoute, IpFamily,
};
use kata_hypervisor::{HypervisorError, NicSpec, Tap, Vm};
use kata_log::chain;
use kata_network::{
    Interface, Link, Model, Namespace, NetworkError, Nic, Plan, PlannedRoute, Prefix,
};
use thiserror::Error;

use crate::{Footprint, FootprintError, NetworkPlan, SandboxPlan};

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
    /// There is one more interface now than at boot, and this VM was made without a place for it.
    #[error(
        "the network interface {0} came after the VM had booted beside others that were there, and the VM has no place for it; \
         have all of them in the network namespace before the container is created, or none"
    )]
    Beside(String),
    /// The guest's agent could not set it up.
    #[error("the guest's agent could not set up the network")]
    Agent(#[from] AgentError),
}

/// Whether a sandbox of this plan may have the network namespace that it names. Changes nothing.
///
/// # Errors
///
/// Fails when there is no such namespace, and when it is the host's or another sandbox's.
pub fn check_network(plan: &SandboxPlan) -> Result<(), JoinError> {
    let Some(path) = &plan.network.namespace else { return Ok(()) };
    let namespace = Namespace::open(path)?;
    if plan.network.model.is_some() {
        Footprint::check_claim(&plan.vm.run_dir, &namespace)?;
    }
    Ok(())
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
    /// The numbers of all interfaces that were ever joined, also of those that are gone.
    indexes: Vec<u32>,
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
            indexes: Vec::new(),
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
        let interfaces = plan.interfaces.clone();
        self.join_these(footprint, &interfaces).await?;
        self.tell_remarks(&plan);
        self.joined = plan;
        Ok(())
    }

    /// Joins interfaces beside those that are joined; their devices are to be taken.
    async fn join_these(
        &mut self,
        footprint: &Footprint,
        interfaces: &[Interface],
    ) -> Result<(), JoinError> {
        if interfaces.is_empty() {
            return Ok(());
        }
        let indexes = interfaces.iter().map(|one| one.index);
        footprint.record_interfaces(self.indexes.iter().copied().chain(indexes).collect())?;
        let nics = kata_network::join(&self.namespace, interfaces, self.model, self.vhost).await?;
        self.indexes.extend(interfaces.iter().map(|one| one.index));
        let nics = nics.into_iter().map(|nic| nic_spec(nic, self.named_taps));
        self.nics = nics.collect::<Result<_, _>>()?;
        Ok(())
    }

    fn tell_remarks(&self, plan: &Plan) {
        for remark in &plan.remarks {
            tracing::warn!("network namespace {}: {remark}", self.namespace.path().display());
        }
    }

    fn tell_gone(&self, plan: &Plan) {
        let is_there = |old: &Interface| plan.interfaces.iter().any(|one| one.index == old.index);
        for gone in self.joined.interfaces.iter().filter(|old| !is_there(old)) {
            tracing::warn!(
                "network namespace {}: the interface {} is gone or down since the VM booted; the guest still has it",
                self.namespace.path().display(),
                gone.name
            );
        }
    }

    /// Looks at the namespace again, before the first container starts: some engines fill it only
    /// then, or add to it. What came is joined, and what changed is told the guest.
    pub(crate) async fn join_late(
        &mut self,
        footprint: &Footprint,
        vm: &dyn Vm,
        agent: &AgentClient,
    ) -> Result<(), JoinError> {
        let there = kata_network::scan(&self.namespace).await?;
        let plan = kata_network::plan_again(&there, &self.joined)?;
        if plan == self.joined {
            return Ok(());
        }
        let came: Vec<Interface> =
            plan.interfaces.iter().filter(|one| !self.has_joined(one.index)).cloned().collect();
        let names: Vec<String> = came.iter().map(|one| one.name.clone()).collect();
        if !self.hot_plug && !came.is_empty() {
            return Err(JoinError::Late(names.join(", ")));
        }
        self.join_these(footprint, &came).await?;
        let is_beside = !self.is_empty();
        for (nic, interface) in self.take_nics().iter().zip(names) {
            vm.add_nic(nic).await.map_err(|source| match source {
                HypervisorError::Unsupported { .. } if is_beside => JoinError::Beside(interface),
                source => JoinError::Vm { interface, source },
            })?;
        }
        self.tell_remarks(&plan);
        self.tell_gone(&plan);
        let before = std::mem::replace(&mut self.joined, plan);
        self.configure_beside(agent, &before).await
    }

    /// Tells the guest what its interfaces are to be.
    pub(crate) async fn configure(&self, agent: &AgentClient) -> Result<(), JoinError> {
        self.configure_beside(agent, &Plan::default()).await
    }

    /// The same for a guest that was told `before`.
    async fn configure_beside(&self, agent: &AgentClient, before: &Plan) -> Result<(), JoinError> {
        let plan = &self.joined;
        let changed = |one: &&Interface| !before.interfaces.contains(one);
        let interfaces: Vec<_> = plan.interfaces.iter().filter(changed).collect();
        for interface in &interfaces {
            agent.update_interface(&guest_interface(interface)).await?;
        }
        // Routes and neighbours go with an address or an interface that is set anew.
        let is_anew = !interfaces.is_empty();
        if plan.routes != before.routes || (is_anew && !plan.routes.is_empty()) {
            let routes: Vec<_> = plan.routes.iter().map(guest_route).collect();
            agent.update_routes(&routes).await?;
        }
        if !plan.neighbours.is_empty() && (is_anew || plan.neighbours != before.neighbours) {
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
            if !self.has_joined(interface.index) {
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
                let indexes: Vec<u32> =
                    self.joined.interfaces.iter().map(|one| one.index).collect();
                let shared = kata_network::share_with_sockets(&self.namespace, &indexes).await;
                shared.map_err(|error| chain(&error))
            }
            Model::MacVtap => {
                Err("a macvtap takes everything; set `internetworking_model` to \"tcfilter\""
                    .to_owned())
            }
        }
    }

    fn has_joined(&self, index: u32) -> bool {
        self.indexes.contains(&index)
    }

    /// Takes away what was put into the namespace. The VMM must be gone.
    pub(crate) async fn leave(&self) {
        if self.indexes.is_empty() {
            return;
        }
        if let Err(error) = kata_network::leave(&self.namespace, &self.indexes).await {
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

fn guest_interface(interface: &Interface) -> GuestInterface {
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
