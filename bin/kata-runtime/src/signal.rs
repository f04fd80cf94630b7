//! Signals by name and number.

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

/// SIGRTMIN as a process sees it, and SIGRTMAX (signal(7)).
const REAL_TIME: std::ops::RangeInclusive<u32> = 34..=64;

/// The number of a signal: `9`, `KILL`, `SIGKILL`, `RTMIN+3`; nothing is `TERM`, as for runc. 0 is
/// none: it only asks whether there is a process (kill(2)).
pub(crate) fn parse(text: &str) -> Result<u32> {
    let unknown = || format!("unknown signal {text:?}");
    if let Ok(number) = text.parse::<u32>() {
        let is_known = number <= 31 || REAL_TIME.contains(&number);
        return Some(number).filter(|_| is_known).with_context(unknown);
    }
    if text.is_empty() {
        return Ok(Signal::SIGTERM as u32);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset: u32 =
            offset.strip_prefix('+').unwrap_or("0").parse().ok().with_context(unknown)?;
        return Some(34 + offset).filter(|number| REAL_TIME.contains(number)).with_context(unknown);
    }
    let signal: Signal = format!("SIG{name}").parse().ok().with_context(unknown)?;
    Ok(signal as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_understood() {
        for (text, number) in [
            ("9", 9),
            ("KILL", 9),
            ("SIGTERM", 15),
            ("sigusr1", 10),
            ("RTMIN+3", 37),
            ("34", 34),
            ("0", 0),
            ("", 15),
        ] {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
        for text in ["32", "65", "SIGNONE", "SIG", "-9", "RTMIN+99"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
