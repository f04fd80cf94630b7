//! The values as a picture: for each thing a panel, in it a bar for each who.

use std::collections::BTreeMap;

use kata_e2e::Summary;
use kata_svg::{Anchor, Area, Colour, Drawing, Tone};

use crate::metric::{Metric, Subject, Values};

const WIDTH: f64 = 900.0;
const LEFT: f64 = 290.0;
/// The longest bar; what is right of it is for numbers.
const LONGEST: f64 = 440.0;
const BAR: f64 = 14.0;
const GAP: f64 = 10.0;
const TOP: f64 = 44.0;
/// What of a note fits into a line, in characters.
const NOTE: usize = 130;

/// Draws all medians; a thin line leads from each to its 90th percentile. Each panel has a scale of
/// its own.
pub(crate) fn svg(values: &Values) -> String {
    let mut panels: BTreeMap<Metric, Vec<(Subject, Summary)>> = BTreeMap::new();
    for (metric, subject, summary) in values.rows() {
        panels.entry(metric).or_default().push((subject, summary));
    }
    let heights = panels.values().map(|rows| rows.len() as f64 * (BAR + 2.0) + GAP);
    let notes = values.left_out().len() as f64 * (BAR + 2.0);
    let height = TOP + heights.sum::<f64>() + notes + GAP;
    let mut drawing = Drawing::new("Bench", WIDTH, height);
    drawing.text((10.0, 24.0), Anchor::Start, Tone::Strong, "Medians, and 90th percentiles");
    let mut y = TOP;
    for (metric, rows) in &panels {
        let label = format!("{}, {}", metric.name.trim(), metric.unit);
        drawing.text((10.0, y + 11.0), Anchor::Start, Tone::Plain, &label);
        let most = rows.iter().map(|(_, summary)| summary.p90).fold(f64::MIN_POSITIVE, f64::max);
        for (subject, summary) in rows {
            draw_row(&mut drawing, y, (*subject, *summary), LONGEST / most);
            y += BAR + 2.0;
        }
        y += GAP;
    }
    for left_out in values.left_out() {
        let mut note = left_out.to_string();
        if note.chars().count() > NOTE {
            note = note.chars().take(NOTE - 1).chain(['…']).collect();
        }
        drawing.text((10.0, y + 11.0), Anchor::Start, Tone::Faint, &note);
        y += BAR + 2.0;
    }
    drawing.finish()
}

fn draw_row(drawing: &mut Drawing, y: f64, (subject, summary): (Subject, Summary), scale: f64) {
    let (median, p90) = (LEFT + summary.median * scale, LEFT + summary.p90 * scale);
    drawing.text((LEFT - 6.0, y + 11.0), Anchor::End, Tone::Faint, subject.name());
    let colour = Subject::ALL.iter().position(|one| *one == subject).unwrap_or(0);
    let hint = format!("{} runs, p90 {:.3}", summary.runs, summary.p90);
    let area = Area { x: LEFT, y, width: median - LEFT, height: BAR };
    drawing.bar(area, Colour(colour), &hint);
    drawing.rule((median, y + BAR / 2.0), (p90, y + BAR / 2.0));
    let number = format!("{:.3}", summary.median);
    drawing.text((p90.max(median) + 6.0, y + 11.0), Anchor::Start, Tone::Plain, &number);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric;

    #[test]
    fn every_row_has_its_bar() {
        let mut values = Values::default();
        values.add(metric::RUN, Subject::Kata, 3.0);
        values.add(metric::RUN, Subject::Floor, 1.0);
        values.add(metric::STOP, Subject::Kata, 0.0);
        values.leave_out(Subject::Runsc, &"it does\nnot work ".repeat(20));
        let picture = svg(&values);
        // One for the ground, three bars.
        assert_eq!(picture.matches("<rect").count(), 4);
        assert!(picture.contains("width=\"440.0\"") && picture.contains("3.000"), "{picture}");
        assert!(picture.contains("runsc: left out: it does not work it"), "{picture}");
        assert!(picture.contains('…'), "{picture}");
    }
}
