//! A running Cloud Hypervisor.

use std::fmt;

use async_trait::async_trait;
use kata_channel::ChannelStream;
use kata_hypervisor::{
    DiskSpec, GuestDisk, HybridVsock, HypervisorError, NicSpec, Vm, VmExit, Vmm,
};

use crate::NAME;
use crate::api::Client;
use crate::events::{Reason, Removals};
use crate::later_disks::LaterDisks;
use crate::machine;
use crate::resize::Room;

/// A virtual machine of Cloud Hypervisor's. Dropping it kills it.
pub(crate) struct CloudVm {
    pub(crate) vmm: Vmm,
    /// Whether network devices may come later.
    pub(crate) hot_plug: bool,
    /// How much memory and how many virtual CPUs it may have.
    pub(crate) room: Room,
    /// The ids of its disks, which are their serial numbers.
    pub(crate) disks: Vec<String>,
    /// Those that come and go; `None` where none may.
    pub(crate) later_disks: Option<LaterDisks>,
    pub(crate) client: Client,
    pub(crate) dialer: HybridVsock,
    pub(crate) reason: Reason,
    pub(crate) removals: Removals,
}

#[async_trait]
impl Vm for CloudVm {
    fn vmm(&self) -> &Vmm {
        &self.vmm
    }

    async fn dial(&self, port: u32) -> Result<ChannelStream, HypervisorError> {
        self.dialer.dial(port).await
    }

    async fn exited(&self) -> VmExit {
        let exit = self.vmm.exited().await;
        match self.reason.clone().told().await {
            // It was this driver that killed it, and why is what counts.
            Some(reason @ "guest-reset") => {
                VmExit { code: None, signal: None, reason: Some(reason.to_owned()) }
            }
            reason => VmExit::of(exit, reason.map(str::to_owned)),
        }
    }

    async fn pause(&self) -> Result<(), HypervisorError> {
        self.client.pause().await.map_err(HypervisorError::from)
    }

    async fn resume(&self) -> Result<(), HypervisorError> {
        self.client.resume().await.map_err(HypervisorError::from)
    }

    async fn add_nic(&self, nic: &NicSpec) -> Result<(), HypervisorError> {
        if !self.hot_plug {
            let what = "network devices on a machine that was booted without room for them";
            return Err(HypervisorError::Unsupported { driver: NAME, what });
        }
        let tap = nic.tap.descriptor(NAME)?.try_clone();
        let tap =
            tap.map_err(|source| HypervisorError::Setup { what: "a network device", source })?;
        self.client.add_net(&machine::nic(nic), vec![tap]).await.map_err(HypervisorError::from)
    }

    async fn resize_memory(&self, mib: u32) -> Result<(), HypervisorError> {
        self.room.resize_memory(&self.client, mib).await
    }

    async fn memory_mib(&self) -> Result<u32, HypervisorError> {
        self.room.memory_mib(&self.client).await
    }

    async fn resize_vcpus(&self, count: u32) -> Result<(), HypervisorError> {
        self.room.resize_vcpus(&self.client, count).await
    }

    fn disk(&self, id: &str) -> Option<GuestDisk> {
        let is_later = self.later_disks.as_ref().is_some_and(|later| later.has(id));
        let has = is_later || self.disks.iter().any(|one| one == id);
        has.then(|| GuestDisk::with_serial(id))
    }

    async fn attach_disk(&self, disk: &DiskSpec) -> Result<GuestDisk, HypervisorError> {
        match &self.later_disks {
            Some(later) => later.attach(&self.client, self.vmm.child(), disk).await,
            None => Err(HypervisorError::NoDisk { id: disk.id.clone() }),
        }
    }

    async fn detach_disk(&self, id: &str) -> Result<(), HypervisorError> {
        match &self.later_disks {
            Some(later) => later.detach(&self.client, self.vmm.child(), &self.removals, id).await,
            None => Ok(()),
        }
    }
}

impl fmt::Debug for CloudVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CloudVm").field("pid", &self.pid()).finish_non_exhaustive()
    }
}
