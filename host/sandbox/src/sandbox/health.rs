//! Whether the guest is still there: a VM whose kernel hangs, or whose processors stand still, says
//! nothing of it, and its containers would count as running for ever.
//!
//! ```text
//!   answered ── pause ──▶ asked ── answer ──▶ answered
//!                           └──── patience ──▶ asked again ──▶ … MISSES times ──▶ the end
//! ```
//!
//! A host that is busy, frozen or suspended must not lose its sandboxes. So one late answer means
//! nothing; and the clock is the monotonic one, which stands still while the host is suspended
//! (clock_gettime(2)).
//!
//! A kernel that powers off a machine without a switch for that stops its processors instead, which
//! no VMM notices. It says so on its console; then it is asked at once, and waited for less long.

use std::sync::Arc;
use std::time::Duration;

use kata_agent_client::AgentError;
use kata_hypervisor::Console;
use tokio::time::Instant;

use super::Shared;
use crate::diagnosis;

/// From an answer to the next question. A guest that hangs is noticed soon enough by this, and one
/// that idles is woken rarely enough.
const PAUSE: Duration = Duration::from_secs(30);

/// Questions in a row without an answer that mean that there will be none.
const MISSES: u32 = 3;

/// How long one answer may take of a guest that has said that it has stopped: what is said on a
/// console may be forged, and a guest that lives has time enough to answer one of the questions.
const PATIENCE_WITH_STOPPED: Duration = Duration::from_secs(5);

/// How long a console is silent after a kernel's last word.
const QUIET: Duration = Duration::from_secs(1);

/// Ends the sandbox when its guest answers nothing any more. `patience` is how long one answer may
/// take.
pub(super) async fn watch(shared: Arc<Shared>, patience: Duration) {
    let mut last_word = LastWord::on(shared.vm.console());
    let mut silence = Silence::begin(Instant::now());
    let mut stopped = false;
    loop {
        let patience = if stopped { patience.min(PATIENCE_WITH_STOPPED) } else { patience };
        let pause = PAUSE.min(patience);
        let asked = async {
            if !silence.may_have_begun() && !stopped {
                tokio::time::sleep(pause).await;
            }
            let agent = shared.agent.with_deadline(patience);
            // The request's own deadline begins when it is on its way.
            tokio::time::timeout(patience, agent.check()).await
        };
        let answer = tokio::select! {
            biased;
            () = shared.until_gone() => return,
            answer = asked => answer,
            () = last_word.said(), if !stopped => {
                tracing::warn!("sandbox {}: its guest says that it has stopped", shared.id);
                stopped = true;
                continue;
            }
        };
        match answer {
            Err(_) | Ok(Err(AgentError::Deadline { .. })) => {
                let late = patience.as_secs_f64();
                tracing::warn!("sandbox {}: its guest has not answered within {late} s", shared.id);
                if let Some(silent) = silence.missed(Instant::now()) {
                    let reason = if stopped {
                        diagnosis::STOPPED.to_owned()
                    } else {
                        format!("its guest has not answered for {} s", silent.as_secs())
                    };
                    tracing::error!("sandbox {}: {reason}", shared.id);
                    return shared.take_down(&reason, false).await;
                }
            }
            // Somebody else tells why.
            Ok(Err(AgentError::Disconnected { .. })) => return,
            // Whatever it has said, it is there.
            Ok(Ok(()) | Err(_)) => {
                silence = Silence::begin(Instant::now());
                stopped = false;
            }
        }
    }
}

/// Whoever listens for the last thing that a kernel says.
#[derive(Debug)]
struct LastWord {
    console: Console,
    /// How much of the console was looked at.
    heard: u64,
}

impl LastWord {
    fn on(console: Console) -> Self {
        Self { console, heard: 0 }
    }

    /// Resolves when the kernel has said that it stopped, once for each time that it wrote since
    /// the last call. Whatever floods the console is looked at now and then only.
    async fn said(&mut self) {
        loop {
            self.console.written_beyond(self.heard).await;
            tokio::time::sleep(QUIET).await;
            (_, self.heard) = self.console.since(u64::MAX);
            if diagnosis::has_stopped(&self.console) {
                return;
            }
        }
    }
}

/// What has come since the last answer: nothing.
#[derive(Debug)]
struct Silence {
    since: Instant,
    misses: u32,
}

impl Silence {
    fn begin(now: Instant) -> Self {
        Self { since: now, misses: 0 }
    }

    /// Whether there was a question without an answer.
    fn may_have_begun(&self) -> bool {
        self.misses > 0
    }

    /// One more question was not answered. How long the silence has lasted, if it is one.
    fn missed(&mut self, now: Instant) -> Option<Duration> {
        self.misses += 1;
        (self.misses >= MISSES).then(|| now.duration_since(self.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_misses_in_a_row_are_silence_since_the_last_answer() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut silence = Silence::begin(at(0));
        assert!(!silence.may_have_begun());
        assert_eq!(silence.missed(at(120)), None);
        assert!(silence.may_have_begun());
        assert_eq!(silence.missed(at(210)), None);
        assert_eq!(silence.missed(at(300)), Some(Duration::from_secs(300)));
        silence = Silence::begin(at(301));
        assert_eq!(silence.missed(at(421)), None, "an answer makes up for misses");
    }
}
