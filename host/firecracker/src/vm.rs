//! A running Firecracker.

use std::fmt;

use async_trait::async_trait;
use kata_channel::ChannelStream;
use kata_hypervisor::{
    Console, DiskSpec, GuestDisk, HybridVsock, HypervisorError, NicSpec, Vm, VmExit, Vmm,
};
use kata_linux::process::Exit;

use crate::NAME;
use crate::api::{Client, PartialDrive, TargetState};
use crate::cell::Cell;
use crate::disks::Disks;

/// Lines of the VMM's log that are its last words.
const LOG_LINES: usize = 20;

/// A virtual machine of Firecracker's. Dropping it kills it.
pub(crate) struct FirecrackerVm {
    pub(crate) vmm: Vmm,
    pub(crate) client: Client,
    pub(crate) dialer: HybridVsock,
    pub(crate) cell: Cell,
    pub(crate) disks: Disks,
    /// What the VMM logged.
    pub(crate) log: Console,
    /// Whether the VMM can let a paused guest go on.
    pub(crate) resumes: bool,
}

#[async_trait]
impl Vm for FirecrackerVm {
    fn vmm(&self) -> &Vmm {
        &self.vmm
    }

    fn stderr(&self) -> Vec<String> {
        let mut lines = self.log.last_lines(LOG_LINES);
        lines.extend(self.vmm.stderr());
        lines
    }

    async fn dial(&self, port: u32) -> Result<ChannelStream, HypervisorError> {
        self.dialer.dial(port).await
    }

    async fn exited(&self) -> VmExit {
        let exit = self.vmm.exited().await;
        // Nothing but its guest makes this VMM exit as if all were well: a reset, which is how
        // guests power off and panic, too.
        let reason = (exit == Exit::Code(0)).then(|| "guest-reset".to_owned());
        VmExit::of(exit, reason)
    }

    async fn pause(&self) -> Result<(), HypervisorError> {
        if !self.resumes {
            let what = "pausing with version 1.16, which would never be reached again; install another version of Firecracker";
            return Err(HypervisorError::Unsupported { driver: NAME, what });
        }
        Ok(self.client.go(TargetState::Paused).await?)
    }

    async fn resume(&self) -> Result<(), HypervisorError> {
        Ok(self.client.go(TargetState::Resumed).await?)
    }

    async fn add_nic(&self, _nic: &NicSpec) -> Result<(), HypervisorError> {
        Err(HypervisorError::Unsupported {
            driver: NAME,
            what: "network devices that come after the boot",
        })
    }

    fn disk(&self, id: &str) -> Option<GuestDisk> {
        self.disks.find(id)
    }

    async fn attach_disk(&self, disk: &DiskSpec) -> Result<GuestDisk, HypervisorError> {
        // Nor could it open one later: behind walls of ours everything is read-only, in the
        // jailer's cell it belongs to another user.
        if !disk.readonly && disk.path.is_file() {
            let what = "root file systems in files, as the blockfile snapshotter has them, in pods";
            return Err(HypervisorError::Unsupported { driver: NAME, what });
        }
        let (drive_id, address) = self.disks.take(disk)?;
        let attached = async {
            let path_on_host = self
                .cell
                .admit(&disk.path, &drive_id)
                .map_err(|source| HypervisorError::Setup { what: "a disk", source })?;
            let drive = PartialDrive { drive_id: drive_id.clone(), path_on_host };
            self.client.patch_drive(&drive).await.map_err(HypervisorError::from)
        };
        match attached.await {
            Ok(()) => Ok(address),
            Err(error) => {
                self.cell.dismiss(&drive_id);
                self.disks.give_back(&disk.id);
                Err(error)
            }
        }
    }

    async fn detach_disk(&self, id: &str) -> Result<(), HypervisorError> {
        let Some(drive_id) = self.disks.taken_by(id) else { return Ok(()) };
        let path_on_host = self.cell.placeholder();
        self.client.patch_drive(&PartialDrive { drive_id: drive_id.clone(), path_on_host }).await?;
        self.cell.dismiss(&drive_id);
        self.disks.give_back(id);
        Ok(())
    }

    async fn stop(&self) {
        self.vmm.stop().await;
        self.cell.close();
    }
}

impl fmt::Debug for FirecrackerVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FirecrackerVm").field("pid", &self.pid()).finish_non_exhaustive()
    }
}
