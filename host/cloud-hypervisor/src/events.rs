//! What the VMM tells by itself, on the descriptor of its event monitor: JSON objects, one after
//! the other.
//!
//! A guest that resets itself would be booted again by this VMM; here it is over. So that event
//! ends the VMM. That a device has gone wakes whoever waits for one to go.

use std::sync::Arc;
use std::time::Duration;

use kata_linux::process::Child;
use rustix::process::Signal;
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// The longest event that is accepted. The VMM is as little trusted as the guest that may have
/// taken it over.
const MAX_EVENT: usize = 64 * 1024;

/// Why the guest is at its end. Clones wait for the same.
#[derive(Debug, Clone)]
pub(crate) struct Reason(watch::Receiver<Option<&'static str>>);

impl Reason {
    /// Resolves when nothing more can come, that is with the VMM's end; `None` if it did not tell.
    pub(crate) async fn told(mut self) -> Option<&'static str> {
        while self.0.changed().await.is_ok() {}
        *self.0.borrow()
    }
}

/// Tells of each device that goes.
#[derive(Debug, Clone)]
pub(crate) struct Removals(watch::Receiver<()>);

impl Removals {
    /// Those from now on.
    pub(crate) fn later(&self) -> Self {
        let mut removals = self.0.clone();
        removals.mark_unchanged();
        Self(removals)
    }

    /// Resolves with the next one, at once when there was one since the last call, and after `most`
    /// in any case: the VMM tells of none that it has no room for in its pipe.
    pub(crate) async fn within(&mut self, most: Duration) {
        let waited = timeout(most, self.0.changed()).await;
        // Nothing more is to be heard.
        if let Ok(Err(_)) = waited {
            sleep(most).await;
        }
    }
}

/// One event; the rest of it tells when, and more.
#[derive(Debug, Deserialize)]
struct Event {
    source: String,
    event: String,
}

impl Event {
    /// Why the guest is at its end, if this is what the event says.
    fn end(&self) -> Option<&'static str> {
        match (self.source.as_str(), self.event.as_str()) {
            ("guest", "panic") => Some("guest-panic"),
            ("vm", "rebooting") => Some("guest-reset"),
            ("vmm", "shutdown") => Some("guest-shutdown"),
            _ => None,
        }
    }

    /// Whether a device has gone, whose files the VMM is then about to close.
    fn is_removal(&self) -> bool {
        (self.source.as_str(), self.event.as_str()) == ("vm", "device-removed")
    }
}

/// Spawns the task that listens until the VMM ends, and ends it when its guest resets.
pub(crate) fn listen(mut events: pipe::Receiver, vmm: Arc<Child>) -> (Reason, Removals) {
    let (report, reason) = watch::channel(None);
    let (removed, removals) = watch::channel(());
    tokio::spawn(async move {
        let mut text = Vec::new();
        loop {
            match events.read_buf(&mut text).await {
                Ok(1..) if text.len() <= MAX_EVENT => {}
                // Nothing that could still be understood is to come.
                _ => return,
            }
            for event in take_events(&mut text) {
                if let Some(end) = event.end() {
                    // The first reason counts: a panic is followed by the reset that it causes.
                    report.send_modify(|known| {
                        known.get_or_insert(end);
                    });
                }
                if event.is_removal() {
                    removed.send_replace(());
                }
                if event.end() == Some("guest-reset") {
                    // Its end is seen by whoever waits for that.
                    let _ = vmm.kill(Signal::KILL);
                }
            }
        }
    });
    (Reason(reason), Removals(removals))
}

/// Takes the whole events off the beginning of `text` and leaves the rest. Text that is no event is
/// thrown away up to the next blank line, which the VMM ends each with.
fn take_events(text: &mut Vec<u8>) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(end) = text.windows(2).position(|window| window == b"\n\n") {
        events.extend(serde_json::from_slice::<Event>(&text[..end]));
        text.drain(..end + 2);
    }
    events
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::time::Instant;

    use super::*;

    const PANIC: &str = "{\n  \"timestamp\": {\n    \"secs\": 1,\n    \"nanos\": 2\n  },\n  \"source\": \"guest\",\n  \
        \"event\": \"panic\",\n  \"properties\": {\n    \"event\": \"1\"\n  }\n}\n\n";
    const REBOOT: &str = "{\"timestamp\": {}, \"source\": \"vm\", \"event\": \"rebooting\", \"properties\": null}\n\n";

    fn ends(text: &mut Vec<u8>) -> Vec<Option<&'static str>> {
        take_events(text).iter().map(Event::end).collect()
    }

    #[test]
    fn events_are_taken_as_they_become_whole() {
        let mut text = format!("{PANIC}{{\"source\"").into_bytes();
        assert_eq!(ends(&mut text), [Some("guest-panic")]);
        assert_eq!(text, b"{\"source\"");
        text.extend_from_slice(b": \"vm\", \"event\": \"booted\"}\n\n");
        text.extend_from_slice(REBOOT.as_bytes());
        assert_eq!(ends(&mut text), [None, Some("guest-reset")]);
        assert!(text.is_empty());
    }

    #[test]
    fn a_device_that_has_gone_is_no_end() {
        const REMOVED: &[u8] =
            b"{\"source\": \"vm\", \"event\": \"device-removed\", \"properties\": {\"id\": \"disk-x\"}}\n\n";
        let event = take_events(&mut REMOVED.to_vec()).remove(0);
        assert!(event.is_removal() && event.end().is_none());
        assert!(!take_events(&mut REBOOT.as_bytes().to_vec()).remove(0).is_removal());
    }

    #[tokio::test(start_paused = true)]
    async fn a_removal_ends_a_wait_and_so_does_the_time() {
        const MOST: Duration = Duration::from_secs(1);
        let (sender, receiver) = watch::channel(());
        let removals = Removals(receiver);
        sender.send_replace(());
        let mut later = removals.later();
        let began = Instant::now();
        // What went before does not count.
        later.within(MOST).await;
        assert_eq!(began.elapsed(), MOST);
        sender.send_replace(());
        later.within(MOST).await;
        assert_eq!(began.elapsed(), MOST);
        drop(sender);
        later.within(MOST).await;
        assert_eq!(began.elapsed(), 2 * MOST);
    }

    #[test]
    fn what_is_no_event_is_skipped() {
        let mut text = format!("noise\n\n{REBOOT}").into_bytes();
        assert_eq!(ends(&mut text), [Some("guest-reset")]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_and_used_up(bytes: Vec<u8>) {
            let mut text = bytes;
            take_events(&mut text);
            prop_assert!(!text.windows(2).any(|window| window == b"\n\n"));
        }
    }
}
