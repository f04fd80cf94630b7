//! The ledger with what belongs to each process on the host: its streams, who waits for its end,
//! and what an exec needs until it is started.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use oci_spec::runtime::{BoxBuilder, Process};
use tokio::sync::watch;

use crate::{AttachedStdio, Exit, Ledger, ProcessKey, Refusal, Stdio};

/// An exec that was asked for and not started.
pub(crate) struct PendingExec {
    pub(crate) process: Process,
    pub(crate) stdio: Box<dyn Stdio>,
}

/// What becomes of a terminal's new size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resizing {
    /// The process will be started with it.
    Done,
    /// The guest is to be told.
    Now,
    /// The guest is to be told when it has made the process, of which it may not know yet.
    Later,
}

/// All processes of a sandbox, on the host's side.
#[derive(Default)]
pub(crate) struct Processes {
    pub(crate) ledger: Ledger,
    exits: HashMap<ProcessKey, watch::Sender<Option<Exit>>>,
    attached: HashMap<ProcessKey, Arc<dyn AttachedStdio>>,
    pending: HashMap<ProcessKey, PendingExec>,
    /// Those whose stdin was closed before there were streams to close.
    close_early: Vec<ProcessKey>,
    /// Those whose end the guest has told. Their exits may wait for a reader of their output.
    told: HashSet<ProcessKey>,
}

impl Processes {
    /// Enters a process.
    pub(crate) fn add(&mut self, key: &ProcessKey) -> Result<(), Refusal> {
        self.ledger.add(key)?;
        self.exits.insert(key.clone(), watch::Sender::new(None));
        Ok(())
    }

    /// Drops everything that is known of a process; with an init also of its container's execs.
    pub(crate) fn forget(&mut self, key: &ProcessKey) {
        self.ledger.remove(key);
        let stays = |one: &ProcessKey| match &key.exec {
            None => one.container != key.container,
            Some(_) => one != key,
        };
        self.exits.retain(|one, _| stays(one));
        self.attached.retain(|one, _| stays(one));
        self.pending.retain(|one, _| stays(one));
        self.close_early.retain(stays);
        self.told.retain(stays);
    }

    /// Notes that the guest has told a process's end.
    pub(crate) fn note_end(&mut self, key: &ProcessKey) {
        self.told.insert(key.clone());
    }

    /// Whether the guest has told a process's end.
    pub(crate) fn is_end_told(&self, key: &ProcessKey) -> bool {
        self.told.contains(key)
    }

    /// Keeps an exec until it is started.
    pub(crate) fn hold_exec(&mut self, key: &ProcessKey, process: Process, stdio: Box<dyn Stdio>) {
        self.pending.insert(key.clone(), PendingExec { process, stdio });
    }

    /// Hands out what an exec needs for its start; `None` for an init.
    pub(crate) fn take_exec(&mut self, key: &ProcessKey) -> Option<PendingExec> {
        self.pending.remove(key)
    }

    /// The process has streams now.
    pub(crate) fn attach(&mut self, key: &ProcessKey, stdio: Arc<dyn AttachedStdio>) {
        if self.close_early.contains(key) {
            let stdio = Arc::clone(&stdio);
            tokio::spawn(async move { stdio.close_stdin().await });
        }
        self.attached.insert(key.clone(), stdio);
    }

    /// A process's streams, once it has some.
    pub(crate) fn attached(&self, key: &ProcessKey) -> Option<Arc<dyn AttachedStdio>> {
        self.attached.get(key).cloned()
    }

    /// Everybody's streams.
    pub(crate) fn all_attached(&self) -> Vec<Arc<dyn AttachedStdio>> {
        self.attached.values().cloned().collect()
    }

    /// The streams whose stdin is to be closed; `None` when there are none yet, and the close is
    /// remembered.
    pub(crate) fn close_stdin(
        &mut self,
        key: &ProcessKey,
    ) -> Result<Option<Arc<dyn AttachedStdio>>, Refusal> {
        self.ledger.status(key)?;
        let attached = self.attached(key);
        if attached.is_none() {
            self.close_early.push(key.clone());
        }
        Ok(attached)
    }

    /// What is to be done about a terminal's new size. A pending exec takes it down here.
    pub(crate) fn resize(
        &mut self,
        key: &ProcessKey,
        rows: u32,
        columns: u32,
    ) -> Result<Resizing, Refusal> {
        self.ledger.status(key)?;
        let Some(exec) = self.pending.get_mut(key) else {
            let is_unknown = self.ledger.is_on_its_way(key) && !self.attached.contains_key(key);
            return Ok(if is_unknown { Resizing::Later } else { Resizing::Now });
        };
        let size = BoxBuilder::default().height(u64::from(rows)).width(u64::from(columns)).build();
        exec.process.set_console_size(size.ok());
        Ok(Resizing::Done)
    }

    /// Someone who wants to know when the process ends.
    pub(crate) fn subscribe(
        &self,
        key: &ProcessKey,
    ) -> Result<watch::Receiver<Option<Exit>>, Refusal> {
        let exit = self.exits.get(key).ok_or_else(|| Refusal::NotFound(key.clone()))?;
        Ok(exit.subscribe())
    }

    /// Tells everybody who waits, now and later.
    pub(crate) fn tell_exit(&mut self, key: &ProcessKey, exit: Exit) {
        if let Some(told) = self.exits.get(key) {
            told.send_replace(Some(exit));
        }
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::{Delivery, GuestProcess, StdioError};

    /// Of a process that nobody listens to.
    struct NoStreams;

    #[async_trait]
    impl Stdio for NoStreams {
        async fn open(&mut self) -> Result<(), StdioError> {
            Ok(())
        }

        fn attach(self: Box<Self>, _: GuestProcess) -> Arc<dyn AttachedStdio> {
            Arc::new(Self)
        }
    }

    #[async_trait]
    impl AttachedStdio for NoStreams {
        async fn drained(&self) -> Delivery {
            Delivery::Whole
        }

        async fn delivered(&self) {}

        async fn close_stdin(&self) {}
    }

    #[test]
    fn size_of_a_terminal_waits_until_the_guest_has_the_process() {
        let mut processes = Processes::default();
        let init = ProcessKey::init("c");
        assert!(processes.resize(&init, 1, 2).is_err());
        processes.add(&init).unwrap();
        assert_eq!(processes.resize(&init, 1, 2).unwrap(), Resizing::Later);
        processes.ledger.created(&init);
        processes.attach(&init, Arc::new(NoStreams));
        assert_eq!(processes.resize(&init, 1, 2).unwrap(), Resizing::Now);
        processes.ledger.begin_start(&init).unwrap();
        assert_eq!(processes.resize(&init, 1, 2).unwrap(), Resizing::Now);
        assert!(processes.ledger.started(&init));

        let exec = ProcessKey::exec("c", "x");
        processes.add(&exec).unwrap();
        processes.hold_exec(&exec, Process::default(), Box::new(NoStreams));
        assert_eq!(processes.resize(&exec, 30, 100).unwrap(), Resizing::Done);
        processes.ledger.begin_start(&exec).unwrap();
        let pending = processes.take_exec(&exec).unwrap();
        let size = pending.process.console_size().map(|size| (size.height(), size.width()));
        assert_eq!(size, Some((30, 100)));
        assert_eq!(processes.resize(&exec, 1, 2).unwrap(), Resizing::Later);
        assert!(processes.ledger.started(&exec));
        processes.attach(&exec, Arc::new(NoStreams));
        assert_eq!(processes.resize(&exec, 1, 2).unwrap(), Resizing::Now);
    }
}
