//! The page of what each hypervisor can do, from what its driver says.

use std::fmt::Write;
use std::path::Path;

use kata_host_runtime::hypervisors;
use kata_hypervisor::{Capabilities, Disks, Hypervisor, Pause, SharedFileSystem};

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
Two machines can do less. QEMU's `microvm`, where `machine_type` asks for it, takes no disks at boot and no more memory, and with KVM nothing that comes later.
Firecracker takes a writable disk that is a file, as a snapshotter's may be, in no pod, and with `jailer_path` not at all.

A container is paused with each of them: the guest's kernel freezes its processes, and the VM runs on.

## Who may talk to the agent

The host's root, whatever the hypervisor. A unix socket in a directory of root's is the way to the guests of `clh`, `firecracker` and `krun`. QEMU's are
reached by vsock where the host has `/dev/vhost-vsock`, which any user may dial; there the agent takes only connections from the host's ports below 1024, for
which one needs `CAP_NET_BIND_SERVICE` in the first user namespace (`agent.vsock_peers=privileged` on the guest's kernel command line). The host has 1023 of
these, one for each connection. A runtime without that capability, as in a nested user namespace, reaches its guests by a serial port, and so does one on a host
without vsock; `kata-runtime check` tells which way it is.
";

/// What is said of a driver, a title and words for each row. A capability that has none is an error
/// of the compiler's.
fn rows(can: Capabilities) -> Vec<(&'static str, String)> {
    let Capabilities {
        emulation,
        image,
        shared_file_system,
        disks,
        max_vcpus,
        pause,
        vhost_net,
        named_taps,
        hot_plug,
        more_memory,
        more_vcpus,
        templates,
    } = can;
    vec![
        ("without KVM", if emulation { "emulates" } else { "no" }.to_owned()),
        ("boots from `initrd`", yes_or_no(true)),
        ("boots from `image`", yes_or_no(image)),
        ("shared file system", shares(shared_file_system).to_owned()),
        ("disks", when(disks).to_owned()),
        ("network interfaces", yes_or_no(true)),
        ("… by macvtap (`internetworking_model`)", yes_or_no(named_taps.is_none())),
        ("… with vhost-net", yes_or_no(vhost_net)),
        ("… added after boot (hot-plug)", yes_or_no(hot_plug)),
        ("memory that grows (`enable_virtio_mem`)", yes_or_no(more_memory)),
        ("virtual CPUs that come and go (`default_maxvcpus`)", yes_or_no(more_vcpus)),
        ("start from a template (`enable_template`)", yes_or_no(templates)),
        ("the whole VM paused and resumed", pauses(pause)),
        ("virtual CPUs, at most", max_vcpus.to_string()),
    ]
}

fn shares(how: SharedFileSystem) -> &'static str {
    match how {
        SharedFileSystem::None => "no",
        SharedFileSystem::Server => "virtio-fs, by a server beside it",
        SharedFileSystem::Inline => "virtio-fs, by itself",
    }
}

fn when(disks: Disks) -> &'static str {
    match disks {
        Disks::None => "no",
        Disks::AtBoot => "at boot",
        Disks::Later => "at boot and later",
    }
}

fn pauses(can: Pause) -> String {
    match can {
        Pause::Never | Pause::Always => yes_or_no(can == Pause::Always),
        Pause::Except(version) => format!("yes, but not version {version}"),
    }
}

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
    let columns: Vec<_> = drivers.iter().map(|driver| rows(driver.capabilities())).collect();
    let titles = columns.first().into_iter().flatten().map(|(title, _)| title);
    for (row, title) in titles.enumerate() {
        let words: Vec<_> = columns.iter().map(|column| column[row].1.as_str()).collect();
        let _ = writeln!(table, "| {title} | {} |", words.join(" | "));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_driver_has_a_column_and_says_the_same_in_every_row() {
        let page = page();
        assert!(page.contains("| | `clh` | `firecracker` | `krun` | `qemu` |"), "{page}");
        assert!(page.contains("| without KVM | no | no | no | emulates |"), "{page}");
        let row =
            "| the whole VM paused and resumed | yes | yes, but not version 1.16 | yes | yes |";
        assert!(page.contains(row), "{page}");
        let columns = |line: &str| line.matches('|').count();
        let mut lines = page.lines().filter(|line| line.starts_with('|'));
        assert!(lines.all(|line| columns(line) == 6), "{page}");
    }
}
