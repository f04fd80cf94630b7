//! The QEMU driver.
//!
//! Under KVM where it works, on a `q35`; else under QEMU's software emulation (TCG), on a `microvm`
//! where the kernel, disks and memory allow it. A microvm has a minimal firmware (qboot), virtio
//! over MMIO, and PCI Express only where devices may come later (`machine.rs`, docs/adr/0007).
//!
//! Nothing of it is on disk: memory is a shared memory file, and the control socket, the console,
//! the agent's channel and all files are inherited descriptors. It runs as a user and group of its
//! own, without a capability ([`kata_linux::jail`]).
//!
//! ```text
//!            settings ─┐                ┌── machine ── devices ──▶ argv          (pure: VmSpec in, strings out)
//!   host (KVM, vsock) ─┼─▶ plan ────────┤
//!              VmSpec ─┘                └── kernel parameters ──▶ -append
//!                                       launch: descriptors, jail, exec ──▶ QMP greeting ──▶ QemuVm
//! ```

mod accelerator;
mod beginning;
mod boot_slot;
mod channel;
mod check;
mod command_line;
mod device;
mod file;
mod hot_plug;
mod huge_pages;
mod kernel_image;
mod kernel_params;
mod later_disks;
mod later_nics;
mod launch;
mod machine;
mod memory;
mod option;
mod own_devices;
mod qmp;
mod settings;
mod template;
mod vcpus;
mod vm;
mod vsock;

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use kata_hypervisor::{
    Capabilities, Disks, Finding, Hypervisor, HypervisorError, Pause, SharedFileSystem, Vm, VmSpec,
};
use kata_linux::jail::DeviceNode;
use kata_linux::user;

pub use settings::{AcceleratorChoice, Aio, DiskIo, MachineChoice, Pages, QemuSettings};
pub use template::{has_template, remove_template};

use accelerator::Accelerator;
use boot_slot::BootSlot;
use launch::Start;

/// The device of KVM.
const KVM: &str = "/dev/kvm";

/// Most virtual CPUs of a VM: what fits without an interrupt controller that every kernel knows.
const MAX_VCPUS: u32 = 240;

/// How long a boot under emulation waits for its turn: half of what a kubelet waits for a sandbox.
const TURN: Duration = Duration::from_secs(60);

/// Why QEMU is root although it should not be.
const NO_USER: &str = "this user namespace has no user id that could be QEMU's own";
const NO_DEVICE: &str =
    "nobody may make a device node here, by which QEMU's own user would open /dev/kvm";

/// Boots virtual machines with QEMU. The guest kernel is an uncompressed ELF `vmlinux` with a PVH
/// entry note, which every x86-64 kernel with `CONFIG_PVH` has, or a `bzImage`.
#[derive(Debug)]
pub struct Qemu {
    settings: QemuSettings,
    host: Host,
}

/// What this host offers; looked up once.
#[derive(Debug, Clone)]
struct Host {
    accelerator: Accelerator,
    /// Frequency of the time stamp counter, where an emulated guest must be told.
    tsc_khz: Option<u32>,
    /// Whether it is known, and trusted by the host's kernel.
    tsc_trusted: bool,
    /// Whether QEMU runs as root.
    root: bool,
    /// Why it does although it should not.
    obstacle: Option<&'static str>,
}

impl Qemu {
    /// A driver with these settings. Looks at the host once, and says so in the log when it must do
    /// without KVM, or without a user for QEMU.
    #[must_use]
    pub fn new(settings: QemuSettings) -> Self {
        let accelerator =
            accelerator::choose(settings.accelerator, kata_hypervisor::kvm_obstacle());
        let tsc_khz = match accelerator {
            Accelerator::Kvm => None,
            Accelerator::Tcg => kata_linux::tsc::host_khz(),
        };
        if accelerator == Accelerator::Tcg && tsc_khz.is_none() {
            tracing::warn!(
                "this processor has no time stamp counter that could be measured: without KVM the machine is a q35"
            );
        }
        let obstacle = settings.rootless.then(|| user_obstacle(accelerator)).flatten();
        if let Some(obstacle) = obstacle {
            tracing::warn!("{obstacle}: QEMU runs as root, without a capability");
        }
        let root = !settings.rootless || obstacle.is_some();
        let tsc_trusted = tsc_khz.is_some() && kata_linux::tsc::is_trusted();
        Self { settings, host: Host { accelerator, tsc_khz, tsc_trusted, root, obstacle } }
    }
}

/// Why QEMU cannot have a user of its own here.
fn user_obstacle(accelerator: Accelerator) -> Option<&'static str> {
    if !user::exists(user::of_this_process()) {
        return Some(NO_USER);
    }
    let device = DeviceNode::of(Path::new(KVM)).ok();
    let lacks = accelerator == Accelerator::Kvm && !device.is_some_and(|kvm| kvm.can_be_made());
    lacks.then_some(NO_DEVICE)
}

#[async_trait]
impl Hypervisor for Qemu {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            emulation: true,
            image: true,
            shared_file_system: SharedFileSystem::Server,
            disks: Disks::Later,
            max_vcpus: MAX_VCPUS,
            pause: Pause::Always,
            vhost_net: true,
            named_taps: None,
            hot_plug: true,
            more_memory: true,
            more_vcpus: true,
            templates: true,
        }
    }

    fn program(&self) -> &Path {
        &self.settings.program
    }

    fn check(&self, kernel: &Path) -> Vec<Finding> {
        check::check(&self.settings, &self.host, kernel)
    }

    async fn boot(&self, spec: &VmSpec) -> Result<Box<dyn Vm>, HypervisorError> {
        let slot = match self.host.accelerator {
            Accelerator::Kvm => None,
            Accelerator::Tcg => {
                BootSlot::take(&self.settings.boot_slots, boot_slot::count(), TURN).await
            }
        };
        let mut vm = launch::launch(&self.settings, &self.host, spec, Start::Usual).await?;
        vm.boot_slot = Mutex::new(slot);
        Ok(Box::new(vm))
    }

    async fn make_template(
        &self,
        spec: &VmSpec,
        directory: &Path,
        patience: Duration,
    ) -> Result<(), HypervisorError> {
        template::make(&self.settings, &self.host, spec, directory, patience).await
    }
}
