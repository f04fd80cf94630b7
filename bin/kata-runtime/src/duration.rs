//! Spans of time as Go writes them (`time.ParseDuration`).

use std::time::Duration;

use anyhow::{Context, Result, bail};

/// The units, in nanoseconds.
const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    // Both of Unicode's signs for it.
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// So many digits after the point count: what the next ones add is less than a nanosecond.
const DIGITS: usize = 15;

/// Reads numbers with units, one after the other, like `1m30s`, `1.5h` or `500ms`, that come to
/// more than nothing.
pub(crate) fn parse(text: &str) -> Result<Duration> {
    let wrong = || format!("invalid duration {text:?}; write it like 5s, 500ms or 1m30s");
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let nanoseconds = nanoseconds(unsigned).with_context(wrong)?;
    if nanoseconds == 0 || text.starts_with('-') {
        bail!("duration interval must be greater than 0");
    }
    Ok(Duration::from_nanos(nanoseconds))
}

fn nanoseconds(text: &str) -> Option<u64> {
    // The one number that needs no unit.
    if text == "0" {
        return Some(0);
    }
    let (mut total, mut rest) = first(text)?;
    while !rest.is_empty() {
        let (more, after) = first(rest)?;
        total = total.checked_add(more)?;
        rest = after;
    }
    // Go counts in signed numbers.
    i64::try_from(total).is_ok().then_some(total)
}

/// The nanoseconds of the first number with its unit, and what comes after it.
fn first(text: &str) -> Option<(u64, &str)> {
    let (whole, rest) = digits(text);
    let (fraction, rest) = rest.strip_prefix('.').map_or(("", rest), digits);
    let unit_ends = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
    let (unit, rest) = rest.split_at(unit_ends);
    let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit)?;
    let fraction = &fraction[..fraction.len().min(DIGITS)];
    let (whole, fraction) = match (whole, fraction) {
        ("", "") => return None,
        (whole, "") => (whole.parse().ok()?, 0),
        ("", fraction) => (0, part_of(*scale, fraction)?),
        (whole, fraction) => (whole.parse().ok()?, part_of(*scale, fraction)?),
    };
    Some((scale.checked_mul(whole)?.checked_add(fraction)?, rest))
}

/// As much of `scale` as the digits after a point say.
fn part_of(scale: u64, digits: &str) -> Option<u64> {
    let parts = 10_u128.checked_pow(digits.len().try_into().ok()?)?;
    (u128::from(scale) * digits.parse::<u128>().ok()? / parts).try_into().ok()
}

fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        let seconds = Duration::from_secs;
        for (text, duration) in [
            ("5s", seconds(5)),
            ("+5s", seconds(5)),
            ("1m30s", seconds(90)),
            ("30s1m", seconds(90)),
            ("1.5m", seconds(90)),
            (".5h", seconds(1800)),
            ("5.s", seconds(5)),
            ("1h0m0.25s", Duration::from_millis(3_600_250)),
            ("500ms", Duration::from_millis(500)),
            ("7us", Duration::from_micros(7)),
            ("7\u{b5}s", Duration::from_micros(7)),
            ("7\u{3bc}s", Duration::from_micros(7)),
            ("0.000000001s", Duration::from_nanos(1)),
            ("1.0000000001999999999999999999999s", seconds(1)),
            ("9223372036854775807ns", Duration::from_nanos(9_223_372_036_854_775_807)),
        ] {
            assert_eq!(parse(text).unwrap(), duration, "{text}");
        }
        for text in ["0", "0s", "-1s", "-0", "0.1ns", "+0"] {
            let error = parse(text).unwrap_err().to_string();
            assert_eq!(error, "duration interval must be greater than 0", "{text}");
        }
        for text in [
            "",
            "+",
            "-",
            "5",
            "s",
            ".s",
            ".",
            "5 s",
            "1m30",
            "1e3s",
            "--1s",
            "1d",
            "1S",
            "5s ",
            "9223372036854775808ns",
            "2562048h",
            "1.2.3s",
            "\u{661}s",
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with("invalid duration"), "{text:?}: {error}");
        }
    }

    proptest! {
        /// What Go prints (`Duration.String`) from one second on.
        #[test]
        fn what_go_prints_is_read_back(nanoseconds in 1_000_000_000..i64::MAX.cast_unsigned()) {
            let (seconds, below) = (nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000);
            let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
            let text = format!("{hours}h{minutes}m{seconds}.{below:09}s");
            prop_assert_eq!(parse(&text).unwrap(), Duration::from_nanos(nanoseconds));
        }

        #[test]
        fn nothing_that_is_written_makes_it_panic(text in "[-+.0-9a-z\u{b5} ]{0,24}") {
            let _ = parse(&text);
        }
    }
}
