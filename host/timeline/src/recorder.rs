//! Where stamps are left.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{GuestClock, Moment, Stage, Stamp, Timeline};

/// A start that is being recorded. Clones are handles on the same one. Each stage is recorded once:
/// of two stamps the first counts, for later containers pass the same places.
#[derive(Debug, Clone, Default)]
pub struct Recorder {
    // A mutex and not a channel: held for a push, and read once or twice.
    record: Arc<Mutex<Record>>,
}

#[derive(Debug, Default)]
struct Record {
    stamps: Vec<Stamp>,
    guest_clock: Option<GuestClock>,
}

impl Recorder {
    /// Nothing has been recorded yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The stage ends now. Returns whether it is the first time that it does.
    pub fn stamp(&self, stage: Stage) -> bool {
        self.stamp_at(stage, Moment::now())
    }

    /// The stage ended at this moment. Returns whether it is the first time that it did.
    pub fn stamp_at(&self, stage: Stage, at: impl Into<Moment>) -> bool {
        let at = at.into();
        let mut record = self.lock();
        let is_first = record.stamps.iter().all(|stamp| stamp.stage != stage);
        if is_first {
            record.stamps.push(Stamp { stage, at });
        }
        is_first
    }

    /// How the guest's clock is to be read, for the record's reader.
    pub fn set_guest_clock(&self, clock: GuestClock) {
        self.lock().guest_clock = Some(clock);
    }

    /// The record so far.
    #[must_use]
    pub fn timeline(&self, sandbox: &str) -> Timeline {
        let record = self.lock();
        let mut stamps = record.stamps.clone();
        let guest_uncertainty_ns = record.guest_clock.map(GuestClock::uncertainty_ns);
        drop(record);
        stamps.sort_by_key(|stamp| (stamp.at, stamp.stage));
        Timeline { sandbox: sandbox.to_owned(), stamps, guest_uncertainty_ns }
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_stamp_of_a_stage_counts_and_time_orders() {
        let recorder = Recorder::new();
        let clone = recorder.clone();
        assert!(recorder.stamp_at(Stage::AgentReached, Moment::from_nanos(30)));
        assert!(clone.stamp_at(Stage::KernelEntered, Moment::from_nanos(20)));
        assert!(!recorder.stamp_at(Stage::AgentReached, Moment::from_nanos(10)));
        let timeline = recorder.timeline("s");
        let stages: Vec<_> = timeline.stamps.iter().map(|stamp| stamp.stage).collect();
        assert_eq!(stages, [Stage::KernelEntered, Stage::AgentReached]);
        assert_eq!(timeline.at(Stage::AgentReached), Some(Moment::from_nanos(30)));
    }
}
