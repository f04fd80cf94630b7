//! The Cloud Hypervisor driver. It needs KVM.
//!
//! The VMM is told of its machine through its REST API, over a connection that was made before it
//! started; it tells of the guest's end on a pipe. It runs behind the walls that QEMU has
//! ([`kata_linux::jail::Jail::strict`]), and behind its own: a filter of system calls for each
//! thread and, where the host's kernel is new enough, landlock.
//!
//! ```text
//!   settings, VmSpec ──▶ machine: VmConfig ──▶ launch ──▶ api: ping, create, boot ──▶ CloudVm
//!                                                 └─────▶ events: why the guest ended
//! ```

pub mod api;
mod events;
mod kernel_params;
mod later_disks;
mod launch;
mod machine;
mod resize;
mod settings;
mod vm;

use std::path::Path;

use async_trait::async_trait;
use kata_hypervisor::{
    Capabilities, Disks, Finding, Hypervisor, HypervisorError, OldestVersion, Pause,
    SharedFileSystem, Vm, VmSpec,
};

pub use settings::CloudHypervisorSettings;

/// The driver's name, as in the configuration.
const NAME: &str = "clh";

/// Most virtual CPUs of a VM: what fits without an interrupt controller that every kernel knows.
const MAX_VCPUS: u32 = 254;

/// The version of landlock that the VMM insists on (Linux 6.2).
const LANDLOCK: u32 = 3;

/// The first version that is told what a disk's image is (`image_type`). Older ones take the
/// setting and look into the disk instead: a guest could write to its disk what makes it a qcow2
/// image on top of a file of the host's, and have that file from its next start on
/// (CVE-2026-27211). And those before 42 would take the setting for landlock and do nothing.
const OLDEST: OldestVersion = OldestVersion { vmm: "Cloud Hypervisor", numbers: &[51] };

/// Boots virtual machines with Cloud Hypervisor. The guest kernel is an uncompressed ELF `vmlinux`
/// with a PVH entry note, or a `bzImage`.
#[derive(Debug)]
pub struct CloudHypervisor {
    settings: CloudHypervisorSettings,
    landlock: bool,
}

impl CloudHypervisor {
    /// A driver with these settings. Looks at the host once, and says so in the log when it must do
    /// without landlock.
    #[must_use]
    pub fn new(settings: CloudHypervisorSettings) -> Self {
        let landlock = kata_linux::landlock::version().is_some_and(|version| version >= LANDLOCK);
        if !landlock {
            tracing::warn!(
                "this kernel has no landlock of version {LANDLOCK} (Linux 6.2 with `landlock` in its list of security modules): \
                 Cloud Hypervisor runs in its jail and behind its system call filter only"
            );
        }
        Self { settings, landlock }
    }
}

#[async_trait]
impl Hypervisor for CloudHypervisor {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            emulation: false,
            image: true,
            shared_file_system: SharedFileSystem::Server,
            disks: Disks::Later,
            max_vcpus: MAX_VCPUS,
            pause: Pause::Always,
            vhost_net: false,
            named_taps: None,
            hot_plug: true,
            more_memory: true,
            more_vcpus: true,
            templates: false,
        }
    }

    fn program(&self) -> &Path {
        &self.settings.program
    }

    fn check(&self, kernel: &Path) -> Vec<Finding> {
        let remedy = "install Cloud Hypervisor or set `path` in the section hypervisor.clh";
        vec![
            OLDEST.find(&self.settings.program, remedy),
            Finding::of_kvm(false),
            Finding::of_kernel(kernel),
            Finding::of_landlock(LANDLOCK),
        ]
    }

    async fn boot(&self, spec: &VmSpec) -> Result<Box<dyn Vm>, HypervisorError> {
        Ok(Box::new(launch::launch(&self.settings, self.landlock, spec).await?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_look_into_disks_for_what_they_are_are_refused() {
        for version in ["v42.0", "v50.2.0", "v50.0.0"] {
            assert!(OLDEST.check(version).is_err(), "{version}");
        }
        for version in ["v51.0.0", "v51.1.0", "v53.0.0"] {
            assert_eq!(OLDEST.check(version), Ok(()), "{version}");
        }
    }
}
