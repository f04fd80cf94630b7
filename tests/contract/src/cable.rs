//! A network device whose other end is a host that answers and asks.
//!
//! ```text
//!   the tests' host: w0 (10.77.0.1/24) ═══ eth0 ◀── kata-network ──▶ tap ── VMM ── eth0 (10.77.0.2/24) :the guest
//! ```

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use kata_agent_client::{GuestAddress, GuestInterface};
use kata_hypervisor::{Capabilities, NicSpec, Tap, Vm, VmSpec};
use kata_network::{Model, Namespace};
use tokio::process::Command;
use tokio::time::timeout;

use crate::bench::{SOON, last_words};

/// The guest's address.
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

/// A named network namespace, which goes when it is dropped.
#[derive(Debug)]
pub(crate) struct Cable {
    name: String,
    /// The device, once: a tap goes only when nobody holds it.
    pub(crate) nic: Option<NicSpec>,
    /// Where a VMM lives that opens the tap itself; `None` for others.
    inside: Option<Arc<OwnedFd>>,
}

impl Cable {
    /// Makes the namespace, and a tap that is joined to what is in it, as a driver takes it that
    /// can do this.
    pub(crate) async fn new(can: Capabilities) -> Result<Self> {
        let name = format!("contract-{}", std::process::id());
        let mut cable = Self { name, nic: None, inside: None };
        ip(&["netns", "add", &cable.name]).await?;
        let commands = [
            "link add w0 type veth peer name eth0",
            "link set eth0 up",
            "link set w0 up",
            "address add 10.77.0.1/24 dev w0",
        ];
        for command in commands {
            let words: Vec<&str> =
                ["-n", &cable.name].into_iter().chain(command.split(' ')).collect();
            ip(&words).await?;
        }
        let namespace = Namespace::open(&Path::new("/run/netns").join(&cable.name))?;
        let mut plan = kata_network::plan(&kata_network::scan(&namespace).await?)?;
        plan.interfaces.retain(|interface| interface.name == "eth0");
        let mut nics =
            kata_network::join(&namespace, &plan.interfaces, Model::TcFilter, false).await?;
        let nic = nics.pop().context("eth0 was not joined")?;
        let (id, mac, mtu) = (nic.index.to_string(), nic.mac.to_string(), nic.mtu);
        cable.inside = can.named_taps.map(|_| namespace.descriptor());
        let tap = match can.named_taps {
            Some(owner) => Tap::Named(kata_network::leave_tap(nic, owner)?),
            None => Tap::Open(Arc::new(nic.tap)),
        };
        cable.nic = Some(NicSpec { id, mac, mtu, tap, vhost: None });
        Ok(cable)
    }

    /// Gives the device to a VM that is not booted yet. Returns what its agent is to be told.
    pub(crate) fn plug_into(&mut self, spec: &mut VmSpec) -> Result<GuestInterface> {
        let nic = self.nic.take().context("the device has been taken")?;
        let interface = Self::interface(&nic);
        spec.network_namespace.clone_from(&self.inside);
        spec.nics.push(nic);
        Ok(interface)
    }

    /// What the guest's agent is told of the device.
    pub(crate) fn interface(nic: &NicSpec) -> GuestInterface {
        GuestInterface {
            device: "eth0".to_owned(),
            name: "eth0".to_owned(),
            addresses: vec![GuestAddress { address: IpAddr::V4(GUEST), prefix: 24 }],
            mtu: nic.mtu.into(),
            mac: nic.mac.clone(),
            device_path: String::new(),
            kind: String::new(),
            flags: 0,
        }
    }

    /// Has the guest answer.
    pub(crate) async fn carries(&self, vm: &dyn Vm) -> Result<()> {
        let guest = GUEST.to_string();
        let ping = ["netns", "exec", &self.name, "busybox", "ping", "-c", "1", "-w", "20", &guest];
        ip(&ping).await.with_context(|| last_words(vm))
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        // A test that failed may not have got as far as to make it.
        let _ = std::process::Command::new("ip").args(["netns", "delete", &self.name]).output();
    }
}

async fn ip(args: &[&str]) -> Result<()> {
    let output = timeout(SOON, Command::new("ip").args(args).output()).await;
    let output = output.context("ip does not end")?.context("cannot run ip")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {}: {said}", args.join(" "));
    Ok(())
}
