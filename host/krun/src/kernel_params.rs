//! The guest kernel's command line. The VMM appends where its devices are.

use kata_hypervisor::VmSpec;

/// The kernel's command line, the spec's own parameters last: of two that contradict each other the kernel takes the later one.
pub(crate) fn command_line(spec: &VmSpec) -> String {
    let mut params = vec![
        "console=hvc0",
        // A guest that panics or reboots ends its VM: by the keyboard controller's reset, the one way out that this VMM has.
        "panic=-1",
        "reboot=k",
        // So the agent ends it that way, too.
        "agent.power=reset",
        // There is nothing behind the legacy ports, and waiting for an answer from them takes its time.
        "i8042.noaux",
        "i8042.nomux",
        "i8042.dumbkbd",
        "pci=off",
        "acpi=off",
        // It does not deliver what these would wait for.
        "no-kvmapf",
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
