//! The machine: board, processor and what they need to run.

use std::io;
use std::path::Path;

use kata_hypervisor::OldestVersion;

use crate::accelerator::Accelerator;
use crate::device::{Argument, Transport};
use crate::huge_pages;
use crate::kernel_image::KernelImage;
use crate::option::OptionValue;
use crate::settings::{MachineChoice, Pages};
use crate::vcpus::Vcpus;

/// The name of the memory object.
pub(crate) const MEMORY: &str = "ram";

/// Everything that the emulation can do, but for "fast" string instructions: it executes them byte
/// by byte, and a kernel or C library that finds them uses them for every copy. Without them a boot
/// takes 15 % less time.
const EMULATED_CPU: &str = "max,erms=off,fsrm=off";

/// How many disks may come later before a q35 is taken, whose one bridge has places for all: a
/// microvm has a port for each.
const MOST_PORTS: usize = 4;

/// A microvm's firmware, which every QEMU since 5.0 brings. The one that is taken without a choice
/// is, where a distribution has it (Debian 13 has), SeaBIOS, and does not go together with this
/// machine: it puts the ACPI tables where QEMU puts the end of the initial ramdisk, which then
/// replaces them; and it leaves the interrupt controller of a PC's on, whose first tick of the
/// timer the kernel takes for a division by zero.
const MICROVM_FIRMWARE: &str = "qboot.rom";

/// The machine to emulate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Machine {
    /// With a minimal firmware, and without PCI.
    Microvm,
    /// The same with a PCI Express bus, for nothing but devices that come later.
    MicrovmPci,
    /// With all that a PC has.
    Q35,
}

/// What a VM needs of its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Needs {
    pub(crate) kernel: KernelImage,
    pub(crate) accelerator: Accelerator,
    /// Whether the guest can be told how fast the time stamp counter runs.
    pub(crate) tsc_known: bool,
    /// A place for network devices that come later.
    pub(crate) hot_plug: bool,
    /// Places for disks of containers from the start.
    pub(crate) disks: bool,
    /// Places for as many disks that come later.
    pub(crate) later_disks: usize,
    /// Room for more memory.
    pub(crate) more_memory: bool,
}

/// Why a microvm that was asked for is none for a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It has no firmware that could start a compressed kernel.
    CompressedKernel,
    /// Disks of containers are tested with q35 only.
    Disks,
    /// Its address space ends with the memory that it boots with.
    MoreMemory,
    /// Emulated, it has no timer that would tell the guest how fast the time stamp counter runs,
    /// and the host does not know either: the guest may wait for ever.
    UnknownFrequency,
}

impl Machine {
    /// The machine for a VM: the one that the administrator has chosen, or the smallest that will
    /// do. A microvm under KVM has no place for devices that come later, which is refused when one
    /// comes.
    ///
    /// Under KVM a microvm is what nobody gets who has not asked for it: under nested KVM its
    /// guests were seen to hang in the first second, with and without ports, where those of a q35
    /// never do.
    pub(crate) fn choose(choice: MachineChoice, needs: Needs) -> Result<Self, Refusal> {
        let Needs { kernel, accelerator, tsc_known, .. } = needs;
        let Needs { hot_plug, disks, later_disks, more_memory, .. } = needs;
        let late = hot_plug || later_disks > 0;
        let emulated = accelerator == Accelerator::Tcg;
        let boots = kernel == KernelImage::Elf;
        let timeless = emulated && !tsc_known;
        match choice {
            MachineChoice::Microvm if !boots => Err(Refusal::CompressedKernel),
            MachineChoice::Microvm if disks => Err(Refusal::Disks),
            MachineChoice::Microvm if more_memory => Err(Refusal::MoreMemory),
            MachineChoice::Microvm if timeless => Err(Refusal::UnknownFrequency),
            MachineChoice::Q35 => Ok(Self::Q35),
            MachineChoice::Auto if timeless => Ok(Self::Q35),
            MachineChoice::Auto if !emulated || !boots || disks || more_memory => Ok(Self::Q35),
            MachineChoice::Auto if later_disks > MOST_PORTS => Ok(Self::Q35),
            MachineChoice::Auto | MachineChoice::Microvm if late && emulated => {
                Ok(Self::MicrovmPci)
            }
            MachineChoice::Auto | MachineChoice::Microvm => Ok(Self::Microvm),
        }
    }

    /// How the devices that it boots with are attached. Those that come later are all on the PCI
    /// bus.
    pub(crate) fn transport(self) -> Transport {
        match self {
            Self::Microvm | Self::MicrovmPci => Transport::Mmio,
            Self::Q35 => Transport::Pci,
        }
    }

    pub(crate) fn arguments(self) -> Vec<Argument> {
        match self {
            Self::Microvm | Self::MicrovmPci => {
                let mut board = OptionValue::new("microvm")
                    .with("memory-backend", MEMORY)
                    // virtio devices are found through ACPI: distributions' kernels do not read
                    // them off the command line.
                    .with("acpi", "on")
                    .with("auto-kernel-cmdline", "off")
                    // So that the guest's clock is right before the agent is told the time.
                    .with("rtc", "on");
                if self == Self::MicrovmPci {
                    board = board.with("pcie", "on");
                }
                vec![
                    ("-machine", board.into()),
                    ("-bios", MICROVM_FIRMWARE.into()),
                    // A vhost-user back end speaks virtio 1 only.
                    ("-global", "virtio-mmio.force-legacy=false".into()),
                ]
            }
            Self::Q35 => {
                let board = OptionValue::new("q35")
                    .with("memory-backend", MEMORY)
                    .with("usb", "off")
                    .with("vmport", "off")
                    .with("graphics", "off");
                vec![("-machine", board.into())]
            }
        }
    }
}

/// How virtual CPUs are emulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    /// By turns, in one thread.
    Single,
    /// Each by a thread of its own.
    Multi,
}

impl Threads {
    /// For so many virtual CPUs. With one the emulation can do without atomic instructions and is
    /// faster. With more, a QEMU before 8.1 may miss that one of them writes to code that another
    /// is about to translate, and execute what was there before for ever: the guest's kernel, which
    /// changes its own code, was seen to panic over it (`int3`). `version` is what QEMU says of
    /// itself; asked for only if it counts.
    pub(crate) fn of(vcpus: Vcpus, version: impl FnOnce() -> io::Result<String>) -> Self {
        const SAFE: OldestVersion = OldestVersion { vmm: "QEMU", numbers: &[8, 1] };
        if vcpus.at_start() == 1 {
            return Self::Single;
        }
        let line = version().unwrap_or_default();
        let number = line.split_once(" version ").and_then(|(_, rest)| rest.split(' ').next());
        if number.is_some_and(|number| SAFE.check(number).is_ok()) {
            Self::Multi
        } else {
            Self::Single
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Multi => "multi",
        }
    }
}

/// Accelerator and processor model.
pub(crate) fn processor_arguments(
    accelerator: Accelerator,
    threads: Threads,
    vcpus: Vcpus,
    features: &str,
) -> Vec<Argument> {
    let (accelerator, model) = match accelerator {
        Accelerator::Kvm => (OptionValue::new("kvm"), "host"),
        Accelerator::Tcg => (OptionValue::new("tcg").with("thread", threads.name()), EMULATED_CPU),
    };
    // Features are the administrator's own list, whose commas separate.
    let model = match features {
        "" => model.to_owned(),
        features => format!("{model},{features}"),
    };
    vec![("-accel", accelerator.into()), ("-cpu", model), ("-smp", vcpus.argument().into())]
}

/// The memory that the guest boots with, and how much it may have at most. `file` is the file of it
/// where there is one already.
pub(crate) fn memory_arguments(
    memory_mib: u32,
    most_mib: Option<u32>,
    pages: Pages,
    file: Option<&Path>,
) -> Vec<Argument> {
    let mut size = OptionValue::new(format_args!("{memory_mib}M"));
    if let Some(most) = most_mib {
        size = size.with("maxmem", format_args!("{most}M"));
    }
    let backend = match file {
        None => memory_backend(MEMORY, memory_mib, pages),
        Some(file) => memory_in_file(memory_mib, file),
    };
    vec![backend, ("-m", size.into())]
}

/// Memory in a file that a vhost-user back end can map.
pub(crate) fn memory_backend(id: &str, mib: u32, pages: Pages) -> Argument {
    let mut memory = shared(
        OptionValue::new("memory-backend-memfd")
            .with("id", id)
            .with("size", format_args!("{mib}M")),
    );
    if pages.preallocated {
        memory = memory.with("prealloc", "on");
    }
    if pages.huge {
        let size = format_args!("{}M", huge_pages::SIZE_MIB);
        memory = memory.with("hugetlb", "on").with("hugetlbsize", size);
    }
    ("-object", memory.into())
}

/// The memory of the boot in a file that is as large.
fn memory_in_file(mib: u32, file: &Path) -> Argument {
    let memory = OptionValue::new("memory-backend-file")
        .with("id", MEMORY)
        .with("size", format_args!("{mib}M"))
        .with("mem-path", file.display());
    ("-object", shared(memory).into())
}

/// Memory that others may map. Shared pages are never merged by KSM, and a core dump of QEMU must
/// not hold the guest.
fn shared(memory: OptionValue) -> OptionValue {
    memory.with("share", "on").with("merge", "off").with("dump", "off")
}

#[cfg(test)]
mod tests {
    use super::*;

    use MachineChoice::{Auto, Microvm, Q35};

    const PLAIN: Needs = Needs {
        kernel: KernelImage::Elf,
        accelerator: Accelerator::Tcg,
        tsc_known: true,
        hot_plug: false,
        disks: false,
        later_disks: 0,
        more_memory: false,
    };

    #[test]
    fn smallest_machine_that_will_do_is_chosen() {
        assert_eq!(Machine::choose(Auto, PLAIN), Ok(Machine::Microvm));
        assert_eq!(Machine::choose(Q35, PLAIN), Ok(Machine::Q35));
        let late = Needs { hot_plug: true, ..PLAIN };
        assert_eq!(Machine::choose(Auto, late), Ok(Machine::MicrovmPci));
        assert_eq!(Machine::choose(Microvm, late), Ok(Machine::MicrovmPci));
        let late = Needs { later_disks: 4, ..PLAIN };
        assert_eq!(Machine::choose(Auto, late), Ok(Machine::MicrovmPci));
        let many = Needs { later_disks: 12, ..PLAIN };
        assert_eq!(Machine::choose(Auto, many), Ok(Machine::Q35));
        assert_eq!(Machine::choose(Microvm, many), Ok(Machine::MicrovmPci));
        let compressed = Needs { kernel: KernelImage::BzImage, ..PLAIN };
        assert_eq!(Machine::choose(Auto, compressed), Ok(Machine::Q35));
        let disks = Needs { disks: true, ..PLAIN };
        assert_eq!(Machine::choose(Auto, disks), Ok(Machine::Q35));
        assert_eq!(Machine::choose(Microvm, compressed), Err(Refusal::CompressedKernel));
        assert_eq!(Machine::choose(Microvm, disks), Err(Refusal::Disks));
        let memory = Needs { more_memory: true, ..PLAIN };
        assert_eq!(Machine::choose(Auto, memory), Ok(Machine::Q35));
        assert_eq!(Machine::choose(Microvm, memory), Err(Refusal::MoreMemory));
    }

    #[test]
    fn virtual_cpus_have_threads_of_their_own_only_where_that_is_safe() {
        let threads =
            |count, line: &'static str| Threads::of(Vcpus::fixed(count), || Ok(line.to_owned()));
        for (count, line, expected) in [
            (1, "not asked", Threads::Single),
            (2, "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)", Threads::Single),
            (2, "QEMU emulator version 8.0.5", Threads::Single),
            (2, "QEMU emulator version 8.1.0", Threads::Multi),
            (4, "QEMU emulator version 10.0.8 (Debian 1:10.0.8+ds-0+deb13u1)", Threads::Multi),
            (2, "", Threads::Single),
        ] {
            assert_eq!(threads(count, line), expected, "{count} {line}");
        }
    }

    #[test]
    fn emulated_guest_without_a_known_frequency_gets_a_machine_with_a_timer() {
        let unknown = Needs { tsc_known: false, ..PLAIN };
        assert_eq!(Machine::choose(Auto, unknown), Ok(Machine::Q35));
        assert_eq!(Machine::choose(Q35, unknown), Ok(Machine::Q35));
        assert_eq!(Machine::choose(Microvm, unknown), Err(Refusal::UnknownFrequency));
        let kvm = Needs { accelerator: Accelerator::Kvm, ..unknown };
        assert_eq!(Machine::choose(Microvm, kvm), Ok(Machine::Microvm));
    }

    #[test]
    fn under_kvm_a_microvm_must_be_asked_for_and_has_no_ports() {
        for hot_plug in [false, true] {
            let needs = Needs { accelerator: Accelerator::Kvm, hot_plug, ..PLAIN };
            assert_eq!(Machine::choose(Auto, needs), Ok(Machine::Q35));
            assert_eq!(Machine::choose(Microvm, needs), Ok(Machine::Microvm));
        }
    }
}
