//! What QEMU needs of a host, looked for without booting anything.

use std::path::Path;

use kata_hypervisor::Finding;
use kata_linux::program;
use kata_log::chain;

use crate::launch::{self, Wishes};
use crate::{Host, QemuSettings, huge_pages, vsock};

pub(crate) fn check(settings: &QemuSettings, host: &Host, kernel: &Path) -> Vec<Finding> {
    let mut findings = vec![
        Finding::of_program(
            "hypervisor",
            &settings.program,
            "install QEMU (Debian: qemu-system-x86) or set `path` in the section hypervisor.qemu",
        ),
        Finding::of_kvm(true),
        bootable(settings, host, kernel),
        channel(),
        user(settings, host),
    ];
    findings.extend(settings.pages.huge.then(pool));
    findings
}

/// The huge pages that there are for guests. How many one takes is not known here.
fn pool() -> Finding {
    const PROBE: &str = "huge pages";
    let mib = huge_pages::SIZE_MIB;
    let remedy = "raise /proc/sys/vm/nr_hugepages, or set `enable_hugepages` to false";
    match huge_pages::free() {
        Ok(0) => Finding::failed(PROBE, format!("none of {mib} MiB is free"), remedy),
        Ok(free) => Finding::good(PROBE, format!("{free} of {mib} MiB are free")),
        Err(error) => Finding::failed(PROBE, format!("this host has none: {error}"), remedy),
    }
}

/// Whether there is a machine that boots this kernel.
fn bootable(settings: &QemuSettings, host: &Host, kernel: &Path) -> Finding {
    const PROBE: &str = "guest kernel";
    match launch::choose_machine(settings.machine, host, kernel, Wishes::default()) {
        Ok(_) => Finding::good(PROBE, kernel.display().to_string()),
        Err(error) => {
            let remedy = "build one with `make`, or set `kernel` in the configuration";
            Finding::failed(PROBE, chain(&error), remedy)
        }
    }
}

/// Whom QEMU will run as.
fn user(settings: &QemuSettings, host: &Host) -> Finding {
    const PROBE: &str = "user";
    match (host.obstacle, settings.rootless) {
        (Some(obstacle), _) => Finding::warning(
            PROBE,
            format!("{obstacle}, so QEMU runs as root, without a capability"),
            "run in the first user namespace, with the capability to make devices (CAP_MKNOD)",
        ),
        (None, true) => {
            match program::find(&settings.program).and_then(|path| program::barrier(&path)) {
                Ok(Some(barrier)) => Finding::failed(
                    PROBE,
                    format!(
                        "QEMU runs as a user of its own, whom {} does not let through",
                        barrier.display()
                    ),
                    "let everybody run QEMU and enter its directories (chmod o+x), or set `rootless` to false",
                ),
                // A program that is not there is another probe's.
                Ok(None) | Err(_) => {
                    Finding::good(PROBE, "QEMU runs as a user of its own, who is nobody")
                }
            }
        }
        (None, false) => {
            Finding::good(PROBE, "QEMU runs as root without a capability, as `rootless` says")
        }
    }
}

/// How the agent will be reached. An address is reserved as for a VM, and given back.
fn channel() -> Finding {
    const PROBE: &str = "vsock";
    match vsock::reserve_cid() {
        Ok(Some(_)) => Finding::good(PROBE, "the agent is reached through /dev/vhost-vsock"),
        Ok(None) if !vsock::may_dial() => Finding::good(
            PROBE,
            "reserved ports take CAP_NET_BIND_SERVICE in the first user namespace, so the agent is reached through a serial port",
        ),
        Ok(None) => Finding::good(
            PROBE,
            "the host has none (module vhost_vsock), so the agent is reached through a serial port",
        ),
        Err(error) => Finding::failed(
            PROBE,
            format!("/dev/vhost-vsock: {error}"),
            "run as root, and let this container or cgroup use the device",
        ),
    }
}
