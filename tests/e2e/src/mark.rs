//! What a fixture leaves on everything that it makes.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A word that occurs in every path, id and name of one fixture, and nowhere else on the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark(String);

impl Mark {
    /// One that was never used before.
    #[must_use]
    pub fn unique() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis());
        Self(format!("e2e{:x}x{:x}x{number:x}", std::process::id(), now & 0xff_ffff))
    }

    /// Whether `text` carries the mark of another fixture of this program, which runs beside those
    /// that have `ours`.
    pub(crate) fn is_anothers(text: &[u8], ours: &[Self]) -> bool {
        let program = format!("e2e{:x}x", std::process::id());
        let is_marked = text.windows(program.len()).any(|window| window == program.as_bytes());
        is_marked && !ours.iter().any(|mark| mark.is_in(text))
    }

    /// A word that somebody else has chosen, like a container's id.
    pub(crate) fn of(word: &str) -> Self {
        Self(word.to_owned())
    }

    /// The word.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `text` carries it. A longer number after it is another mark.
    #[must_use]
    pub fn is_in(&self, text: &[u8]) -> bool {
        let mark = self.0.as_bytes();
        let mut rest = text;
        while let Some(at) = rest.windows(mark.len()).position(|window| window == mark) {
            rest = &rest[at + mark.len()..];
            if !rest.first().is_some_and(u8::is_ascii_hexdigit) {
                return true;
            }
        }
        false
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mark_is_found_whole_only() {
        let mark = Mark("e2e1x2x3".to_owned());
        assert!(mark.is_in(b"/tmp/kata-e2e1x2x3/root"));
        assert!(mark.is_in(b"e2e1x2x3f e2e1x2x3"));
        assert!(!mark.is_in(b"/tmp/kata-e2e1x2x34/root"));
        assert!(!mark.is_in(b""));
    }

    #[test]
    fn what_another_fixture_has_made_is_told_from_ours_and_from_nobodys() {
        let (ours, other) = ([Mark::unique()], Mark::unique());
        assert!(Mark::is_anothers(format!("netns: c-n2-{other}").as_bytes(), &ours));
        assert!(!Mark::is_anothers(format!("netns: c-n2-{}", ours[0]).as_bytes(), &ours));
        assert!(!Mark::is_anothers(b"network device: tap0_kata", &ours));
    }

    #[test]
    fn marks_differ() {
        assert_ne!(Mark::unique(), Mark::unique());
    }
}
