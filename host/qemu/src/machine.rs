//! The machine: board, processor and what they need to run.

use crate::accelerator::Accelerator;
use crate::device::{Argument, Transport};
use crate::kernel_image::KernelImage;
use crate::option::OptionValue;
use crate::settings::MachineChoice;

/// The name of the memory object.
pub(crate) const MEMORY: &str = "ram";

/// Everything that the emulation can do, but for "fast" string instructions: it executes them byte by byte, and a kernel or C library that finds
/// them uses them for every copy. Without them a boot takes 15 % less time.
const EMULATED_CPU: &str = "max,erms=off,fsrm=off";

/// The machine to emulate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Machine {
    /// Without firmware to speak of and without PCI.
    Microvm,
    /// The same with a PCI Express bus, for nothing but devices that come later.
    MicrovmPci,
    /// With all that a PC has.
    Q35,
}

impl Machine {
    /// The machine to boot this kernel on; `None` if the one that was asked for cannot. With `hot_plug` it can be given devices while
    /// it runs, but for a microvm under KVM that the administrator has chosen.
    ///
    /// Under KVM a microvm is what nobody gets who has not asked for it: under nested KVM its guests were seen to hang in the first
    /// second, with and without ports, where those of a q35 never do.
    pub(crate) fn choose(
        choice: MachineChoice,
        kernel: KernelImage,
        hot_plug: bool,
        accelerator: Accelerator,
    ) -> Option<Self> {
        let emulated = accelerator == Accelerator::Tcg;
        match (choice, kernel) {
            (MachineChoice::Auto, KernelImage::Elf) if !emulated => Some(Self::Q35),
            (MachineChoice::Auto | MachineChoice::Microvm, KernelImage::Elf) => {
                Some(if hot_plug && emulated { Self::MicrovmPci } else { Self::Microvm })
            }
            // It has no firmware that could start a compressed kernel.
            (MachineChoice::Microvm, KernelImage::BzImage) => None,
            (MachineChoice::Auto | MachineChoice::Q35, _) => Some(Self::Q35),
        }
    }

    /// How the devices that it boots with are attached. Those that come later are all on the PCI bus.
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
                    // virtio devices are found through ACPI: distributions' kernels do not read them off the command line.
                    .with("acpi", "on")
                    .with("auto-kernel-cmdline", "off")
                    // So that the guest's clock is right before the agent is told the time.
                    .with("rtc", "on");
                if self == Self::MicrovmPci {
                    board = board.with("pcie", "on");
                }
                vec![
                    ("-machine", board.into()),
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

/// Accelerator and processor model.
pub(crate) fn processor_arguments(
    accelerator: Accelerator,
    vcpus: u32,
    features: &str,
) -> Vec<Argument> {
    let (accelerator, model) = match accelerator {
        Accelerator::Kvm => (OptionValue::new("kvm"), "host"),
        // With one virtual CPU the emulation can do without atomic instructions and is faster.
        Accelerator::Tcg if vcpus == 1 => {
            (OptionValue::new("tcg").with("thread", "single"), EMULATED_CPU)
        }
        Accelerator::Tcg => (OptionValue::new("tcg").with("thread", "multi"), EMULATED_CPU),
    };
    // Features are the administrator's own list, whose commas separate.
    let model = match features {
        "" => model.to_owned(),
        features => format!("{model},{features}"),
    };
    vec![("-accel", accelerator.into()), ("-cpu", model), ("-smp", vcpus.to_string())]
}

/// All of the guest's memory, in a file that a vhost-user back end can map. Pages are taken as the guest touches them.
pub(crate) fn memory_arguments(memory_mib: u32) -> Vec<Argument> {
    let memory = OptionValue::new("memory-backend-memfd")
        .with("id", MEMORY)
        .with("size", format_args!("{memory_mib}M"))
        .with("share", "on")
        // Shared pages are never merged by KSM, and a core dump of QEMU must not hold the guest.
        .with("merge", "off")
        .with("dump", "off");
    vec![("-object", memory.into()), ("-m", format!("{memory_mib}M"))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smallest_machine_that_boots_the_kernel_is_chosen() {
        use MachineChoice::{Auto, Microvm, Q35};
        let emulated =
            |choice, kernel, hot_plug| Machine::choose(choice, kernel, hot_plug, Accelerator::Tcg);
        assert_eq!(emulated(Auto, KernelImage::Elf, false), Some(Machine::Microvm));
        assert_eq!(emulated(Auto, KernelImage::Elf, true), Some(Machine::MicrovmPci));
        assert_eq!(emulated(Auto, KernelImage::BzImage, false), Some(Machine::Q35));
        assert_eq!(emulated(Microvm, KernelImage::Elf, true), Some(Machine::MicrovmPci));
        assert_eq!(emulated(Microvm, KernelImage::BzImage, false), None);
        assert_eq!(emulated(Q35, KernelImage::Elf, false), Some(Machine::Q35));
    }

    #[test]
    fn under_kvm_a_microvm_must_be_asked_for_and_has_no_ports() {
        use MachineChoice::{Auto, Microvm};
        let machine = |choice, hot_plug| {
            Machine::choose(choice, KernelImage::Elf, hot_plug, Accelerator::Kvm)
        };
        assert_eq!(machine(Auto, false), Some(Machine::Q35));
        assert_eq!(machine(Auto, true), Some(Machine::Q35));
        assert_eq!(machine(Microvm, true), Some(Machine::Microvm));
    }
}
