//! The end of a sandbox: in which order its parts go, and who is told.

use std::sync::PoisonError;

use kata_agent_client::AgentError;
use kata_storage::Share;
use tokio::task::JoinSet;

use super::Shared;
use crate::boot;
use crate::{Exit, ProcessKey};

/// Why a sandbox is ended whose guest does not answer.
const SILENT: &str = "its guest's agent answers nothing any more";

impl Shared {
    /// Ends everything, once; whoever comes later waits for it. `guest_lives` says whether the
    /// guest can still be asked.
    pub(super) async fn take_down(&self, reason: &str, guest_lives: bool) {
        let end = async {
            self.gone.send_if_modified(|gone| {
                gone.is_none().then(|| *gone = Some(reason.to_owned())).is_some()
            });
            if guest_lives {
                self.say_farewell().await;
            }
            self.vm.stop().await;
            boot::stop(self.file_server.as_ref()).await;
            if let Some(network) = self.network.lock().await.take() {
                network.leave().await;
            }
            self.tell_all_killed().await;
            let share = self.share.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(Err(error)) = share.map(Share::remove) {
                tracing::warn!("sandbox {}: {error}", self.id);
            }
            // Nobody puts the VM elsewhere meanwhile, and from now on nobody would.
            let _place = self.place.lock().await;
            if let Err(error) = self.footprint.remove() {
                tracing::warn!("sandbox {}: {error}", self.id);
            }
        };
        self.taken_down.get_or_init(|| end).await;
    }

    /// Has the guest write out what it still holds in its page cache.
    async fn say_farewell(&self) {
        match tokio::time::timeout(self.farewell, self.agent.destroy_sandbox()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!("sandbox {}: the agent's farewell: {error}", self.id),
            Err(_) => tracing::warn!(
                "sandbox {}: its guest has not ended by itself within {:?}; what it had not written to its disks is lost",
                self.id,
                self.farewell
            ),
        }
    }

    /// Ends the sandbox if its guest does not even answer that it is there. Whether it did.
    pub(super) async fn end_if_silent(&self) -> bool {
        let answer = tokio::time::timeout(boot::FAREWELL, self.agent.check()).await;
        let silent = matches!(answer, Err(_) | Ok(Err(AgentError::Deadline { .. })));
        if silent {
            tracing::error!("sandbox {}: {SILENT}", self.id);
            self.take_down(SILENT, false).await;
        }
        silent
    }

    /// Gives a reader who takes nothing a last moment.
    pub(super) async fn last_output_of(&self, key: &ProcessKey) {
        let attached = self.processes().attached(key);
        if let Some(stdio) = attached {
            let _ = tokio::time::timeout(boot::GRACE, stdio.delivered()).await;
        }
    }

    /// Tells the end of every process that has not ended by itself, after the last of its output.
    async fn tell_all_killed(&self) {
        let attached = self.processes().all_attached();
        let all: JoinSet<()> =
            attached.into_iter().map(|stdio| async move { stdio.delivered().await }).collect();
        // Dropped, those that are left are aborted: the copying goes on without them.
        let _ = tokio::time::timeout(boot::GRACE, all.join_all()).await;
        let mut processes = self.processes();
        let released = processes.ledger.kill_all(Exit::killed());
        self.publish(&mut processes, released);
    }
}
