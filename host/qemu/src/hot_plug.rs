//! Where devices go that come while the VM runs.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use kata_hypervisor::VmSpec;

use crate::device::Device;
use crate::machine::Machine;

/// How many network devices a microvm takes. A port takes one device, and each makes a boot some
/// milliseconds longer.
pub(crate) const NIC_PORTS: usize = 4;

/// The places for devices that come later.
#[derive(Debug)]
pub(crate) enum HotPlug {
    /// There are none.
    Refused,
    /// One bus for all of them.
    Bus,
    /// Ports for one each; those that are free.
    Ports(Mutex<VecDeque<String>>),
}

impl HotPlug {
    /// The places that a machine has; none unless they are wanted.
    pub(crate) fn of(machine: Machine, spec: &VmSpec) -> Self {
        let nics = if spec.hot_plug { NIC_PORTS } else { 0 };
        let wanted = nics + spec.later_disks.count();
        match machine {
            Machine::Q35 if wanted > 0 => Self::Bus,
            Machine::MicrovmPci => {
                Self::Ports(Mutex::new((0..wanted).map(|number| format!("hot{number}")).collect()))
            }
            Machine::Microvm | Machine::Q35 => Self::Refused,
        }
    }

    /// What the machine needs for them from the start.
    pub(crate) fn devices(&self) -> Vec<Device> {
        match self {
            Self::Refused => Vec::new(),
            Self::Bus => vec![Device::HotPlugBus { id: BUS.to_owned() }],
            Self::Ports(free) => {
                let ports = free.lock().unwrap_or_else(PoisonError::into_inner);
                let port = |(slot, id): (u32, &String)| Device::HotPlugPort {
                    id: id.clone(),
                    slot,
                    power_switch: true,
                };
                (0..).zip(ports.iter()).map(port).collect()
            }
        }
    }

    /// The name of a bus for one more device, which has it from then on; `None` if there is none.
    pub(crate) fn take(&self) -> Option<String> {
        match self {
            Self::Refused => None,
            Self::Bus => Some(BUS.to_owned()),
            Self::Ports(free) => free.lock().unwrap_or_else(PoisonError::into_inner).pop_front(),
        }
    }

    /// Whether there are places at all, free or not.
    pub(crate) fn has_any(&self) -> bool {
        !matches!(self, Self::Refused)
    }

    /// Gives back what was taken, when the device is gone.
    pub(crate) fn give_back(&self, bus: String) {
        if let Self::Ports(free) = self {
            free.lock().unwrap_or_else(PoisonError::into_inner).push_back(bus);
        }
    }

    /// Why a network device has no place.
    pub(crate) fn no_nic(&self) -> &'static str {
        match self {
            Self::Ports(_) => {
                "more than four network interfaces that come after the boot of a microvm; set `machine_type` to \"q35\""
            }
            Self::Refused | Self::Bus => "network interfaces that come after the boot, of this VM",
        }
    }
}

/// The one bus's name.
const BUS: &str = "hot";

#[cfg(test)]
mod tests {
    use kata_hypervisor::{GuestRoot, LaterDisks};

    use super::*;

    fn spec(hot_plug: bool, writable: usize) -> VmSpec {
        let later_disks = LaterDisks { readonly: 0, writable };
        let initrd = GuestRoot::Initrd("/initrd".into());
        VmSpec { hot_plug, later_disks, ..VmSpec::bare("web", "/kernel", initrd, "/run/kata/web") }
    }

    #[test]
    fn microvm_takes_one_device_for_each_port() {
        let ports = HotPlug::of(Machine::MicrovmPci, &spec(true, 0));
        assert_eq!(ports.devices().len(), NIC_PORTS);
        let taken: Vec<_> = (0..NIC_PORTS).map(|_| ports.take().unwrap()).collect();
        assert_eq!(taken, ["hot0", "hot1", "hot2", "hot3"]);
        assert_eq!(ports.take(), None);
        assert!(ports.no_nic().contains("q35"));
        ports.give_back("hot2".into());
        assert_eq!(ports.take().as_deref(), Some("hot2"));
        assert_eq!(HotPlug::of(Machine::MicrovmPci, &spec(true, 3)).devices().len(), NIC_PORTS + 3);
        assert_eq!(HotPlug::of(Machine::MicrovmPci, &spec(false, 3)).devices().len(), 3);
    }

    #[test]
    fn q35_has_one_bus_for_all_where_it_is_wanted() {
        for wanted in [spec(true, 0), spec(false, 1)] {
            let bus = HotPlug::of(Machine::Q35, &wanted);
            assert_eq!(bus.devices(), [Device::HotPlugBus { id: "hot".into() }]);
            assert_eq!((bus.take().unwrap(), bus.take().unwrap()), ("hot".into(), "hot".into()));
        }
        assert!(HotPlug::of(Machine::Q35, &spec(false, 0)).take().is_none());
    }
}
