//! The ledger with what belongs to each process on the host: its streams, who waits for its end,
//! and what an exec needs until it is started.

use std::collections::HashMap;
use std::sync::Arc;

use oci_spec::runtime::{BoxBuilder, Process};
use tokio::sync::watch;

use crate::{AttachedStdio, Exit, Ledger, ProcessKey, Refusal, Stdio};

/// An exec that was asked for and not started.
pub(crate) struct PendingExec {
    pub(crate) process: Process,
    pub(crate) stdio: Box<dyn Stdio>,
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

    /// Whether the guest has to be told of a terminal's new size; a pending exec only takes it
    /// down.
    pub(crate) fn resize(
        &mut self,
        key: &ProcessKey,
        rows: u32,
        columns: u32,
    ) -> Result<bool, Refusal> {
        self.ledger.status(key)?;
        let Some(exec) = self.pending.get_mut(key) else { return Ok(true) };
        let size = BoxBuilder::default().height(u64::from(rows)).width(u64::from(columns)).build();
        exec.process.set_console_size(size.ok());
        Ok(false)
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
