//! The guest kernel's command line.

use kata_hypervisor::{PARAMS_FOR_MORE_MEMORY, VmSpec, kernel_command_line};

/// What this VMM's machine is like.
const MACHINE: &[&str] = &[
    // The serial port is slow, but it is there from the first line on, and quiet guests write
    // little.
    "console=ttyS0",
    // A guest that panics resets itself, which the VMM tells as an event.
    "panic=-1",
    // By the keyboard controller, which this machine has for that alone; ACPI is tried later.
    "reboot=k",
    // There is nothing behind the keyboard controller, and waiting for an answer from it takes its
    // time.
    "i8042.noaux",
    "i8042.nomux",
    "i8042.dumbkbd",
];

/// The guest's name for the disk of an image.
const IMAGE_DISK: &str = "vda";

/// The kernel's command line.
pub(crate) fn command_line(spec: &VmSpec) -> String {
    let root = spec.root.kernel_params(IMAGE_DISK);
    let extra = root.iter().chain(&spec.kernel_params).map(String::as_str);
    let for_more = spec.most_memory_mib.map(|_| PARAMS_FOR_MORE_MEMORY);
    let own = MACHINE.iter().copied().chain(for_more.into_iter().flatten());
    kernel_command_line(own, spec.debug, extra)
}
