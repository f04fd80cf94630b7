//! The krun driver: the VMM that is installed with this software.
//!
//! The VMM is a program of its own, `kata-krun`, which is the `libkrun` crate in a jail. It needs
//! KVM, has no firmware and no PCI, serves directories to its guest by itself, and reaches the
//! guest's vsock through unix sockets, one for each port.
//!
//! ```text
//!              settings ─┐
//!                VmSpec ─┴─▶ arguments (pure) ──▶ kata-krun: jail, libkrun ── one byte ──▶ KrunVm
//!                                                     │
//!   vsock/PORT ◀── listens once the guest's driver is up; seen by those who hold the directory open
//!   console ◀────────────────────────── pipe ─────────┘
//! ```
//!
//! There is no control channel: what may be asked of this VMM is asked of its process, with
//! signals.

mod arguments;
mod dial;
mod kernel_image;
mod kernel_params;
mod launch;
mod stream;
mod vm;

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use kata_channel::{AGENT_PORT, DEBUG_CONSOLE_PORT, DNS_RELAY_PORT, LOG_PORT, PORT_FORWARD_PORT};
use kata_hypervisor::{
    Capabilities, Disks, Finding, Hypervisor, HypervisorError, Pause, SharedFileSystem, Vm, VmSpec,
};

/// The driver's name, and that of its section in the configuration.
const NAME: &str = "krun";

/// Most virtual CPUs: libkrun counts them in a byte, and gives each an 8-bit APIC id of which the
/// last means all.
const MAX_VCPUS: u32 = 254;

/// The version of landlock that the VMM restricts itself with: the first that lets files be renamed
/// across directories.
const LANDLOCK: u32 = 2;

/// Settings that are the same for all VMs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KrunSettings {
    /// The VMM's program, `kata-krun`.
    pub program: PathBuf,
    /// The time between two tries to reach a guest that does not listen yet: its vsock has no event
    /// that would tell.
    pub dial_again: Duration,
    /// The guest's ports that can be dialled; each is a socket of the VMM's. Those of the agent
    /// protocol where nothing else is needed.
    pub ports: Vec<u32>,
}

impl KrunSettings {
    /// Settings for `program`, with the agent's ports.
    #[must_use]
    pub fn new(program: PathBuf) -> Self {
        Self {
            program,
            dial_again: Duration::from_millis(10),
            ports: vec![
                AGENT_PORT,
                LOG_PORT,
                DEBUG_CONSOLE_PORT,
                DNS_RELAY_PORT,
                PORT_FORWARD_PORT,
            ],
        }
    }
}

/// What keeps krun from booting `kernel` on this host, in words that fit into a sentence; `None`
/// where it works.
#[must_use]
pub fn obstacle(kernel: &Path) -> Option<String> {
    match kata_hypervisor::kvm_obstacle() {
        Some(obstacle) => Some(format!("KVM does not work here ({obstacle})")),
        None => kernel_image::obstacle(kernel),
    }
}

/// Boots virtual machines with krun. The guest kernel is an uncompressed ELF `vmlinux` that takes
/// virtio-mmio devices from its command line (`CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES`).
#[derive(Debug)]
pub struct Krun {
    settings: KrunSettings,
}

impl Krun {
    /// A driver with these settings. Looks at the host once, and says so in the log when the VMM
    /// must do without landlock.
    #[must_use]
    pub fn new(settings: KrunSettings) -> Self {
        if kata_linux::landlock::version().is_none_or(|version| version < LANDLOCK) {
            tracing::warn!(
                "this kernel has no landlock of version {LANDLOCK} (Linux 5.19 with `landlock` in its list of security modules): \
                 kata-krun runs in its jail and behind its system call filter only"
            );
        }
        Self { settings }
    }
}

#[async_trait]
impl Hypervisor for Krun {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            emulation: false,
            image: true,
            shared_file_system: SharedFileSystem::Inline,
            disks: Disks::AtBoot,
            max_vcpus: MAX_VCPUS,
            pause: Pause::Always,
            vhost_net: false,
            named_taps: None,
            hot_plug: false,
            more_memory: false,
            more_vcpus: false,
            templates: false,
        }
    }

    fn program(&self) -> &Path {
        &self.settings.program
    }

    fn check(&self, kernel: &Path) -> Vec<Finding> {
        const KERNEL: &str = "guest kernel";
        let remedy = "install it with `make install` or set `path` in the section hypervisor.krun";
        let kernel = match kernel_image::obstacle(kernel) {
            None => Finding::good(KERNEL, kernel.display().to_string()),
            Some(obstacle) => Finding::failed(
                KERNEL,
                obstacle,
                "build the small guest kernel with `make kernel`, or choose qemu with `hypervisor_name`",
            ),
        };
        vec![
            Finding::of_program("hypervisor", &self.settings.program, remedy),
            Finding::of_kvm(false),
            kernel,
            Finding::of_landlock(LANDLOCK),
        ]
    }

    async fn boot(&self, spec: &VmSpec) -> Result<Box<dyn Vm>, HypervisorError> {
        Ok(Box::new(launch::launch(&self.settings, spec).await?))
    }
}
