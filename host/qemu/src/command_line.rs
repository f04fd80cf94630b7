//! QEMU's command line: everything that was decided, rendered. Pure.

use std::os::fd::RawFd;
use std::path::PathBuf;

use crate::accelerator::Accelerator;
use crate::device::{Argument, Device, socket_backend};
use crate::machine::{Machine, Threads, memory_arguments, processor_arguments};
use crate::option::OptionValue;
use crate::own_devices::OwnDevices;
use crate::settings::Pages;
use crate::vcpus::Vcpus;

/// Everything that a QEMU process is told when it starts.
#[derive(Debug, Clone)]
pub(crate) struct CommandLine {
    pub(crate) sandbox: String,
    pub(crate) machine: Machine,
    pub(crate) accelerator: Accelerator,
    /// How virtual CPUs are emulated; without meaning under KVM.
    pub(crate) threads: Threads,
    pub(crate) cpu_features: String,
    pub(crate) vcpus: Vcpus,
    pub(crate) memory_mib: u32,
    /// The memory that it may grow to.
    pub(crate) most_memory_mib: Option<u32>,
    /// Whether its memory is of the host's huge pages.
    pub(crate) pages: Pages,
    /// The file of its memory as QEMU sees it; `None` has QEMU make one.
    pub(crate) memory_file: Option<PathBuf>,
    /// How the guest begins.
    pub(crate) guest: Guest,
    /// Connected socket over which QEMU is controlled.
    pub(crate) control: RawFd,
    /// Connected socket to which the guest's first serial line is written.
    pub(crate) console: RawFd,
    /// The devices, in the order in which they get their places.
    pub(crate) devices: Vec<Device>,
    /// Devices that a template lacks. A guest that goes on gets them after that; here are only
    /// their back ends then.
    pub(crate) own_devices: OwnDevices,
    /// QEMU's own system call filter; empty for none.
    pub(crate) seccomp_sandbox: String,
}

/// How a guest begins.
#[derive(Debug, Clone)]
pub(crate) enum Guest {
    /// It boots.
    Boots {
        /// Its kernel, as QEMU sees it.
        kernel: PathBuf,
        /// The initial ramdisk as QEMU sees it, if the guest has one.
        initrd: Option<PathBuf>,
        /// The kernel's command line.
        append: String,
    },
    /// It goes on from a template, whose memory it has, when QEMU is told what its devices were
    /// doing.
    GoesOn,
}

impl Guest {
    fn arguments(&self) -> Vec<Argument> {
        match self {
            Self::Boots { kernel, initrd, append } => {
                let initrd = initrd.iter().map(|file| ("-initrd", file.display().to_string()));
                let boot = [("-kernel", kernel.display().to_string()), ("-append", append.clone())];
                boot.into_iter().chain(initrd).collect()
            }
            Self::GoesOn => vec![("-incoming", "defer".to_owned())],
        }
    }
}

impl CommandLine {
    /// The arguments after the program's name.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut arguments: Vec<Argument> = vec![(
            "-name",
            // Nothing reads it but people, who look for the sandbox in a list of processes.
            OptionValue::new(format_args!("sandbox-{}", self.sandbox)).into(),
        )];
        arguments.extend(self.machine.arguments());
        arguments.extend(processor_arguments(
            self.accelerator,
            self.threads,
            self.vcpus,
            &self.cpu_features,
        ));
        arguments.extend(memory_arguments(
            self.memory_mib,
            self.most_memory_mib,
            self.pages,
            self.memory_file.as_deref(),
        ));
        arguments.extend(self.guest.arguments());
        arguments.extend([
            socket_backend("control", self.control),
            ("-mon", OptionValue::new("chardev=control").with("mode", "control").into()),
            socket_backend("console", self.console),
            ("-serial", "chardev:console".into()),
        ]);
        let transport = self.machine.transport();
        for (number, device) in self.devices.iter().enumerate() {
            arguments.extend(device.arguments(transport, number));
        }
        arguments.extend(match self.guest {
            Guest::Boots { .. } => self.own_devices.arguments(transport),
            Guest::GoesOn => self.own_devices.backends(),
        });
        if !self.seccomp_sandbox.is_empty() {
            arguments.push(("-sandbox", self.seccomp_sandbox.clone()));
        }
        // No device and no file that was not named above.
        let mut words: Vec<String> =
            ["-nodefaults", "-no-user-config", "-no-reboot"].map(str::to_owned).into();
        words.extend(["-display".to_owned(), "none".to_owned()]);
        words.extend(arguments.into_iter().flat_map(|(option, value)| [option.to_owned(), value]));
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::FileShare;
    use crate::file::FdSet;

    fn command_line() -> CommandLine {
        CommandLine {
            sandbox: "web-1".into(),
            machine: Machine::Microvm,
            accelerator: Accelerator::Tcg,
            threads: Threads::Single,
            cpu_features: String::new(),
            vcpus: Vcpus::fixed(1),
            memory_mib: 256,
            most_memory_mib: None,
            pages: Pages::default(),
            memory_file: None,
            guest: Guest::Boots {
                kernel: "/share/vmlinux.container".into(),
                initrd: Some("/share/initrd.img".into()),
                append: "console=ttyS0 quiet".into(),
            },
            control: 3,
            console: 4,
            devices: vec![
                Device::SerialPort { socket: 5, name: "agent.channel.0" },
                Device::Entropy { source: FdSet(6) },
            ],
            own_devices: OwnDevices {
                shares: vec![FileShare { socket: 7, tag: "kataShared".into(), number: 0 }],
                nics: Vec::new(),
            },
            seccomp_sandbox: "on,spawn=deny".into(),
        }
    }

    #[test]
    fn emulated_microvm_is_rendered_whole() {
        let expected = "-nodefaults -no-user-config -no-reboot -display none -name sandbox-web-1 \
            -machine microvm,memory-backend=ram,acpi=on,auto-kernel-cmdline=off,rtc=on \
            -bios qboot.rom -global virtio-mmio.force-legacy=false -accel tcg,thread=single -cpu max,erms=off,fsrm=off -smp 1 \
            -object memory-backend-memfd,id=ram,size=256M,share=on,merge=off,dump=off -m 256M \
            -kernel /share/vmlinux.container -append console=ttyS0 quiet -initrd /share/initrd.img \
            -chardev socket,id=control,fd=3 -mon chardev=control,mode=control \
            -chardev socket,id=console,fd=4 -serial chardev:console \
            -chardev socket,id=port0,fd=5 -device virtio-serial-device,id=serial0,max_ports=2 \
            -device virtserialport,id=serial0-port,bus=serial0.0,chardev=port0,name=agent.channel.0 \
            -add-fd fd=6,set=6 -object rng-random,id=entropy1,filename=/dev/fdset/6 -device virtio-rng-device,rng=entropy1 \
            -chardev socket,id=share0,fd=7 -device vhost-user-fs-device,chardev=share0,tag=kataShared \
            -sandbox on,spawn=deny";
        assert_eq!(command_line().arguments().join(" "), expected);
    }

    #[test]
    fn q35_under_kvm_uses_pci_and_the_hosts_processor() {
        let line = CommandLine {
            machine: Machine::Q35,
            accelerator: Accelerator::Kvm,
            cpu_features: "pmu=off".into(),
            vcpus: Vcpus::fixed(4),
            most_memory_mib: Some(1024),
            ..command_line()
        };
        let arguments = line.arguments().join(" ");
        for part in [
            "-machine q35,",
            "-accel kvm -cpu host,pmu=off -smp 4",
            "-device virtio-rng-pci,",
            " -m 256M,maxmem=1024M ",
        ] {
            assert!(arguments.contains(part), "{part} is missing in: {arguments}");
        }
        assert!(!arguments.contains("-device virtio-rng-device"), "{arguments}");
    }

    #[test]
    fn guest_from_a_template_has_its_memory_and_gets_its_own_devices_later() {
        let line = CommandLine {
            machine: Machine::MicrovmPci,
            memory_file: Some("/proc/self/fd/8".into()),
            guest: Guest::GoesOn,
            ..command_line()
        };
        let arguments = line.arguments().join(" ");
        for part in [
            "-object memory-backend-file,id=ram,size=256M,mem-path=/proc/self/fd/8,share=on,",
            " -incoming defer ",
            "-device virtio-rng-device,",
            "-chardev socket,id=share0,fd=7",
        ] {
            assert!(arguments.contains(part), "{part} is missing in: {arguments}");
        }
        for part in [" -kernel ", " -append ", "vhost-user-fs"] {
            assert!(!arguments.contains(part), "{part} is in: {arguments}");
        }
    }

    #[test]
    fn empty_sandbox_setting_is_left_out() {
        let line = CommandLine { seccomp_sandbox: String::new(), ..command_line() };
        assert!(!line.arguments().contains(&"-sandbox".to_owned()));
    }
}
