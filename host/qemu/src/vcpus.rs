//! Virtual CPUs, and those that come and go while the VM runs.
//!
//! | | on a q35 under KVM | else |
//! |---|---|---|
//! | those that may come | are plugged into free sockets | are there from the start, and the guest's kernel is told not to use them |
//! | those that go | are taken away | stay, unused |
//!
//! A microvm has no sockets. And the emulation cannot do it: QEMU 7.2 breaks its own heap when a
//! place is filled for the second time, and Linux 6.12 takes sockets that are empty at boot for
//! ones that stay empty unless it knows the hypervisor, which it does not know the emulation as. So
//! there the guest can use all of them whenever its kernel likes to.

use kata_hypervisor::{HypervisorError, VmSpec};
use serde_json::{Value, json};

use crate::accelerator::Accelerator;
use crate::machine::Machine;
use crate::option::OptionValue;
use crate::qmp::{Command, Qmp};

/// The virtual CPUs of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Vcpus {
    boot: u32,
    more: More,
}

/// Those that may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum More {
    None,
    /// From the start there are so many altogether.
    Unused(u32),
    /// There are so many sockets altogether.
    Plugged(u32),
}

/// A place for one, as QEMU tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    socket: u64,
    taken: bool,
    /// What to put there: a device that can be added but for its name.
    device: Value,
}

impl Vcpus {
    /// Those of a spec, on a machine.
    pub(crate) fn of(spec: &VmSpec, machine: Machine, accelerator: Accelerator) -> Self {
        match spec.most_vcpus.filter(|most| *most > spec.vcpus) {
            None => Self::fixed(spec.vcpus),
            Some(most) if machine == Machine::Q35 && accelerator == Accelerator::Kvm => {
                Self { boot: spec.vcpus, more: More::Plugged(most) }
            }
            Some(most) => Self { boot: spec.vcpus, more: More::Unused(most) },
        }
    }

    /// So many, which stay as they are.
    pub(crate) fn fixed(count: u32) -> Self {
        Self { boot: count, more: More::None }
    }

    /// How many the machine starts with.
    pub(crate) fn at_start(self) -> u32 {
        match self.more {
            More::None | More::Plugged(_) => self.boot,
            More::Unused(most) => most,
        }
    }

    /// The value of QEMU's option.
    pub(crate) fn argument(self) -> OptionValue {
        let start = OptionValue::new(self.at_start());
        match self.more {
            More::None | More::Unused(_) => start,
            // A socket for each, so that one's place is its number.
            More::Plugged(most) => start
                .with("maxcpus", most)
                .with("sockets", most)
                .with("cores", 1)
                .with("threads", 1),
        }
    }

    /// What the guest's kernel is told: how many it begins with, where it does not use all.
    pub(crate) fn kernel_parameter(self) -> Option<String> {
        match self.more {
            More::None | More::Plugged(_) => None,
            More::Unused(_) => Some(format!("maxcpus={}", self.boot)),
        }
    }

    /// See [`kata_hypervisor::Vm::resize_vcpus`].
    pub(crate) async fn resize(self, qmp: &Qmp, count: u32) -> Result<(), HypervisorError> {
        let most = match self.more {
            More::None => return Err(HypervisorError::FixedVcpus),
            More::Unused(_) => return Ok(()),
            More::Plugged(most) => most,
        };
        let count = u64::from(count.clamp(self.boot, most));
        for place in places(qmp).await? {
            let id = format!("cpu-{}", place.socket);
            if place.socket < count && !place.taken {
                let mut device = place.device;
                device["id"] = id.into();
                qmp.execute(Command::DeviceAdd(device)).await?;
            } else if place.socket >= count && place.taken {
                remove(qmp, &id, place.socket).await?;
            }
        }
        Ok(())
    }
}

/// Asks the guest to let the one in this place go, and waits until it has.
async fn remove(qmp: &Qmp, id: &str, socket: u64) -> Result<(), HypervisorError> {
    let mut removals = qmp.removals();
    qmp.execute(Command::DeviceDel(id.to_owned())).await?;
    while places(qmp).await?.iter().any(|place| place.socket == socket && place.taken) {
        // The sender is gone with the socket, of which the next look tells.
        let _ = removals.changed().await;
    }
    Ok(())
}

/// All places, in their order.
async fn places(qmp: &Qmp) -> Result<Vec<Place>, HypervisorError> {
    let listed = qmp.ask(Command::QueryHotpluggableCpus).await?;
    let mut places: Vec<_> = listed.as_array().into_iter().flatten().filter_map(place).collect();
    places.sort_by_key(|place| place.socket);
    Ok(places)
}

/// One item of QEMU's list; `None` if it is none.
fn place(item: &Value) -> Option<Place> {
    let properties = item["props"].as_object()?;
    let mut device = json!({ "driver": item["type"].as_str()? });
    for (key, value) in properties {
        device[key.as_str()] = value.clone();
    }
    let socket = properties.get("socket-id")?.as_u64()?;
    Some(Place { socket, taken: !item["qom-path"].is_null(), device })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use kata_hypervisor::GuestRoot;

    use super::*;
    use crate::qmp::tests::{Peer, connected};

    const THREE_SOCKETS: Vcpus = Vcpus { boot: 1, more: More::Plugged(3) };

    /// QEMU, asked for its places, of which those of these sockets are taken.
    async fn tell_places(peer: &mut Peer, taken: &[u64]) {
        assert_eq!(peer.hear().await, r#"{"execute":"query-hotpluggable-cpus"}"#);
        let place = |socket| {
            let mut place = json!({ "type": "host-x86_64-cpu", "props": { "socket-id": socket } });
            if taken.contains(&socket) {
                place["qom-path"] = "/machine".into();
            }
            place
        };
        let places: Vec<_> = (0..3).rev().map(place).collect();
        peer.say(&json!({ "return": places }).to_string()).await;
    }

    #[tokio::test]
    async fn free_sockets_are_filled_from_the_first_one_on() {
        let (qmp, mut peer) = connected().await;
        let answer = async {
            tell_places(&mut peer, &[0]).await;
            let added = peer.hear().await;
            for part in ["device_add", r#""id":"cpu-1""#, r#""socket-id":1"#, "host-x86_64-cpu"] {
                assert!(added.contains(part), "{added}");
            }
            peer.say(r#"{"return": {}}"#).await;
        };
        let (resized, ()) = tokio::join!(THREE_SOCKETS.resize(&qmp, 2), answer);
        resized.unwrap();
    }

    #[tokio::test]
    async fn taken_sockets_are_waited_for_until_they_are_free() {
        let (qmp, mut peer) = connected().await;
        let answer = async {
            tell_places(&mut peer, &[0, 1, 2]).await;
            let removed = peer.hear().await;
            assert_eq!(removed, r#"{"execute":"device_del","arguments":{"id":"cpu-2"}}"#);
            peer.say(r#"{"return": {}}"#).await;
            tell_places(&mut peer, &[0, 1, 2]).await;
            // Of the processor's interrupt controller, which goes first and says nothing.
            peer.say(r#"{"event": "DEVICE_DELETED", "data": {}}"#).await;
            // Of another device.
            peer.say(r#"{"event": "DEVICE_DELETED", "data": { "device": "disk-1" }}"#).await;
            tell_places(&mut peer, &[0, 1, 2]).await;
            peer.say(r#"{"event": "DEVICE_DELETED", "data": { "device": "cpu-2" }}"#).await;
            tell_places(&mut peer, &[0, 1]).await;
        };
        let (resized, ()) = tokio::join!(THREE_SOCKETS.resize(&qmp, 2), answer);
        resized.unwrap();
    }

    #[tokio::test]
    async fn end_of_qemu_ends_the_wait() {
        let (qmp, mut peer) = connected().await;
        let answer = async {
            tell_places(&mut peer, &[0, 1]).await;
            peer.hear().await;
            drop(peer);
        };
        let (resized, ()) = tokio::join!(THREE_SOCKETS.resize(&qmp, 1), answer);
        assert!(resized.is_err());
    }

    fn vcpus(most: Option<u32>, machine: Machine, accelerator: Accelerator) -> Vcpus {
        let initrd = GuestRoot::Initrd(PathBuf::new());
        let spec = VmSpec {
            vcpus: 2,
            most_vcpus: most,
            ..VmSpec::bare("web", "/kernel", initrd, "/run/kata/web")
        };
        Vcpus::of(&spec, machine, accelerator)
    }

    #[test]
    fn sockets_wait_for_what_comes_where_they_can() {
        let plugged = vcpus(Some(8), Machine::Q35, Accelerator::Kvm);
        let argument = String::from(plugged.argument());
        assert_eq!(argument, "2,maxcpus=8,sockets=8,cores=1,threads=1");
        assert_eq!((plugged.at_start(), plugged.kernel_parameter()), (2, None));
    }

    #[test]
    fn all_are_there_from_the_start_where_none_can_come() {
        for (machine, accelerator) in
            [(Machine::Q35, Accelerator::Tcg), (Machine::Microvm, Accelerator::Kvm)]
        {
            let unused = vcpus(Some(8), machine, accelerator);
            assert_eq!(String::from(unused.argument()), "8");
            assert_eq!(unused.kernel_parameter().as_deref(), Some("maxcpus=2"));
        }
    }

    #[test]
    fn none_may_come_where_none_are_wanted() {
        for most in [None, Some(2)] {
            let fixed = vcpus(most, Machine::Q35, Accelerator::Kvm);
            assert_eq!(String::from(fixed.argument()), "2");
            assert_eq!((fixed.at_start(), fixed.kernel_parameter()), (2, None));
        }
    }

    #[test]
    fn place_is_read_as_qemu_tells_it() {
        let free = json!({ "type": "host-x86_64-cpu", "vcpus-count": 1, "props": { "socket-id": 3, "core-id": 0, "thread-id": 0 } });
        let device =
            json!({ "driver": "host-x86_64-cpu", "socket-id": 3, "core-id": 0, "thread-id": 0 });
        assert_eq!(place(&free), Some(Place { socket: 3, taken: false, device }));
        let mut taken = free;
        taken["qom-path"] = "/machine/unattached/device[0]".into();
        assert!(place(&taken).unwrap().taken);
        assert_eq!(place(&json!({ "type": "x", "props": {} })), None);
        assert_eq!(place(&json!(7)), None);
    }
}
