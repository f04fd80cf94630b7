//! The devices of a VM: each knows its arguments.

use std::os::fd::RawFd;
use std::path::PathBuf;

use crate::option::OptionValue;

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
        match self {
            Self::Mmio => OptionValue::new(format_args!("{kind}-device")),
            Self::Pci => OptionValue::new(format_args!("{kind}-pci")),
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
    FileShare {
        /// Socket connected to the back end.
        socket: RawFd,
        /// By which the guest finds it.
        tag: String,
    },
    /// Random numbers.
    Entropy {
        /// Where they come from.
        source: PathBuf,
    },
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
            Self::FileShare { socket, tag } => {
                let backend = format!("share{number}");
                let share =
                    transport.device("vhost-user-fs").with("chardev", &backend).with("tag", tag);
                vec![socket_backend(&backend, *socket), device(share)]
            }
            Self::Entropy { source } => {
                let backend = format!("entropy{number}");
                let random = OptionValue::new("rng-random")
                    .with("id", &backend)
                    .with("filename", source.display());
                vec![
                    ("-object", random.into()),
                    device(transport.device("virtio-rng").with("rng", &backend)),
                ]
            }
        }
    }
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
                "-device virtserialport,bus=serial7.0,chardev=port7,name=agent.channel.0",
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
        let share = Device::FileShare { socket: 6, tag: "a,b".into() };
        assert_eq!(
            rendered(&share, Transport::Mmio),
            [
                "-chardev socket,id=share7,fd=6",
                "-device vhost-user-fs-device,chardev=share7,tag=a,,b",
            ]
        );
    }

    #[test]
    fn entropy_names_its_source() {
        let entropy = Device::Entropy { source: "/dev/urandom".into() };
        assert_eq!(
            rendered(&entropy, Transport::Pci),
            [
                "-object rng-random,id=entropy7,filename=/dev/urandom",
                "-device virtio-rng-pci,rng=entropy7",
            ]
        );
    }
}
