//! The devices that are a sandbox's own: what it shares with the host, and its network. A VM that
//! boots has them from the start. One that goes on from a template, which has none, gets them when
//! it goes on: QEMU 7.2 reads no state where there is a file share.

use kata_hypervisor::HypervisorError;

use crate::device::{Argument, Device, FileShare, Nic, Transport};
use crate::hot_plug::NIC_PORTS;
use crate::later_nics::object;
use crate::qmp::{Command, Qmp};

/// The ports of a template are numbered from here on, beyond those for devices that come later.
const FIRST_SLOT: u32 = 100;

/// How many shares and network devices there are places for in a template.
const SHARES: usize = 1;
const PLACES: usize = SHARES + NIC_PORTS;

/// The own devices of a VM.
#[derive(Debug, Clone, Default)]
pub(crate) struct OwnDevices {
    pub(crate) shares: Vec<FileShare>,
    pub(crate) nics: Vec<Nic>,
}

impl OwnDevices {
    /// All of them, for a VM that boots.
    pub(crate) fn arguments(&self, transport: Transport) -> Vec<Argument> {
        let shares = self.shares.iter().cloned().map(Device::FileShare);
        let all = shares.chain(self.nics.iter().cloned().map(Device::Nic));
        // They have names already, and need no number for them.
        all.flat_map(|device| device.arguments(transport, 0)).collect()
    }

    /// What is behind them, which a VM that goes on has from the start.
    pub(crate) fn backends(&self) -> Vec<Argument> {
        let shares = self.shares.iter().map(FileShare::backend);
        shares.chain(self.nics.iter().map(Nic::backend_argument)).collect()
    }

    /// Whether a template has places for so many.
    pub(crate) fn fit(shares: usize, nics: usize) -> bool {
        shares <= SHARES && nics <= NIC_PORTS
    }

    /// The places that a template has for them. Without a switch for their power devices are there
    /// as soon as the guest looks.
    pub(crate) fn places() -> impl Iterator<Item = Device> {
        let port = |(slot, id)| Device::HotPlugPort { id, slot, power_switch: false };
        (FIRST_SLOT..).zip((0..PLACES).map(place)).map(port)
    }

    /// Gives them to a VM that goes on. The guest sees them when it looks at its PCI bus.
    pub(crate) async fn plug(&self, qmp: &Qmp) -> Result<(), HypervisorError> {
        let shares = self.shares.iter().map(|share| ("vhost-user-fs", share.frontend()));
        let nics = self.nics.iter().map(|nic| ("virtio-net", nic.frontend(Transport::Pci)));
        for (number, (kind, options)) in shares.chain(nics).enumerate() {
            let mut device = object(options);
            device["driver"] = Transport::Pci.driver(kind).into();
            device["bus"] = place(number).into();
            qmp.execute(Command::DeviceAdd(device)).await?;
        }
        Ok(())
    }
}

fn place(number: usize) -> String {
    format!("own{number}")
}
