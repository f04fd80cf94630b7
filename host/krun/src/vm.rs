//! A running kata-krun.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use kata_channel::ChannelStream;
use kata_hypervisor::{Console, ConsoleEnd, HypervisorError, NicSpec, Vm, VmExit};
use kata_linux::process::Child;
use rustix::process::Signal;

use crate::NAME;
use crate::dial::Dialer;
use crate::launch::{signal_error, to_vm_exit};

/// A virtual machine of krun's. Dropping it kills it.
pub(crate) struct KrunVm {
    pub(crate) child: Arc<Child>,
    pub(crate) dialer: Dialer,
    pub(crate) console: Console,
    pub(crate) console_end: ConsoleEnd,
}

impl KrunVm {
    fn signal(&self, command: &'static str, signal: Signal) -> Result<(), HypervisorError> {
        if self.child.exit().is_some() {
            let reason = "it has ended".to_owned();
            return Err(HypervisorError::Control { command, reason });
        }
        self.child.kill(signal).map_err(|error| signal_error(command, &error))
    }
}

#[async_trait]
impl Vm for KrunVm {
    fn pid(&self) -> u32 {
        self.child.pid()
    }

    fn executed(&self) -> Option<Instant> {
        Some(self.child.executed())
    }

    fn console(&self) -> Console {
        self.console.clone()
    }

    fn stderr(&self) -> Vec<String> {
        self.child.stderr()
    }

    async fn dial(&self, port: u32) -> Result<ChannelStream, HypervisorError> {
        self.dialer.dial(port).await
    }

    async fn exited(&self) -> VmExit {
        let exit = self.child.exited().await;
        // Whoever hears of the end wants the last words too. With the VMM gone the pipe is at its end.
        self.console_end.reached().await;
        to_vm_exit(exit)
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

    async fn stop(&self) {
        self.child.end().await;
    }
}

impl Drop for KrunVm {
    fn drop(&mut self) {
        // Streams may hold on to the child longer than this.
        let _ = self.child.kill(Signal::KILL);
    }
}

impl fmt::Debug for KrunVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KrunVm").field("pid", &self.pid()).finish_non_exhaustive()
    }
}
