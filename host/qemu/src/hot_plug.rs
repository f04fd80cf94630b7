//! Where devices go that come while the VM runs.

use std::collections::VecDeque;
use std::sync::Mutex;

use kata_hypervisor::HypervisorError;

use crate::device::Device;
use crate::machine::Machine;

/// How many devices a microvm takes. A port takes one, and each makes a boot some milliseconds longer.
const PORTS: u32 = 4;

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
    pub(crate) fn of(machine: Machine, wanted: bool) -> Self {
        match machine {
            Machine::Q35 if wanted => Self::Bus,
            Machine::MicrovmPci => {
                Self::Ports(Mutex::new((0..PORTS).map(|number| format!("hot{number}")).collect()))
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
                let ports = free.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                let port =
                    |(slot, id): (u32, &String)| Device::HotPlugPort { id: id.clone(), slot };
                (0..).zip(ports.iter()).map(port).collect()
            }
        }
    }

    /// The name of a bus for one more device, which is used up by this.
    pub(crate) fn take(&self) -> Result<String, HypervisorError> {
        let refused = |what| Err(HypervisorError::Unsupported { driver: "qemu", what });
        match self {
            Self::Refused => refused("network interfaces that come after the boot, of this VM"),
            Self::Bus => Ok(BUS.to_owned()),
            Self::Ports(free) => {
                let mut free = free.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                free.pop_front().map_or_else(
                    || {
                        refused(
                            "more than four network interfaces that come after the boot of a microvm; set `machine_type` to \"q35\"",
                        )
                    },
                    Ok,
                )
            }
        }
    }
}

/// The one bus's name.
const BUS: &str = "hot";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn microvm_takes_one_device_for_each_port() {
        let ports = HotPlug::of(Machine::MicrovmPci, true);
        assert_eq!(ports.devices().len(), PORTS as usize);
        let taken: Vec<_> = (0..PORTS).map(|_| ports.take().unwrap()).collect();
        assert_eq!(taken, ["hot0", "hot1", "hot2", "hot3"]);
        assert!(ports.take().unwrap_err().to_string().contains("q35"));
    }

    #[test]
    fn q35_has_one_bus_for_all_where_it_is_wanted() {
        let bus = HotPlug::of(Machine::Q35, true);
        assert_eq!(bus.devices(), [Device::HotPlugBus { id: "hot".into() }]);
        assert_eq!((bus.take().unwrap(), bus.take().unwrap()), ("hot".into(), "hot".into()));
        assert!(HotPlug::of(Machine::Q35, false).take().is_err());
    }
}
