//! The page of what each hypervisor can do, from what its driver says.

use std::fmt::Write;
use std::path::Path;

use kata_host_runtime::hypervisors;
use kata_hypervisor::{Capabilities, Disks, Hypervisor, SharedFileSystem};

const HEAD: &str = "\
# Hypervisors

<!-- Generated from the code by `cargo run -p xtask -- docs`. -->

`hypervisor_name` in the section `[runtime]` of the configuration chooses the hypervisor. If it is not set, and the file has exactly one section
`[hypervisor.NAME]`, that hypervisor is chosen.

Otherwise (`\"auto\"`) each sandbox gets krun or QEMU, and the shim's log says which, and why. It is krun if all of these hold:

- KVM works;
- the guest kernel is the small one;
- the sandbox's network interfaces are there when it is created;
- it is no pod whose root file systems are on disks;
- nothing is set for QEMU that is not set for krun, too.

The runtime `io.containerd.kata-NAME.v2` reads `configuration-NAME.toml`, which chooses NAME; `firecracker` goes by the shorter `fc` there.

A sandbox that needs what its hypervisor lacks is rejected with an error before anything starts. Missing host features are reported when the VM boots;
`kata-runtime check` reports them before.

";

const TAIL: &str = "
## Who may talk to the agent

The host's root, whatever the hypervisor. A unix socket in a directory of root's is the way to the guests of `clh`, `firecracker` and `krun`. QEMU's are
reached by vsock where the host has `/dev/vhost-vsock`, which any user may dial; there the agent takes only connections from the host's ports below 1024, for
which one needs `CAP_NET_BIND_SERVICE` in the first user namespace (`agent.vsock_peers=privileged` on the guest's kernel command line). The host has 1023 of
these, one for each connection. A runtime without that capability, as in a nested user namespace, reaches its guests by a serial port, and so does one on a host
without vsock; `kata-runtime check` tells which way it is.
";

/// What is said of a driver in one row.
type Row = (&'static str, fn(&Capabilities) -> String);

const ROWS: &[Row] = &[
    ("without KVM", |can| if can.emulation { "emulates" } else { "no" }.to_owned()),
    ("boots from `initrd`", |_| "yes".to_owned()),
    ("boots from `image`", |can| yes_or_no(can.image)),
    ("shared file system", |can| {
        match can.shared_file_system {
            SharedFileSystem::None => "no",
            SharedFileSystem::Server => "virtio-fs, by a server beside it",
            SharedFileSystem::Inline => "virtio-fs, by itself",
        }
        .to_owned()
    }),
    ("disks", |can| {
        match can.disks {
            Disks::None => "no",
            Disks::AtBoot => "at boot",
            Disks::Later => "at boot and later",
        }
        .to_owned()
    }),
    ("network interfaces", |_| "yes".to_owned()),
    ("… with vhost-net", |can| yes_or_no(can.vhost_net)),
    ("… added after boot (hot-plug)", |can| yes_or_no(can.hot_plug)),
    ("memory that grows (`enable_virtio_mem`)", |can| yes_or_no(can.more_memory)),
    ("virtual CPUs that come and go (`default_maxvcpus`)", |can| yes_or_no(can.more_vcpus)),
    ("pause and resume", |can| yes_or_no(can.pause)),
    ("virtual CPUs, at most", |can| can.max_vcpus.to_string()),
];

fn yes_or_no(can: bool) -> String {
    if can { "yes" } else { "no" }.to_owned()
}

/// The page. The same on every machine.
pub(crate) fn page() -> String {
    let drivers = hypervisors(Path::new("/usr/local"));
    format!("{HEAD}{}{TAIL}", table(&drivers))
}

fn table(drivers: &[Box<dyn Hypervisor>]) -> String {
    let mut table = String::from("| |");
    for driver in drivers {
        let _ = write!(table, " `{}` |", driver.name());
    }
    table.push_str("\n|---|");
    table.push_str(&"---|".repeat(drivers.len()));
    table.push('\n');
    for (title, of) in ROWS {
        let _ = write!(table, "| {title} |");
        for driver in drivers {
            let _ = write!(table, " {} |", of(&driver.capabilities()));
        }
        table.push('\n');
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_driver_has_a_column_and_every_capability_a_row() {
        let page = page();
        assert!(page.contains("| | `clh` | `firecracker` | `krun` | `qemu` |"), "{page}");
        assert!(page.contains("| without KVM | no | no | no | emulates |"), "{page}");
        let columns = |line: &str| line.matches('|').count();
        let rows: Vec<_> = page.lines().filter(|line| line.starts_with('|')).collect();
        assert_eq!(rows.len(), ROWS.len() + 2);
        assert!(rows.iter().all(|row| columns(row) == 6), "{page}");
    }
}
