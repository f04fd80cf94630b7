//! A running Cloud Hypervisor.

use std::fmt;

use async_trait::async_trait;
use kata_channel::ChannelStream;
use kata_hypervisor::{GuestDisk, HybridVsock, HypervisorError, NicSpec, Vm, VmExit, Vmm};

use crate::NAME;
use crate::api::Client;
use crate::events::Reason;
use crate::machine;

/// A virtual machine of Cloud Hypervisor's. Dropping it kills it.
pub(crate) struct CloudVm {
    pub(crate) vmm: Vmm,
    /// Whether network devices may come later.
    pub(crate) hot_plug: bool,
    /// The ids of its disks, which are their serial numbers.
    pub(crate) disks: Vec<String>,
    pub(crate) client: Client,
    pub(crate) dialer: HybridVsock,
    pub(crate) reason: Reason,
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

    fn disk(&self, id: &str) -> Option<GuestDisk> {
        self.disks.iter().any(|one| one == id).then(|| GuestDisk::with_serial(id))
    }
}

impl fmt::Debug for CloudVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CloudVm").field("pid", &self.pid()).finish_non_exhaustive()
    }
}
