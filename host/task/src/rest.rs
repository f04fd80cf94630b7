//! What a sandbox's owner does without while nobody asks for anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long no process must have been started or deleted until an owner is at rest: an engine has
/// had its answers, and asked what it asks then.
const QUIET: Duration = Duration::from_secs(1);

/// Waits for the owner to be at rest.
#[derive(Debug, Default, Clone)]
pub(crate) struct Rest {
    /// How often a process was started or deleted.
    turns: Arc<AtomicU64>,
}

impl Rest {
    /// A process was started or deleted. If that was the last one for [`QUIET`], memory that the
    /// program can do without is handed back. Whatever is being done then costs it some page
    /// faults.
    pub(crate) fn come_soon(&self) {
        let rest = self.clone();
        let turn = rest.next_turn();
        tokio::spawn(async move {
            if rest.follows(turn).await
                && let Err(error) = kata_linux::memory::hand_back()
            {
                // It costs memory, and nothing else.
                tracing::debug!(%error, "what is not needed stays in memory");
            }
        });
    }

    fn next_turn(&self) -> u64 {
        self.turns.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Waits. Whether no other turn has come meanwhile.
    async fn follows(&self, turn: u64) -> bool {
        tokio::time::sleep(QUIET).await;
        self.turns.load(Ordering::Relaxed) == turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn rest_comes_once_after_the_last_of_several_turns() {
        let rest = Rest::default();
        let first = rest.next_turn();
        let second = rest.next_turn();
        let both = tokio::join!(rest.follows(first), rest.follows(second));
        assert_eq!(both, (false, true));
        let third = rest.next_turn();
        assert!(rest.follows(third).await);
    }
}
