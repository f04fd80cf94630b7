//! The guest kernel's command line. The VMM appends where its devices are, for kernels that look
//! there.

use kata_hypervisor::{VmSpec, kernel_command_line};

/// What this VMM's machine is like.
const MACHINE: &[&str] = &[
    "console=ttyS0",
    // A guest that panics or reboots ends its VM: by the keyboard controller's reset, the one way
    // out that this VMM has.
    "panic=-1",
    "reboot=k",
    // So the agent ends it that way, too.
    "agent.power=reset",
    // There is nothing behind the legacy ports, and waiting for an answer from them takes its time.
    "i8042.noaux",
    "i8042.nomux",
    "i8042.dumbkbd",
    "8250.nr_uarts=1",
    "pci=off",
];

/// The guest's name for the disk of an image, which is its first.
const IMAGE_DISK: &str = "vda";

/// The kernel's command line.
pub(crate) fn command_line(spec: &VmSpec) -> String {
    let root = spec.root.kernel_params(IMAGE_DISK);
    let extra = root.iter().chain(&spec.kernel_params).map(String::as_str);
    kernel_command_line(MACHINE.iter().copied(), spec.debug, extra)
}
