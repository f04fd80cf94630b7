//! The guest kernel's command line.

use kata_hypervisor::{PARAMS_FOR_MORE_MEMORY, kernel_command_line};

use crate::accelerator::Accelerator;
use crate::machine::Machine;
use crate::vcpus::Vcpus;
use crate::vsock;

/// One tick is a nanosecond: QEMU, hw/intc/apic.c.
const LAPIC_TIMER_HZ: u32 = 1_000_000_000;

/// What decides about the parameters.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Circumstances<'a> {
    pub(crate) machine: Machine,
    pub(crate) accelerator: Accelerator,
    /// Frequency of the host's time stamp counter, where it is known: an emulated microvm is not
    /// chosen where it is not.
    pub(crate) tsc_khz: Option<u32>,
    /// Whether it is known, and the host's kernel trusts that counter.
    pub(crate) tsc_trusted: bool,
    pub(crate) debug: bool,
    /// Whether the agent is reached by vsock.
    pub(crate) vsock: bool,
    /// Whether memory may come later.
    pub(crate) more_memory: bool,
    pub(crate) vcpus: Vcpus,
    /// The plan's own, which come last: of two that contradict each other the kernel takes the
    /// later one.
    pub(crate) extra: &'a [String],
}

/// The kernel's command line.
pub(crate) fn command_line(circumstances: &Circumstances<'_>) -> String {
    let Circumstances { machine, accelerator, tsc_khz, tsc_trusted, .. } = *circumstances;
    let Circumstances { debug, vsock, more_memory, vcpus, extra, .. } = *circumstances;
    let mut params: Vec<String> = [
        "console=ttyS0",
        // A guest that panics or reboots ends its VM: by a triple fault, which takes no device, and
        // QEMU does not reboot.
        "panic=-1",
        "reboot=t",
    ]
    .map(str::to_owned)
    .into();
    if machine == Machine::MicrovmPci {
        // Its ACPI describes the PCI bus too sparsely for the kernel to ask for what it needs to
        // see new devices.
        params.push("pcie_ports=native".into());
    }
    if vsock {
        params.push(vsock::AGENT_PARAMETER.into());
    }
    if more_memory {
        params.extend(PARAMS_FOR_MORE_MEMORY.map(str::to_owned));
    }
    params.extend(vcpus.kernel_parameter());
    if accelerator == Accelerator::Tcg {
        params.extend(emulation_params(machine, tsc_khz, tsc_trusted));
    }
    kernel_command_line(strings(&params), debug, strings(extra))
}

fn strings(words: &[String]) -> impl Iterator<Item = &str> {
    words.iter().map(String::as_str)
}

fn emulation_params(machine: Machine, tsc_khz: Option<u32>, tsc_trusted: bool) -> Vec<String> {
    // The leaks that mitigations close do not exist between guest code that is translated; their
    // costs do. Patching the lock prefixes away on one processor costs a translating emulator more
    // than it ever wins.
    let mut params = vec!["mitigations=off".to_owned(), "noreplace-smp".to_owned()];
    // How fast its timer's clock is, which a kernel otherwise waits 100 ms to find out; one that is
    // not ours does not heed this.
    params.push(format!("lapic_timer_hz={LAPIC_TIMER_HZ}"));
    // What the emulation tells its translations apart by is switched on at once, or code would be
    // translated for before and after. A kernel that is not ours does not heed it.
    params.push("early_cr4=1".to_owned());
    // The emulation keeps its translation of a page of code until the guest writes to the page. The
    // file server fills pages behind its back, so that since QEMU 8, which finds translations by
    // the physical address alone, a program could be run as another that was there before. A page
    // that the guest clears when it takes it is written to.
    params.push("init_on_alloc=1".to_owned());
    if matches!(machine, Machine::Microvm | Machine::MicrovmPci) {
        // This machine has no timer to calibrate the time stamp counter against but one that a busy
        // host makes useless; the kernel would then wait for ever, and silently. So a guest that
        // cannot be told is given another machine (`machine.rs`).
        params.push("no_timer_check".into());
        params.extend(tsc_khz.map(|khz| format!("tsc_early_khz={khz}")));
        // There is only the tick to check the counter against, and a guest that waits for the
        // processor misses ticks. The kernel would then take the counter for wrong, and count time
        // by ticks alone: too slowly, and to a hundredth of a second. Of several processors it
        // would not take the counter at all. QEMU has one for all of them, which is the host's.
        if tsc_trusted {
            params.push("tsc=reliable".into());
        }
    }
    params
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circumstances(accelerator: Accelerator) -> Circumstances<'static> {
        Circumstances {
            machine: Machine::Microvm,
            accelerator,
            tsc_khz: Some(2_600_123),
            tsc_trusted: true,
            debug: false,
            vsock: false,
            more_memory: false,
            vcpus: Vcpus::fixed(1),
            extra: &[],
        }
    }

    #[test]
    fn emulated_microvm_is_told_the_frequency() {
        let line = command_line(&circumstances(Accelerator::Tcg));
        for param in [
            "tsc_early_khz=2600123",
            "tsc=reliable",
            "lapic_timer_hz=1000000000",
            "early_cr4=1",
            "no_timer_check",
            "mitigations=off",
            "init_on_alloc=1",
            "quiet",
        ] {
            assert!(line.split(' ').any(|word| word == param), "{param} is missing in: {line}");
        }
    }

    #[test]
    fn counter_is_as_good_to_the_guest_as_it_is_to_the_host() {
        let with = Circumstances { tsc_trusted: false, ..circumstances(Accelerator::Tcg) };
        assert!(!command_line(&with).contains("reliable"));
    }

    #[test]
    fn agent_is_told_whom_to_take_only_where_there_is_vsock() {
        let with = Circumstances { vsock: true, ..circumstances(Accelerator::Kvm) };
        assert!(command_line(&with).contains("agent.vsock_peers=privileged"));
        assert!(!command_line(&circumstances(Accelerator::Kvm)).contains("agent."));
    }

    #[test]
    fn later_memory_is_told_of_only_where_there_may_be_some() {
        let with = Circumstances { more_memory: true, ..circumstances(Accelerator::Kvm) };
        assert!(command_line(&with).contains("memhp_default_state=online"));
        assert!(!command_line(&circumstances(Accelerator::Kvm)).contains("memhp"));
    }

    #[test]
    fn kvm_guest_keeps_its_mitigations() {
        let line = command_line(&circumstances(Accelerator::Kvm));
        for param in ["mitigations", "tsc", "early_cr4"] {
            assert!(!line.contains(param), "{line}");
        }
    }
}
