//! What every guest kernel is told, whoever runs the machine.

/// For guests that write to a console which nobody reads while all is well, and for those that
/// somebody watches.
const QUIET: &[&str] = &["quiet"];
const VERBOSE: &[&str] = &["loglevel=7", "printk.time=1"];

const GUEST: &[&str] = &[
    // The self-tests of the kernel's ciphers take a fifth of an emulated boot and tell nothing
    // about the guest.
    "cryptomgr.notests",
    // A container has the network interfaces that it was given, and no others that kernels with
    // these built in make by themselves.
    "fb_tunnels=none",
    "dummy.numdummies=0",
    // Loop devices are made when somebody opens one; eight made in advance are a fiftieth of an
    // emulated boot.
    "loop.max_loop=0",
    // The agent manages cgroup v2 only; older systemds in guest images must be told.
    "cgroup_no_v1=all",
    "systemd.unified_cgroup_hierarchy=1",
];

/// What a guest's kernel is told, too, whose memory may come and go (virtio-mem).
pub const PARAMS_FOR_MORE_MEMORY: [&str; 3] = [
    // Used at once, and of a kind that can be given back, as far as the kernel's own memory has to
    // be of the other.
    "memhp_default_state=online",
    "memory_hotplug.online_policy=auto-movable",
    // Its place may lie above 4 GiB. A kernel that is told so from the start (by ACPI's SRAT, where
    // it knows NUMA) sets 64 MiB aside for devices that do not reach as far, of which there are
    // none here.
    "swiotlb=noforce",
];

/// The guest kernel's command line: the driver's `own` parameters, those of every guest, and the
/// plan's `extra` ones last, for of two that contradict each other the kernel takes the later one.
/// `debug` has it tell what it does.
#[must_use]
pub fn kernel_command_line<'a>(
    own: impl IntoIterator<Item = &'a str>,
    debug: bool,
    extra: impl IntoIterator<Item = &'a str>,
) -> String {
    let verbosity = if debug { VERBOSE } else { QUIET };
    let params = own.into_iter().chain(GUEST.iter().copied()).chain(verbosity.iter().copied());
    params.chain(extra).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_the_plan_come_last() {
        let line = kernel_command_line(["console=hvc0"], false, ["agent.log=debug", "panic=0"]);
        assert!(line.starts_with("console=hvc0 "), "{line}");
        assert!(line.ends_with(" quiet agent.log=debug panic=0"), "{line}");
    }

    #[test]
    fn debugging_is_not_quiet() {
        let line = kernel_command_line([], true, []);
        assert!(line.contains("loglevel=7") && !line.contains("quiet"), "{line}");
    }
}
