//! The Firecracker driver. It needs KVM.
//!
//! The VMM is told of its machine through its API, over the only connection that is ever made to
//! its socket. It runs behind the walls that QEMU has ([`kata_linux::jail::Jail::strict`]), or in
//! the cell that Firecracker's own jailer builds, where the administrator names one; and behind its
//! own filter of system calls in either. It has no shared file system, and takes disks instead,
//! also while it runs: those have their places from the beginning and get their files later.
//!
//! ```text
//!   settings, VmSpec ──▶ cell: where the VMM lives, what it sees ──▶ launch ──▶ api: machine's parts, start ──▶ FirecrackerVm
//!                    └─▶ machine: requests ─────────────────────────────┘  └──▶ fifo: log and metrics
//! ```

pub mod api;
mod cell;
mod disks;
mod fifo;
mod kernel_params;
mod launch;
mod machine;
mod settings;
mod socket;
mod vm;

use std::path::Path;

use async_trait::async_trait;
use kata_hypervisor::{
    Capabilities, Disks, Finding, Hypervisor, HypervisorError, OldestVersion, Pause,
    SharedFileSystem, Vm, VmSpec,
};
use kata_linux::user;

pub use settings::FirecrackerSettings;

/// The driver's name, as in the configuration.
const NAME: &str = "firecracker";

/// The user that the VMM is behind walls of ours. It has no capability.
const ROOT: u32 = 0;

/// Most virtual CPUs of a VM, as the API's description has it.
const MAX_VCPUS: u32 = 32;

/// The first version that tells kernels of its devices through ACPI, as distributions' kernels need
/// it.
const OLDEST: OldestVersion = OldestVersion { vmm: "Firecracker", numbers: &[1, 8] };

/// The version whose guests cannot be reached again after a pause. On resuming it waits for an
/// answer to a message that only snapshots send, and until then, for ever, passes nothing on to the
/// guest's sockets (firecracker-microvm/firecracker#6100).
const NO_RESUME: &str = "1.16";

/// Boots virtual machines with Firecracker. The guest kernel is an uncompressed ELF `vmlinux`.
#[derive(Debug)]
pub struct Firecracker {
    settings: FirecrackerSettings,
}

impl Firecracker {
    /// A driver with these settings.
    #[must_use]
    pub fn new(settings: FirecrackerSettings) -> Self {
        Self { settings }
    }
}

#[async_trait]
impl Hypervisor for Firecracker {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            emulation: false,
            image: true,
            shared_file_system: SharedFileSystem::None,
            disks: Disks::Later,
            max_vcpus: MAX_VCPUS,
            pause: Pause::Except(NO_RESUME),
            vhost_net: false,
            named_taps: Some(
                self.settings.jailer.as_ref().map_or(ROOT, |_| user::of_this_process()),
            ),
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
        let remedy = "install Firecracker or set `path` in the section hypervisor.firecracker";
        let program = OLDEST.find(&self.settings.program, remedy);
        let remedy = "install Firecracker's jailer or set `jailer_path` to \"\" in the section hypervisor.firecracker";
        let jailer = self.settings.jailer.as_ref();
        let jailer = jailer.map(|jailer| Finding::of_program("jailer", jailer, remedy));
        [program, Finding::of_kvm(false), Finding::of_kernel(kernel)]
            .into_iter()
            .chain(jailer)
            .collect()
    }

    async fn boot(&self, spec: &VmSpec) -> Result<Box<dyn Vm>, HypervisorError> {
        Ok(Box::new(launch::launch(&self.settings, spec).await?))
    }
}
