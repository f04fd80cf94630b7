//! The record of one start, in memory and on disk.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{Moment, Stage};

/// The record's name in the sandbox's directory.
pub const FILE: &str = "timeline.json";

/// A stage's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Which one.
    pub stage: Stage,
    /// When, on the host's clock.
    pub at: Moment,
}

/// What is known of a start: its stamps in the order of time, at most one for each stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// The sandbox's id.
    pub sandbox: String,
    /// Sorted by moment, then by stage.
    pub stamps: Vec<Stamp>,
    /// How far a moment in the guest may be off, in nanoseconds; `None` while the two clocks have
    /// not been compared.
    #[serde(default)]
    pub guest_uncertainty_ns: Option<u64>,
}

/// Why a record cannot be had.
#[derive(Debug, Error)]
pub enum TimelineError {
    /// There is no such sandbox, or it has not started anything yet.
    #[error(
        "there is no timeline {path}: the sandbox does not run, or none of its containers was started yet"
    )]
    None {
        /// Where it would be.
        path: PathBuf,
    },
    /// The file is there and cannot be read.
    #[error("cannot read the timeline {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is not a timeline, or one of another version of this program.
    #[error("{path} is no timeline that this version understands")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

impl Timeline {
    /// Reads the record of the sandbox whose directory is `dir`.
    pub fn load(dir: &Path) -> Result<Self, TimelineError> {
        let path = dir.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(TimelineError::None { path });
            }
            Err(source) => return Err(TimelineError::Read { path, source }),
        };
        serde_json::from_slice(&text).map_err(|source| TimelineError::Parse { path, source })
    }

    /// Writes the record into the sandbox's directory, in one step: a reader sees the old one or
    /// the new one.
    pub fn save(&self, dir: &Path) -> io::Result<()> {
        let fresh = dir.join("timeline.new");
        fs::write(&fresh, self.to_json())?;
        fs::rename(&fresh, dir.join(FILE))
    }

    /// The record as it is on disk: JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("names and numbers are always JSON")
    }

    /// When this stage ended; `None` if it has not, or nobody could tell.
    #[must_use]
    pub fn at(&self, stage: Stage) -> Option<Moment> {
        self.stamps.iter().find(|stamp| stamp.stage == stage).map(|stamp| stamp.at)
    }

    /// The time from one stage's end to another's; `None` if one of them is missing, zero if they
    /// are the other way round.
    #[must_use]
    pub fn between(&self, from: Stage, to: Stage) -> Option<Duration> {
        Some(self.at(to)?.since(self.at(from)?))
    }

    /// The earliest moment; `None` of an empty record.
    #[must_use]
    pub fn start(&self) -> Option<Moment> {
        self.stamps.iter().map(|stamp| stamp.at).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let stamp = |stage, at| Stamp { stage, at: Moment::from_nanos(at) };
        let timeline = Timeline {
            sandbox: "s".into(),
            stamps: vec![stamp(Stage::ShimAsked, 5), stamp(Stage::KernelDone, 9)],
            guest_uncertainty_ns: Some(2),
        };
        timeline.save(dir.path()).unwrap();
        assert_eq!(Timeline::load(dir.path()).unwrap(), timeline);
        let between = timeline.between(Stage::ShimAsked, Stage::KernelDone);
        assert_eq!(between, Some(Duration::from_nanos(4)));
        assert_eq!(timeline.between(Stage::ShimAsked, Stage::FirstOutput), None);
    }

    #[test]
    fn missing_and_broken_records_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let error = Timeline::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("does not run"), "{error}");
        fs::write(dir.path().join(FILE), "{}").unwrap();
        let error = Timeline::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("no timeline that"), "{error}");
    }
}
