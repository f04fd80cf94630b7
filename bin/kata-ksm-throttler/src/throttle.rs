//! How eagerly the kernel merges pages, as time goes by after a virtual machine has started. Pure.
//!
//! ```text
//!            kick                  30 s                120 s            120 s
//!  any state ────▶ aggressive ───────────▶ standard ─────────▶ slow ─────────▶ original, until the next kick
//!                                             ▲
//!  started ───────────────────────────────────┘ 120 s (nothing is set before)
//! ```

use std::time::Duration;

/// What the kernel is set to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Setting {
    /// A virtual machine is starting: its kernel and libraries are most likely somebody else's too.
    Aggressive,
    /// It has come up.
    Standard,
    /// It has been up for a while.
    Slow,
    /// As it was before this program came.
    Original,
}

/// How the kernel looks for pages to merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scan {
    /// The part of the host's anonymous pages that is looked at in one go: one in so many.
    divisor: u64,
    /// The pause after each go, in milliseconds.
    pub(crate) sleep_millisecs: u64,
}

impl Scan {
    /// How many of this many pages are looked at in one go.
    pub(crate) fn pages(self, anonymous_pages: u64) -> u64 {
        anonymous_pages / self.divisor
    }
}

impl Setting {
    /// `None` means the original settings.
    pub(crate) fn scan(self) -> Option<Scan> {
        match self {
            Self::Aggressive => Some(Scan { divisor: 10, sleep_millisecs: 1 }),
            Self::Standard => Some(Scan { divisor: 100, sleep_millisecs: 10 }),
            Self::Slow => Some(Scan { divisor: 500, sleep_millisecs: 100 }),
            Self::Original => None,
        }
    }

    /// How long it holds before the next one; `None` for ever.
    fn lasts(self) -> Option<Duration> {
        match self {
            Self::Aggressive => Some(Duration::from_secs(30)),
            Self::Standard | Self::Slow => Some(Duration::from_secs(120)),
            Self::Original => None,
        }
    }

    /// What follows when its time is over.
    fn next(self) -> Self {
        match self {
            Self::Aggressive => Self::Standard,
            Self::Standard => Self::Slow,
            Self::Slow | Self::Original => Self::Original,
        }
    }
}

/// Where on the way down the host is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Throttle {
    next: Setting,
    wait: Option<Duration>,
}

impl Throttle {
    /// As it begins: virtual machines may have started a moment ago.
    pub(crate) fn new() -> Self {
        Self { next: Setting::Standard, wait: Some(Duration::from_secs(120)) }
    }

    /// The time until [`Throttle::expired`] is to be called, counted from the last change; `None`
    /// when only a kick changes anything.
    pub(crate) fn wait(&self) -> Option<Duration> {
        self.wait
    }

    /// A virtual machine starts: the setting to apply.
    pub(crate) fn kicked(&mut self) -> Setting {
        self.enter(Setting::Aggressive)
    }

    /// The time is over: the setting to apply.
    pub(crate) fn expired(&mut self) -> Setting {
        self.enter(self.next)
    }

    fn enter(&mut self, setting: Setting) -> Setting {
        self.wait = setting.lasts();
        self.next = setting.next();
        setting
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(throttle: &Throttle) -> Option<u64> {
        throttle.wait().map(|wait| wait.as_secs())
    }

    #[test]
    fn without_a_kick_it_is_slowed_down_from_the_start() {
        let mut throttle = Throttle::new();
        assert_eq!(seconds(&throttle), Some(120));
        assert_eq!(throttle.expired(), Setting::Standard);
        assert_eq!(seconds(&throttle), Some(120));
        assert_eq!(throttle.expired(), Setting::Slow);
        assert_eq!(seconds(&throttle), Some(120));
        assert_eq!(throttle.expired(), Setting::Original);
        assert_eq!(seconds(&throttle), None);
    }

    #[test]
    fn values_are_those_of_kata() {
        let of = |setting: Setting| {
            setting.scan().map(|scan| (scan.pages(100_999), scan.sleep_millisecs))
        };
        assert_eq!(of(Setting::Aggressive), Some((10_099, 1)));
        assert_eq!(of(Setting::Standard), Some((1009, 10)));
        assert_eq!(of(Setting::Slow), Some((201, 100)));
        assert_eq!(of(Setting::Original), None);
    }

    proptest! {
        #[test]
        fn a_kick_is_always_followed_by_the_whole_way_down(before: Vec<bool>) {
            let mut throttle = Throttle::new();
            for kick in before {
                if kick { throttle.kicked() } else { throttle.expired() };
            }
            let mut way = vec![(throttle.kicked(), seconds(&throttle))];
            while throttle.wait().is_some() {
                way.push((throttle.expired(), seconds(&throttle)));
                prop_assert!(way.len() <= 4);
            }
            use Setting::{Aggressive, Original, Slow, Standard};
            let expected =
                [(Aggressive, Some(30)), (Standard, Some(120)), (Slow, Some(120)), (Original, None)];
            prop_assert_eq!(way, expected);
        }
    }
}
