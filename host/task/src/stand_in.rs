//! A process of the host that stands for one in the guest, and what becomes of the latter when the
//! former goes away.

use std::sync::Arc;

use kata_sandbox::ProcessKey;

use crate::owner::Owner;

/// Held while a stand-in waits for its process. Dropped before the process has ended, which happens
/// when the connection is lost, it takes the process with it, and the sandbox if that was its last
/// container.
#[derive(Debug)]
pub(crate) struct StandIn {
    owner: Arc<Owner>,
    /// `None` once the stand-in knows the end.
    key: Option<ProcessKey>,
}

impl StandIn {
    pub(crate) fn new(owner: Arc<Owner>, key: ProcessKey) -> Self {
        // Until now the first stand-in's death ended this whole process, since nobody else would
        // have noticed it.
        if let Err(error) = rustix::process::set_parent_process_death_signal(None) {
            tracing::warn!("the sandbox will end with its first stand-in: {error}");
        }
        Self { owner, key: Some(key) }
    }

    /// The process has ended, or is not known.
    pub(crate) fn done(mut self) {
        self.key = None;
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        let Some(key) = self.key.take() else { return };
        let owner = Arc::clone(&self.owner);
        tracing::warn!("what stands for {key} on the host has gone away: it is killed");
        tokio::spawn(async move {
            if let Err(failure) = owner.end(&key).await {
                tracing::debug!("{key} is gone already: {failure}");
            }
            owner.shut_down().await;
        });
    }
}
