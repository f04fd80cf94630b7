//! The guest kernel's command line.

use kata_hypervisor::VmSpec;

/// The kernel's command line, the spec's own parameters last: of two that contradict each other the kernel takes the later one.
pub(crate) fn command_line(spec: &VmSpec) -> String {
    let mut params = vec![
        // The serial port is slow, but it is there from the first line on, and quiet guests write little.
        "console=ttyS0",
        // A guest that panics resets itself, which the VMM tells as an event.
        "panic=-1",
        // By the keyboard controller, which this machine has for that alone; ACPI is tried later.
        "reboot=k",
        // There is nothing behind the keyboard controller, and waiting for an answer from it takes its time.
        "i8042.noaux",
        "i8042.nomux",
        "i8042.dumbkbd",
        "cryptomgr.notests",
        // The agent manages cgroup v2 only; older systemds in guest images must be told.
        "cgroup_no_v1=all",
        "systemd.unified_cgroup_hierarchy=1",
    ];
    params.extend_from_slice(if spec.debug {
        &["loglevel=7", "printk.time=1"]
    } else {
        &["quiet"]
    });
    params.extend(spec.kernel_params.iter().map(String::as_str));
    params.join(" ")
}
