//! The record as a table.

use std::fmt::Write;
use std::time::Duration;

use crate::{Span, Timeline};

/// The stages in the order of time: when each ended, counted from the first, and how long after the
/// one before it. Below, who was busy with what for how long, the longest first.
#[must_use]
pub fn table(timeline: &Timeline) -> String {
    let mut text = format!("{:>10} {:>10}  stage\n", "at, ms", "after, ms");
    let Some(start) = timeline.start() else { return text };
    let mut before = start;
    for stamp in &timeline.stamps {
        let (at, after) = (millis(stamp.at.since(start)), millis(stamp.at.since(before)));
        // Writing to a string does not fail.
        let _ = writeln!(text, "{at:>10.1} {after:>10.1}  {}", stamp.stage.name());
        before = stamp.at;
    }
    let mut spans: Vec<(Duration, &Span)> = Span::ALL
        .iter()
        .filter_map(|span| Some((timeline.between(span.from, span.to)?, span)))
        .collect();
    spans.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    let _ = writeln!(text, "\n{:>10}  who", "ms");
    for (length, span) in spans {
        let _ = writeln!(text, "{:>10.1}  {}: {}", millis(length), span.lane.name(), span.what);
    }
    if let Some(uncertainty) = timeline.guest_uncertainty_ns {
        let uncertainty = millis(Duration::from_nanos(uncertainty));
        let _ = writeln!(text, "\nmoments in the guest: ±{uncertainty:.1} ms");
    }
    text
}

pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
