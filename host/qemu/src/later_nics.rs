//! Network devices that come while the VM runs.
//!
//! ```text
//!   getfd ─▶ netdev_add ─▶ device_add on a free place
//! ```

use kata_hypervisor::{HypervisorError, NicSpec};
use serde_json::{Map, Value};

use crate::device::{Nic, Transport};
use crate::hot_plug::HotPlug;
use crate::qmp::{Command, Qmp};

/// Gives the VM a network device. On error it has none, and its place is free again.
pub(crate) async fn add(places: &HotPlug, qmp: &Qmp, nic: &NicSpec) -> Result<(), HypervisorError> {
    let what = places.no_nic();
    let bus = places.take().ok_or(HypervisorError::Unsupported { driver: "qemu", what })?;
    let device = device(nic);
    let plugged = plug(qmp, nic, &device, &bus).await;
    if plugged.is_err() {
        // As far as it came.
        let _ = qmp.execute(Command::NetdevDel(device.backend_id())).await;
        for name in [Some(&device.tap), device.vhost.as_ref()].into_iter().flatten() {
            let _ = qmp.execute(Command::CloseFd(name.clone())).await;
        }
        places.give_back(bus);
    }
    plugged
}

fn device(nic: &NicSpec) -> Nic {
    let fd_name = |what: &str| format!("{what}-{}", nic.id);
    Nic {
        id: nic.id.clone(),
        mac: nic.mac.clone(),
        mtu: nic.mtu,
        tap: fd_name("tap"),
        vhost: nic.vhost.as_ref().map(|_| fd_name("vhost")),
    }
}

async fn plug(qmp: &Qmp, nic: &NicSpec, device: &Nic, bus: &str) -> Result<(), HypervisorError> {
    qmp.pass_fd(&device.tap, nic.tap.descriptor("qemu")?).await?;
    if let (Some(name), Some(vhost)) = (&device.vhost, &nic.vhost) {
        qmp.pass_fd(name, vhost).await?;
    }
    qmp.execute(Command::NetdevAdd(object(device.backend()))).await?;
    let mut frontend = object(device.frontend(Transport::Pci));
    frontend["driver"] = Transport::Pci.driver("virtio-net").into();
    frontend["bus"] = bus.into();
    qmp.execute(Command::DeviceAdd(frontend)).await
}

/// Options as QMP takes them. Its types are those of QEMU's schema: switches and numbers are not
/// strings there.
pub(crate) fn object(options: Vec<(&'static str, String)>) -> Value {
    let typed = |key: &str, value: String| match (key, value.as_str()) {
        (_, "on") => Value::Bool(true),
        ("host_mtu", number) => number.parse::<u32>().map_or(Value::String(value), Value::from),
        _ => Value::String(value),
    };
    let fields = options.into_iter().map(|(key, value)| (key.to_owned(), typed(key, value)));
    Value::Object(fields.collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;

    use kata_hypervisor::{GuestRoot, Tap, VmSpec};

    use super::*;
    use crate::machine::Machine;
    use crate::qmp::tests::Told;

    fn ports() -> HotPlug {
        let initrd = GuestRoot::Initrd("/initrd".into());
        let spec =
            VmSpec { hot_plug: true, ..VmSpec::bare("web", "/kernel", initrd, "/run/kata/web") };
        HotPlug::of(Machine::MicrovmPci, &spec)
    }

    fn nic() -> NicSpec {
        let file = Arc::new(File::open("/dev/null").unwrap().into());
        NicSpec {
            id: "2".into(),
            mac: "02:00:00:00:00:01".into(),
            mtu: 1500,
            tap: Tap::Open(Arc::clone(&file)),
            vhost: Some(file),
        }
    }

    #[tokio::test]
    async fn device_that_is_refused_leaves_its_place_and_nothing_else() {
        let (qmp, told) = Told::connected(Box::new(|_| {})).await;
        let places = ports();
        for refused in ["getfd", "netdev_add", "device_add"] {
            told.refuse(refused);
            // More often than there are places.
            for _ in 0..5 {
                let error = add(&places, &qmp, &nic()).await.unwrap_err().to_string();
                assert!(error.contains(refused), "{error}");
                let undone = ["netdev_del \"net-2\"", "closefd \"tap-2\"", "closefd \"vhost-2\""];
                assert!(told.since().ends_with(&undone.map(str::to_owned)));
            }
        }
        told.refuse("");
        add(&places, &qmp, &nic()).await.unwrap();
        assert_eq!(
            told.since(),
            [
                "getfd \"tap-2\"",
                "getfd \"vhost-2\"",
                "netdev_add \"net-2\"",
                "device_add \"nic-2\"",
            ]
        );
    }

    #[tokio::test]
    async fn tap_that_is_not_open_takes_no_place() {
        let (qmp, _told) = Told::connected(Box::new(|_| {})).await;
        let places = ports();
        let named = NicSpec { tap: Tap::Named("tap2_kata".into()), vhost: None, ..nic() };
        for _ in 0..5 {
            let error = add(&places, &qmp, &named).await.unwrap_err().to_string();
            assert!(error.contains("taps that are not open"), "{error}");
        }
    }
}
