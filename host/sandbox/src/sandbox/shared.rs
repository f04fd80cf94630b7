//! What every task of a sandbox asks of it.

use std::collections::HashSet;
use std::sync::{MutexGuard, PoisonError};

use kata_agent_client::AgentError;
use kata_storage::Share;

use super::{Processes, Shared};
use crate::{Exit, ProcessKey, SandboxError, SandboxEvent, boot};

impl Shared {
    pub(super) fn processes(&self) -> MutexGuard<'_, Processes> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn undying(&self) -> MutexGuard<'_, HashSet<String>> {
        self.undying.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn with_share<T>(
        &self,
        use_it: impl FnOnce(&mut Share) -> Result<T, SandboxError>,
    ) -> Result<T, SandboxError> {
        let mut share = self.share.lock().unwrap_or_else(PoisonError::into_inner);
        match share.as_mut() {
            Some(share) => use_it(share),
            None => Err(self.gone_error()),
        }
    }

    pub(super) async fn forget_storage(&self, container: &str) {
        self.carrier.forget(self.vm.as_ref(), container).await;
        if self.carrier.images().is_some() {
            return;
        }
        let removed = self.with_share(|share| Ok(share.remove_container(container)?));
        if let Err(error) = removed {
            tracing::debug!("while container {container} went: {error}");
        }
    }

    pub(super) fn gone_error(&self) -> SandboxError {
        let reason = self.gone.borrow().clone().unwrap_or_else(|| "it is being taken down".into());
        SandboxError::Gone { id: self.id.clone(), reason }
    }

    /// The agent's answer, unless the sandbox goes first.
    pub(super) async fn unless_gone<T>(
        &self,
        request: impl Future<Output = Result<T, AgentError>>,
    ) -> Result<T, SandboxError> {
        let answer = tokio::select! {
            biased;
            answer = request => answer,
            () = self.until_gone() => return Err(self.gone_error()),
        };
        if matches!(answer, Err(AgentError::Disconnected { .. })) {
            // A broken channel is the sandbox's end, and whoever notices that first knows the
            // reason.
            let _ = tokio::time::timeout(boot::GRACE, self.until_gone()).await;
            return Err(self.gone_error());
        }
        Ok(answer?)
    }

    pub(super) async fn until_gone(&self) {
        // The sender lives as long as `self`, so the wait cannot end in an error.
        let _ = self.gone.subscribe().wait_for(Option::is_some).await;
    }

    /// Enters a process's end and tells what may be told now.
    pub(super) fn exited(&self, key: &ProcessKey, exit: Exit) {
        let mut processes = self.processes();
        let released = processes.ledger.exited(key, exit);
        self.publish(&mut processes, released);
    }

    pub(super) fn publish(&self, processes: &mut Processes, released: Vec<(ProcessKey, Exit)>) {
        for (process, exit) in released {
            self.events.emit(SandboxEvent::Exited { process: process.clone(), exit });
            processes.tell_exit(&process, exit);
        }
    }
}
