//! A running QEMU.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use kata_channel::ChannelStream;
use kata_hypervisor::{DiskSpec, GuestDisk, HypervisorError, NicSpec, Vm, VmExit, Vmm};

use crate::boot_slot::BootSlot;
use crate::channel::Channel;
use crate::hot_plug::HotPlug;
use crate::later_disks::LaterDisks;
use crate::later_nics;
use crate::memory::Memory;
use crate::qmp::{Command, Qmp};
use crate::template::Key;
use crate::vcpus::Vcpus;

/// A virtual machine of QEMU's. Dropping it kills it.
pub(crate) struct QemuVm {
    pub(crate) vmm: Vmm,
    pub(crate) hot_plug: Arc<HotPlug>,
    /// `None` if it stays as it is.
    pub(crate) memory: Option<Memory>,
    pub(crate) vcpus: Vcpus,
    /// The ids of the disks that it has had since its boot, which are their serial numbers.
    pub(crate) disks: Vec<String>,
    pub(crate) later_disks: Arc<LaterDisks>,
    pub(crate) qmp: Qmp,
    pub(crate) channel: Channel,
    /// What it was made of, if it is to become a template.
    pub(crate) key: Option<Key>,
    /// Whether it is from a template.
    pub(crate) is_a_copy: bool,
    /// Its turn at booting, until its agent answers. Locked only to give it back.
    pub(crate) boot_slot: Mutex<Option<BootSlot>>,
}

#[async_trait]
impl Vm for QemuVm {
    fn vmm(&self) -> &Vmm {
        &self.vmm
    }

    fn is_a_copy(&self) -> bool {
        self.is_a_copy
    }

    async fn dial(&self, port: u32) -> Result<ChannelStream, HypervisorError> {
        tokio::select! {
            biased;
            // By vsock one waits for a guest that may come up, and without its VMM none will.
            _ = self.vmm.child().exited() => Err(HypervisorError::ChannelClosed),
            stream = self.channel.dial(port) => {
                self.boot_slot.lock().unwrap_or_else(PoisonError::into_inner).take();
                stream
            }
        }
    }

    async fn exited(&self) -> VmExit {
        VmExit::of(self.vmm.exited().await, self.qmp.closed().await)
    }

    async fn pause(&self) -> Result<(), HypervisorError> {
        self.qmp.execute(Command::Stop).await
    }

    async fn resume(&self) -> Result<(), HypervisorError> {
        self.qmp.execute(Command::Cont).await
    }

    async fn add_nic(&self, nic: &NicSpec) -> Result<(), HypervisorError> {
        later_nics::add(&self.hot_plug, &self.qmp, nic).await
    }

    async fn resize_memory(&self, mib: u32) -> Result<(), HypervisorError> {
        self.memory.ok_or(HypervisorError::FixedMemory)?.resize(&self.qmp, mib).await
    }

    async fn memory_mib(&self) -> Result<u32, HypervisorError> {
        self.memory.ok_or(HypervisorError::FixedMemory)?.mib(&self.qmp).await
    }

    async fn resize_vcpus(&self, count: u32) -> Result<(), HypervisorError> {
        self.vcpus.resize(&self.qmp, count).await
    }

    fn disk(&self, id: &str) -> Option<GuestDisk> {
        let has = self.disks.iter().any(|one| one == id) || self.later_disks.has(id);
        has.then(|| GuestDisk::with_serial(id))
    }

    async fn attach_disk(&self, disk: &DiskSpec) -> Result<GuestDisk, HypervisorError> {
        self.later_disks.attach(&self.qmp, disk).await
    }

    async fn detach_disk(&self, id: &str) -> Result<(), HypervisorError> {
        self.later_disks.detach(&self.qmp, id).await
    }
}

impl fmt::Debug for QemuVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QemuVm").field("pid", &self.pid()).finish_non_exhaustive()
    }
}
