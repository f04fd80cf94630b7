//! Memory that comes and goes while the VM runs: a virtio-mem device beside the memory of the boot.

use kata_hypervisor::{HypervisorError, VmSpec};

use crate::device::Device;
use crate::qmp::{Command, Qmp};
use crate::settings::Pages;

/// The device's name.
const DEVICE: &str = "more";

/// The device's path in QEMU's tree of objects.
const PATH: &str = "/machine/peripheral/more";

const MIB: u64 = 1 << 20;

/// The memory of a VM that may have more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory {
    boot_mib: u32,
    most_mib: u32,
}

impl Memory {
    /// That of a spec, if it may have more than it boots with.
    pub(crate) fn of(spec: &VmSpec) -> Option<Self> {
        let most_mib = spec.most_memory_mib.filter(|most| *most > spec.memory_mib)?;
        Some(Self { boot_mib: spec.memory_mib, most_mib })
    }

    /// What the machine needs for it from the start.
    pub(crate) fn device(self, pages: Pages) -> Device {
        Device::Memory { id: DEVICE, mib: self.most_mib - self.boot_mib, pages }
    }

    /// Asks for so much altogether, within what the VM may have.
    pub(crate) async fn resize(self, qmp: &Qmp, mib: u32) -> Result<(), HypervisorError> {
        let mib = mib.clamp(self.boot_mib, self.most_mib) - self.boot_mib;
        let (path, property) = (PATH, "requested-size");
        qmp.execute(Command::QomSet { path, property, value: u64::from(mib) * MIB }).await
    }

    /// How much there is.
    pub(crate) async fn mib(self, qmp: &Qmp) -> Result<u32, HypervisorError> {
        let more = qmp.number(Command::QomGet { path: PATH, property: "size" }).await?;
        // QEMU is trusted no more than its guest.
        let more = u32::try_from(more / MIB).unwrap_or(u32::MAX);
        Ok(self.boot_mib.saturating_add(more).min(self.most_mib))
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use kata_hypervisor::GuestRoot;

    use super::*;

    #[test]
    fn device_has_what_is_beyond_the_boot() {
        let initrd = GuestRoot::Initrd(PathBuf::new());
        let spec = |most| VmSpec {
            most_memory_mib: most,
            ..VmSpec::bare("web", "/kernel", initrd.clone(), "/run/kata/web")
        };
        let memory = Memory::of(&spec(Some(1024))).unwrap();
        let pages = Pages::default();
        assert_eq!(memory.device(pages), Device::Memory { id: "more", mib: 768, pages });
        assert_eq!(Memory::of(&spec(None)), None);
        assert_eq!(Memory::of(&spec(Some(256))), None);
    }
}
