//! The record as a picture: a row for each who works, time from left to right.

use std::time::Duration;

use kata_svg::{Anchor, Area, Colour, Drawing, Tone, tick, width_of};

use crate::table::millis;
use crate::{Lane, Moment, Span, Stage, Timeline};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 100.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 56.0;
const ROW: f64 = 34.0;
const BAR: f64 = 20.0;
/// Marks on the axis.
const TICKS: u32 = 12;

/// Draws the record. Stages that were not reached are left out.
///
/// A program may write its first byte whenever it likes. One that comes later than all of the start
/// took is named in the caption, but does not squeeze the rest.
#[must_use]
pub fn svg(timeline: &Timeline) -> String {
    let title = format!("Start of {}", timeline.sandbox);
    let height = TOP + ROW * Lane::ALL.len() as f64 + 34.0;
    let mut drawing = Drawing::new(&title, WIDTH, height);
    let Some(axis) = Axis::of(timeline) else {
        drawing.text((LEFT, TOP), Anchor::Start, Tone::Faint, "nothing was recorded");
        return drawing.finish();
    };
    drawing.text((10.0, 22.0), Anchor::Start, Tone::Strong, &title);
    drawing.text((10.0, 40.0), Anchor::Start, Tone::Faint, &caption(timeline, &axis));
    draw_axis(&mut drawing, &axis, height);
    for (row, lane) in Lane::ALL.iter().enumerate() {
        let y = TOP + ROW * row as f64;
        drawing.text((10.0, y + 14.0), Anchor::Start, Tone::Plain, lane.name());
        draw_lane(&mut drawing, timeline, &axis, (*lane, Colour(row), y));
    }
    drawing.finish()
}

/// From moments to pixels.
struct Axis {
    start: Moment,
    length: Duration,
}

impl Axis {
    fn of(timeline: &Timeline) -> Option<Self> {
        let start = timeline.start()?;
        let end = |with_output: bool| {
            let stamps = timeline.stamps.iter();
            let counted = stamps.filter(|stamp| with_output || stamp.stage != Stage::FirstOutput);
            counted.map(|stamp| stamp.at.since(start)).max().unwrap_or_default()
        };
        let (without, with) = (end(false), end(true));
        let length = if with > without * 2 { without } else { with };
        Some(Self { start, length: length.max(Duration::from_millis(1)) })
    }

    fn x(&self, at: Moment) -> f64 {
        self.x_of(at.since(self.start))
    }

    fn x_of(&self, time: Duration) -> f64 {
        let part = time.as_secs_f64() / self.length.as_secs_f64();
        LEFT + (WIDTH - LEFT - RIGHT) * part.min(1.0)
    }
}

fn caption(timeline: &Timeline, axis: &Axis) -> String {
    let mut parts = Vec::new();
    for (stage, words) in [
        (Stage::AgentReached, "agent reached after"),
        (Stage::ProcessExecuted, "process executed after"),
        (Stage::FirstOutput, "first output after"),
    ] {
        if let Some(at) = timeline.at(stage) {
            parts.push(format!("{words} {:.0} ms", millis(at.since(axis.start))));
        }
    }
    parts.join(", ")
}

fn draw_axis(drawing: &mut Drawing, axis: &Axis, height: f64) {
    let step = tick(millis(axis.length), TICKS);
    let mut number = 0_u32;
    loop {
        let at = step * f64::from(number);
        if at > millis(axis.length) {
            break;
        }
        let x = axis.x_of(Duration::from_secs_f64(at / 1000.0));
        drawing.rule((x, TOP - 6.0), (x, height - 28.0));
        let label = if number == 0 { "0 ms".to_owned() } else { format!("{at:.0}") };
        drawing.text((x, height - 12.0), Anchor::Middle, Tone::Faint, &label);
        number += 1;
    }
}

fn draw_lane(drawing: &mut Drawing, timeline: &Timeline, axis: &Axis, row: (Lane, Colour, f64)) {
    let (lane, colour, y) = row;
    let bars: Vec<(f64, f64, &Span, Duration)> = Span::ALL
        .iter()
        .filter(|span| span.lane == lane)
        .filter_map(|span| {
            let (from, to) = (timeline.at(span.from)?, timeline.at(span.to)?);
            Some((axis.x(from), axis.x(to.max(from)), span, to.since(from)))
        })
        .collect();
    for (index, &(left, right, span, length)) in bars.iter().enumerate() {
        let label = format!("{} {:.0}", span.what, millis(length));
        let hint = format!("{}: {} {:.1} ms", lane.name(), span.what, millis(length));
        let width = (right - left - 1.0).max(1.0);
        drawing.bar(Area { x: left, y, width, height: BAR }, colour, &hint);
        let end = bars.get(index + 1).map_or(WIDTH, |next| next.0);
        if width_of(&label) + 8.0 <= width {
            drawing.text((left + 4.0, y + 14.0), Anchor::Start, Tone::OnColour, &label);
        } else if right + width_of(&label) + 6.0 <= end {
            drawing.text((right + 4.0, y + 14.0), Anchor::Start, Tone::Plain, &label);
        } else if let number = format!("{:.0}", millis(length))
            && width_of(&number) + 4.0 <= width
        {
            drawing.text((left + width / 2.0, y + 14.0), Anchor::Middle, Tone::OnColour, &number);
        }
    }
}
