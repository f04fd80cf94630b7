//! A running QEMU.

use std::fmt;
use std::time::Instant;

use async_trait::async_trait;
use kata_channel::ChannelStream;
use kata_hypervisor::{Console, HypervisorError, Vm, VmExit};
use kata_linux::process::Child;
use tokio::sync::watch;

use crate::channel::Channel;
use crate::launch::to_vm_exit;
use crate::qmp::{Command, Qmp};

/// A virtual machine of QEMU's. Dropping it kills it.
pub(crate) struct QemuVm {
    pub(crate) child: Child,
    pub(crate) qmp: Qmp,
    pub(crate) channel: Channel,
    pub(crate) console: Console,
    /// Closed once the console has been read to its end.
    pub(crate) console_end: watch::Receiver<()>,
}

#[async_trait]
impl Vm for QemuVm {
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
        self.channel.dial(port).await
    }

    async fn exited(&self) -> VmExit {
        let exit = self.child.exited().await;
        // Whoever hears of the end wants the last words too. With QEMU gone both sockets are at their end.
        let mut console_end = self.console_end.clone();
        while console_end.changed().await.is_ok() {}
        to_vm_exit(exit, self.qmp.closed().await)
    }

    async fn pause(&self) -> Result<(), HypervisorError> {
        self.qmp.execute(Command::Stop).await
    }

    async fn resume(&self) -> Result<(), HypervisorError> {
        self.qmp.execute(Command::Cont).await
    }

    async fn stop(&self) {
        // There is no disk to flush and no device to release: nothing is won by asking QEMU first.
        self.child.end().await;
    }
}

impl fmt::Debug for QemuVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QemuVm").field("pid", &self.pid()).finish_non_exhaustive()
    }
}
