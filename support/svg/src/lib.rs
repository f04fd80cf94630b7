//! Small drawings: shapes and texts in, one SVG file out (SVG 1.1, CSS for the colours), which
//! needs nothing else to be shown and is readable on light and dark ground.
//!
//! A drawing never fails. Whatever text is given is escaped, and coordinates are in pixels from the
//! upper left corner, written with one decimal, so that the same input gives the same bytes on
//! every machine.

use std::fmt::Write;

/// How many colours there are for things that are to be told apart; a [`Colour`]'s number counts
/// modulo this.
pub const COLOURS: usize = 8;

/// Light ground first, dark ground after it. Chosen to be told apart by brightness too.
const STYLE: &str = "\
text{font:12px system-ui,sans-serif;fill:#1f2328}\
.faint{fill:#656d76}.strong{font-weight:600}.on{fill:#fff}\
.ground{fill:#fff}.grid{stroke:#d0d7de}\
.c0{fill:#57606a}.c1{fill:#0969da}.c2{fill:#8250df}.c3{fill:#bc4c00}\
.c4{fill:#1a7f37}.c5{fill:#bf3989}.c6{fill:#9a6700}.c7{fill:#0f766e}\
@media(prefers-color-scheme:dark){\
text{fill:#e6edf3}.faint{fill:#8d96a0}.on{fill:#0d1117}\
.ground{fill:#0d1117}.grid{stroke:#30363d}\
.c0{fill:#9198a1}.c1{fill:#4493f8}.c2{fill:#ab7df8}.c3{fill:#f0883e}\
.c4{fill:#3fb950}.c5{fill:#f778ba}.c6{fill:#d29922}.c7{fill:#2dd4bf}}";

/// One of [`COLOURS`] colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Colour(pub usize);

/// Which end of a text its position means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// The text begins there.
    Start,
    /// Its middle is there.
    Middle,
    /// It ends there.
    End,
}

/// How a text looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// As ordinary text.
    Plain,
    /// Less than ordinary: units, ticks.
    Faint,
    /// More than ordinary: titles.
    Strong,
    /// On top of a coloured shape.
    OnColour,
}

/// A rectangle's place and size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Area {
    /// Left edge.
    pub x: f64,
    /// Upper edge.
    pub y: f64,
    /// Width; a negative one counts as 0.
    pub width: f64,
    /// Height; a negative one counts as 0.
    pub height: f64,
}

/// A drawing in the making.
#[derive(Debug, Clone)]
pub struct Drawing {
    text: String,
}

impl Drawing {
    /// An empty drawing of this size. Programs that read drawings aloud say `title`.
    #[must_use]
    pub fn new(title: &str, width: f64, height: f64) -> Self {
        let title = escaped(title);
        let mut drawing = Self { text: String::new() };
        drawing.push(&format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
             viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\">\n<title>{title}</title>\n\
             <style>{STYLE}</style>\n<rect class=\"ground\" width=\"100%\" height=\"100%\"/>"
        ));
        drawing
    }

    /// A filled rectangle. Who points at it reads `hint`.
    pub fn bar(&mut self, area: Area, colour: Colour, hint: &str) {
        let Area { x, y, width, height } = area;
        let (width, height) = (width.max(0.0), height.max(0.0));
        let (number, hint) = (colour.0 % COLOURS, escaped(hint));
        self.push(&format!(
            "<rect class=\"c{number}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"2\">\
             <title>{hint}</title></rect>"
        ));
    }

    /// A thin line for the eye to follow.
    pub fn rule(&mut self, from: (f64, f64), to: (f64, f64)) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.push(&format!(
            "<line class=\"grid\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
        ));
    }

    /// One line of text; `at` is on its base line.
    pub fn text(&mut self, at: (f64, f64), anchor: Anchor, tone: Tone, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let class = match tone {
            Tone::Plain => "",
            Tone::Faint => " class=\"faint\"",
            Tone::Strong => " class=\"strong\"",
            Tone::OnColour => " class=\"on\"",
        };
        let ((x, y), text) = (at, escaped(text));
        self.push(&format!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\"{class}>{text}</text>"
        ));
    }

    /// The file's content.
    #[must_use]
    pub fn finish(mut self) -> String {
        self.push("</svg>");
        self.text
    }

    fn push(&mut self, line: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "{line}");
    }
}

/// About how wide a text is, in pixels: for deciding whether it fits, not for setting it.
#[must_use]
pub fn width_of(text: &str) -> f64 {
    const PER_CHARACTER: f64 = 6.6;
    text.chars().count() as f64 * PER_CHARACTER
}

/// The distance between the marks of an axis that is `length` long: 1, 2 or 5 times a power of ten,
/// so that there are at most `most` marks. 1 for a length that is no positive number.
#[must_use]
pub fn tick(length: f64, most: u32) -> f64 {
    if !(length.is_finite() && length > 0.0) {
        return 1.0;
    }
    let least = length / f64::from(most.max(1));
    let power = 10_f64.powf(least.log10().floor());
    let factors = [1.0, 2.0, 5.0, 10.0];
    let fitting = factors.iter().map(|factor| factor * power).find(|step| *step >= least);
    fitting.unwrap_or(10.0 * power)
}

/// XML 1.0 §2.2 and §2.4: the characters with a meaning, and those that must not occur at all.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            control if control.is_control() => escaped.push(' '),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_text_holds_it_stays_text() {
        let mut drawing = Drawing::new("a<b", 10.0, 10.0);
        drawing.text((1.0, 2.0), Anchor::End, Tone::Faint, "</text><script>&\u{1b}");
        drawing.bar(Area { x: 0.0, y: 0.0, width: -1.0, height: 1.0 }, Colour(9), "\"<i>\"");
        let text = drawing.finish();
        assert!(text.contains("&lt;/text&gt;&lt;script&gt;&amp; </text>"), "{text}");
        assert!(text.contains("class=\"c1\"") && text.contains("width=\"0.0\""), "{text}");
        assert_eq!(text.matches("<rect").count(), 2);
    }

    #[test]
    fn ticks_are_round_and_few() {
        for (length, most, expected) in
            [(1.0, 10, 0.1), (1.5, 10, 0.2), (2333.0, 10, 500.0), (0.0, 10, 1.0)]
        {
            let tick = tick(length, most);
            assert!((tick - expected).abs() < 1e-9, "{length}: {tick}");
        }
    }
}
