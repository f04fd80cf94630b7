//! What a sandbox's owner does without while nobody asks for anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long nothing must have begun or ended until an owner is at rest: an engine has had its
/// answers, and asked what it asks then.
const QUIET: Duration = Duration::from_secs(1);

/// Waits for the owner to be at rest.
#[derive(Debug, Default)]
pub(crate) struct Rest {
    /// How often something has begun or ended.
    turns: Arc<AtomicU64>,
}

impl Rest {
    /// Something has begun or ended. If that was the last of it for [`QUIET`], memory that the
    /// program can do without is handed back.
    pub(crate) fn come_soon(&self) {
        let turns = Arc::clone(&self.turns);
        let turn = turns.fetch_add(1, Ordering::Relaxed) + 1;
        tokio::spawn(async move {
            tokio::time::sleep(QUIET).await;
            if turns.load(Ordering::Relaxed) != turn {
                return;
            }
            if let Err(error) = kata_linux::memory::hand_back() {
                // It costs memory, and nothing else.
                tracing::debug!(%error, "what is not needed stays in memory");
            }
        });
    }
}
