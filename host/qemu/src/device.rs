//! The devices of a VM: each knows its arguments.

use std::os::fd::RawFd;

use crate::file::FdSet;
use crate::machine::memory_backend;
use crate::option::OptionValue;
use crate::settings::{Aio, DiskIo, Pages};

/// How virtio devices are attached; the two kinds of each differ in name only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    /// Memory-mapped, found by the guest through ACPI (microvm).
    Mmio,
    /// On the PCI bus (q35).
    Pci,
}

impl Transport {
    fn device(self, kind: &str) -> OptionValue {
        OptionValue::new(self.driver(kind))
    }

    /// The name of the driver of a device of this kind.
    pub(crate) fn driver(self, kind: &str) -> String {
        match self {
            Self::Mmio => format!("{kind}-device"),
            Self::Pci => format!("{kind}-pci"),
        }
    }
}

/// One device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Device {
    /// A serial port whose other end is the host's end of a socket pair.
    SerialPort {
        /// Connected socket.
        socket: RawFd,
        /// By which the guest finds it.
        name: &'static str,
    },
    /// A virtual socket (vsock) in the kernel.
    Vsock {
        /// Open `/dev/vhost-vsock`.
        vhost: RawFd,
        /// The guest's address.
        cid: u32,
    },
    /// A directory of the host, served by a vhost-user back end.
    FileShare(FileShare),
    /// A bus for devices that come later; a PCI Express one itself takes none while it runs.
    HotPlugBus {
        /// Its name.
        id: String,
    },
    /// A port of a PCI Express bus, for one device that comes later.
    HotPlugPort {
        /// Its name.
        id: String,
        /// Tells it apart from the other ports.
        slot: u32,
        /// Whether the guest switches the device's power, without which it is not there. A guest
        /// lets go only of a device that has a switch.
        power_switch: bool,
    },
    /// Memory that the guest is given by and by (virtio-mem); at first nothing of it.
    Memory {
        /// Its name.
        id: &'static str,
        /// All of it, in MiB.
        mib: u32,
        /// What it is made of.
        pages: Pages,
    },
    /// By which the guest tells which of its memory is free (free page reporting, section 5.5.6.7
    /// of the virtio specification), for QEMU to give that back to the host.
    FreePages,
    /// A network device on a tap.
    Nic(Nic),
    /// A disk that is never written to: the guest's root file system.
    Image {
        /// Its raw image.
        file: FdSet,
    },
    /// A disk.
    Disk(Disk),
    /// Random numbers.
    Entropy {
        /// Where they come from.
        source: FdSet,
    },
}

/// A directory of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileShare {
    /// Socket connected to the back end.
    pub(crate) socket: RawFd,
    /// By which the guest finds it.
    pub(crate) tag: String,
    /// Tells it apart from the others of the VM.
    pub(crate) number: usize,
}

impl FileShare {
    /// The connection.
    pub(crate) fn backend(&self) -> Argument {
        socket_backend(&self.backend_id(), self.socket)
    }

    fn backend_id(&self) -> String {
        format!("share{}", self.number)
    }

    /// The device without its driver's name, as keys and values.
    pub(crate) fn frontend(&self) -> Vec<(&'static str, String)> {
        vec![("chardev", self.backend_id()), ("tag", self.tag.clone())]
    }
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Disk {
    /// Its serial number, by which the guest finds it.
    pub(crate) id: String,
    pub(crate) file: FdSet,
    /// Whether the file is a block device.
    pub(crate) is_device: bool,
    pub(crate) readonly: bool,
    pub(crate) io: DiskIo,
}

/// A network device, with its descriptors by the names or numbers that QEMU knows them by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Nic {
    pub(crate) id: String,
    pub(crate) mac: String,
    pub(crate) mtu: u32,
    pub(crate) tap: String,
    pub(crate) vhost: Option<String>,
}

impl Nic {
    /// The back end, as keys and values. Its id is `net-ID`.
    pub(crate) fn backend(&self) -> Vec<(&'static str, String)> {
        let mut backend =
            vec![("type", "tap".to_owned()), ("id", self.backend_id()), ("fd", self.tap.clone())];
        if let Some(vhost) = &self.vhost {
            backend.extend([("vhost", "on".to_owned()), ("vhostfd", vhost.clone())]);
        }
        backend
    }

    /// The back end, for the command line.
    pub(crate) fn backend_argument(&self) -> Argument {
        let backend = self.backend();
        let [(_, kind), options @ ..] = backend.as_slice() else { unreachable!("it has a type") };
        let value = options
            .iter()
            .fold(OptionValue::new(kind), |value, (key, option)| value.with(key, option));
        ("-netdev", value.into())
    }

    /// The device without its driver's name, as keys and values. Its id is `nic-ID`.
    pub(crate) fn frontend(&self, transport: Transport) -> Vec<(&'static str, String)> {
        let mut frontend = vec![
            ("id", format!("nic-{}", self.id)),
            ("netdev", self.backend_id()),
            ("mac", self.mac.clone()),
            ("host_mtu", self.mtu.to_string()),
        ];
        if transport == Transport::Pci {
            // Nobody boots from it.
            frontend.push(("romfile", String::new()));
        }
        frontend
    }

    pub(crate) fn backend_id(&self) -> String {
        format!("net-{}", self.id)
    }
}

/// One option and its value.
pub(crate) type Argument = (&'static str, String);

impl Device {
    /// The arguments of this device. `number` tells it apart from all others of the VM.
    pub(crate) fn arguments(&self, transport: Transport, number: usize) -> Vec<Argument> {
        match self {
            Self::SerialPort { socket, name } => {
                let backend = format!("port{number}");
                let bus = format!("serial{number}");
                let port = OptionValue::new("virtserialport")
                    // Without one QEMU does not tell when the guest opens it.
                    .with("id", format_args!("serial{number}-port"))
                    .with("bus", format_args!("{bus}.0"))
                    .with("chardev", &backend)
                    .with("name", name);
                vec![
                    socket_backend(&backend, *socket),
                    // One port beside port 0, which is a console's by convention.
                    device(transport.device("virtio-serial").with("id", &bus).with("max_ports", 2)),
                    device(port),
                ]
            }
            Self::Vsock { vhost, cid } => vec![device(
                transport.device("vhost-vsock").with("guest-cid", cid).with("vhostfd", vhost),
            )],
            Self::FileShare(share) => {
                vec![share.backend(), device(front(transport, "vhost-user-fs", share.frontend()))]
            }
            Self::HotPlugBus { id } => {
                vec![device(OptionValue::new("pcie-pci-bridge").with("id", id))]
            }
            Self::HotPlugPort { id, slot, power_switch } => {
                let port = OptionValue::new("pcie-root-port").with("id", id).with("chassis", slot);
                let port = port.with("slot", slot);
                let port =
                    if *power_switch { port } else { port.with("power_controller_present", "off") };
                vec![device(port)]
            }
            Self::Memory { id, mib, pages } => more_memory(transport, id, *mib, *pages),
            Self::FreePages => {
                let balloon = transport.device("virtio-balloon");
                vec![device(balloon.with("free-page-reporting", "on"))]
            }
            Self::Nic(nic) => vec![
                nic.backend_argument(),
                device(front(transport, "virtio-net", nic.frontend(transport))),
            ],
            Self::Image { file } => {
                let raw = format!("image{number}");
                let file_node = OptionValue::new("driver=file");
                let mut arguments = raw_backend(&raw, number, file_node, *file, "on");
                arguments.push(device(transport.device("virtio-blk").with("drive", &raw)));
                arguments
            }
            Self::Disk(Disk { id, file, is_device, readonly, io }) => {
                let raw = format!("disk{number}");
                let driver = if *is_device { "driver=host_device" } else { "driver=file" };
                let readonly = if *readonly { "on" } else { "off" };
                let file_node = with_io(OptionValue::new(driver), *io);
                let mut arguments = raw_backend(&raw, number, file_node, *file, readonly);
                let disk = transport.device("virtio-blk").with("drive", &raw).with("serial", id);
                arguments.push(device(disk));
                arguments
            }
            Self::Entropy { source } => {
                let backend = format!("entropy{number}");
                let random = OptionValue::new("rng-random")
                    .with("id", &backend)
                    .with("filename", source.path());
                vec![
                    source.argument(),
                    ("-object", random.into()),
                    device(transport.device("virtio-rng").with("rng", &backend)),
                ]
            }
        }
    }
}

/// A device of this kind, with these keys and values.
fn front(transport: Transport, kind: &str, options: Vec<(&'static str, String)>) -> OptionValue {
    let device = transport.device(kind);
    options.into_iter().fold(device, |device, (key, value)| device.with(key, value))
}

/// Memory that comes by and by.
fn more_memory(transport: Transport, id: &str, mib: u32, pages: Pages) -> Vec<Argument> {
    let backend = format!("{id}-ram");
    let mut memory = transport
        .device("virtio-mem")
        .with("id", id)
        .with("memdev", &backend)
        .with("requested-size", 0);
    if pages.preallocated {
        memory = memory.with("prealloc", "on");
    }
    // The back end would take all that the guest may ever have, the device takes what it is given.
    let back_end = Pages { preallocated: false, ..pages };
    vec![memory_backend(&backend, mib, back_end), device(memory)]
}

/// How the file of a disk is read and written, where that is not as QEMU does it by itself.
fn with_io(mut file_node: OptionValue, io: DiskIo) -> OptionValue {
    if io.aio != Aio::default() {
        file_node = file_node.with("aio", io.aio.name());
    }
    for (option, is_on) in [("cache.direct", io.direct), ("cache.no-flush", io.no_flush)] {
        if is_on {
            file_node = file_node.with(option, "on");
        }
    }
    file_node
}

/// The back end `name` of a disk. Its format is told, not looked for: a disk must not be able to
/// say that it is something else.
fn raw_backend(
    name: &str,
    number: usize,
    file_node: OptionValue,
    file: FdSet,
    readonly: &str,
) -> Vec<Argument> {
    let node = format!("file{number}");
    let backend = file_node
        .with("node-name", &node)
        .with("filename", file.path())
        .with("read-only", readonly);
    let format = OptionValue::new("driver=raw")
        .with("node-name", name)
        .with("file", &node)
        .with("read-only", readonly);
    vec![file.argument(), ("-blockdev", backend.into()), ("-blockdev", format.into())]
}

fn device(value: OptionValue) -> Argument {
    ("-device", value.into())
}

/// A character device back end on an inherited, connected socket.
pub(crate) fn socket_backend(id: &str, socket: RawFd) -> Argument {
    ("-chardev", OptionValue::new("socket").with("id", id).with("fd", socket).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(device: &Device, transport: Transport) -> Vec<String> {
        let arguments = device.arguments(transport, 7);
        arguments.into_iter().map(|(option, value)| format!("{option} {value}")).collect()
    }

    #[test]
    fn serial_port_is_on_its_own_bus() {
        let port = Device::SerialPort { socket: 5, name: "agent.channel.0" };
        assert_eq!(
            rendered(&port, Transport::Mmio),
            [
                "-chardev socket,id=port7,fd=5",
                "-device virtio-serial-device,id=serial7,max_ports=2",
                "-device virtserialport,id=serial7-port,bus=serial7.0,chardev=port7,name=agent.channel.0",
            ]
        );
    }

    #[test]
    fn vsock_takes_an_open_device() {
        assert_eq!(
            rendered(&Device::Vsock { vhost: 4, cid: 1234 }, Transport::Pci),
            ["-device vhost-vsock-pci,guest-cid=1234,vhostfd=4"]
        );
    }

    #[test]
    fn share_is_a_vhost_user_device() {
        let share = Device::FileShare(FileShare { socket: 6, tag: "a,b".into(), number: 1 });
        assert_eq!(
            rendered(&share, Transport::Mmio),
            [
                "-chardev socket,id=share1,fd=6",
                "-device vhost-user-fs-device,chardev=share1,tag=a,,b",
            ]
        );
    }

    #[test]
    fn nic_takes_an_open_tap_and_tells_the_guest_its_mtu() {
        let nic = Nic {
            id: "2".into(),
            mac: "02:00:00:00:00:01".into(),
            mtu: 1450,
            tap: "8".into(),
            vhost: None,
        };
        assert_eq!(
            rendered(&Device::Nic(nic.clone()), Transport::Mmio),
            [
                "-netdev tap,id=net-2,fd=8",
                "-device virtio-net-device,id=nic-2,netdev=net-2,mac=02:00:00:00:00:01,host_mtu=1450",
            ]
        );
        let fast = Nic { vhost: Some("9".into()), ..nic };
        assert_eq!(
            rendered(&Device::Nic(fast), Transport::Pci),
            [
                "-netdev tap,id=net-2,fd=8,vhost=on,vhostfd=9",
                "-device virtio-net-pci,id=nic-2,netdev=net-2,mac=02:00:00:00:00:01,host_mtu=1450,romfile=",
            ]
        );
    }

    #[test]
    fn memory_is_there_for_later() {
        assert_eq!(
            rendered(
                &Device::Memory { id: "more", mib: 768, pages: Pages::default() },
                Transport::Pci
            ),
            [
                "-object memory-backend-memfd,id=more-ram,size=768M,share=on,merge=off,dump=off",
                "-device virtio-mem-pci,id=more,memdev=more-ram,requested-size=0",
            ]
        );
    }

    #[test]
    fn image_is_read_only_and_raw() {
        let image = Device::Image { file: FdSet(9) };
        assert_eq!(
            rendered(&image, Transport::Mmio),
            [
                "-add-fd fd=9,set=9",
                "-blockdev driver=file,node-name=file7,filename=/dev/fdset/9,read-only=on",
                "-blockdev driver=raw,node-name=image7,file=file7,read-only=on",
                "-device virtio-blk-device,drive=image7",
            ]
        );
    }

    #[test]
    fn disk_has_its_serial_number_and_a_device_another_driver() {
        let disk = Disk {
            id: "root".into(),
            file: FdSet(9),
            is_device: false,
            readonly: false,
            io: DiskIo::default(),
        };
        assert_eq!(
            rendered(&Device::Disk(disk.clone()), Transport::Pci),
            [
                "-add-fd fd=9,set=9",
                "-blockdev driver=file,node-name=file7,filename=/dev/fdset/9,read-only=off",
                "-blockdev driver=raw,node-name=disk7,file=file7,read-only=off",
                "-device virtio-blk-pci,drive=disk7,serial=root",
            ]
        );
        let io = DiskIo { aio: Aio::Native, direct: true, no_flush: true };
        assert_eq!(
            rendered(&Device::Disk(Disk { io, ..disk.clone() }), Transport::Pci)[1],
            "-blockdev driver=file,aio=native,cache.direct=on,cache.no-flush=on,node-name=file7,\
             filename=/dev/fdset/9,read-only=off"
        );
        let device = Disk { is_device: true, readonly: true, ..disk };
        assert_eq!(
            rendered(&Device::Disk(device), Transport::Mmio)[1],
            "-blockdev driver=host_device,node-name=file7,filename=/dev/fdset/9,read-only=on"
        );
    }

    #[test]
    fn entropy_has_an_open_source() {
        let entropy = Device::Entropy { source: FdSet(9) };
        assert_eq!(
            rendered(&entropy, Transport::Pci),
            [
                "-add-fd fd=9,set=9",
                "-object rng-random,id=entropy7,filename=/dev/fdset/9",
                "-device virtio-rng-pci,rng=entropy7",
            ]
        );
    }
}
