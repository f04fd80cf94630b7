//! How long the tests wait for what must happen.

use std::time::{Duration, Instant};

use rustix::time::Timespec;

/// How long one command of the engine may take before the test fails: a boot under emulation on a
/// busy machine, and some.
const COMMAND: Duration = Duration::from_secs(90);

/// A point in time until which something must have happened.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    start: Instant,
    patience: Duration,
}

impl Deadline {
    /// In `patience` from now, multiplied by `KATA_E2E_PATIENCE`.
    #[must_use]
    pub fn after(patience: Duration) -> Self {
        let factor = u32::try_from(number_from("KATA_E2E_PATIENCE", 1)).unwrap_or(u32::MAX);
        Self { start: Instant::now(), patience: patience.saturating_mul(factor) }
    }

    /// For one command of the engine.
    #[must_use]
    pub fn for_command() -> Self {
        Self::after(COMMAND)
    }

    /// What is left; zero when it has passed.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.patience.saturating_sub(self.start.elapsed())
    }

    /// What is left, as poll(2) takes it.
    pub(crate) fn timespec(&self) -> Timespec {
        Timespec::try_from(self.remaining()).expect("deadlines are hours at most")
    }

    /// The time since it was set.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

/// A number from an environment variable; `default` when the variable is not set.
///
/// # Panics
/// When it is set to something else than a number.
#[must_use]
pub fn number_from(variable: &str, default: usize) -> usize {
    match std::env::var(variable) {
        Err(_) => default,
        Ok(text) => match text.parse() {
            Ok(number) => number,
            Err(_) => panic!("{variable}={text}: must be a number"),
        },
    }
}
