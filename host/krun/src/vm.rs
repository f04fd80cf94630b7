//! A running kata-krun.

use std::fmt;

use async_trait::async_trait;
use kata_channel::ChannelStream;
use kata_hypervisor::{GuestDisk, HypervisorError, NicSpec, Vm, VmExit, Vmm};
use rustix::process::Signal;

use crate::NAME;
use crate::dial::Dialer;
use crate::launch::{signal_error, to_vm_exit};

/// A virtual machine of krun's. Dropping it kills it.
pub(crate) struct KrunVm {
    pub(crate) vmm: Vmm,
    pub(crate) dialer: Dialer,
    /// The ids of its disks, which are their serial numbers.
    pub(crate) disks: Vec<String>,
}

impl KrunVm {
    fn signal(&self, command: &'static str, signal: Signal) -> Result<(), HypervisorError> {
        if self.vmm.child().exit().is_some() {
            let reason = "it has ended".to_owned();
            return Err(HypervisorError::Control { command, reason });
        }
        self.vmm.child().kill(signal).map_err(|error| signal_error(command, &error))
    }
}

#[async_trait]
impl Vm for KrunVm {
    fn vmm(&self) -> &Vmm {
        &self.vmm
    }

    async fn dial(&self, port: u32) -> Result<ChannelStream, HypervisorError> {
        self.dialer.dial(port).await
    }

    async fn exited(&self) -> VmExit {
        to_vm_exit(self.vmm.exited().await)
    }

    async fn pause(&self) -> Result<(), HypervisorError> {
        // The guest's CPUs are threads of the VMM, and so are its devices.
        self.signal("pause", Signal::STOP)
    }

    async fn resume(&self) -> Result<(), HypervisorError> {
        self.signal("resume", Signal::CONT)
    }

    async fn add_nic(&self, _nic: &NicSpec) -> Result<(), HypervisorError> {
        Err(HypervisorError::Unsupported {
            driver: NAME,
            what: "network devices that come after the boot",
        })
    }

    fn disk(&self, id: &str) -> Option<GuestDisk> {
        self.disks.iter().any(|one| one == id).then(|| GuestDisk::with_serial(id))
    }
}

impl fmt::Debug for KrunVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KrunVm").field("pid", &self.pid()).finish_non_exhaustive()
    }
}
