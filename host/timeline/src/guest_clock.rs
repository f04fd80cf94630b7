//! Reading the guest's clock on the host.

use std::time::Duration;

use crate::Moment;

/// What the two clocks say of one exchange: the host asked, the guest took the question and gave
/// the answer, the host had it. Both run at the same speed, so one sum turns the guest's moments
/// into the host's (as in NTP, RFC 5905 §8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestClock {
    /// The host's moment at which the guest's clock was zero, in nanoseconds. A guest's clock
    /// cannot be older than its host's.
    zero: u64,
    uncertainty: u64,
}

impl GuestClock {
    /// Compares the clocks by an exchange that the host saw from `asked` to `answered`, and the
    /// guest, by its own clock, from `taken` to `given`.
    ///
    /// `None` if that cannot be: the guest says that it took longer than the host has waited, or
    /// that it is older than the host. It is not to be believed then.
    #[must_use]
    pub fn compare(
        asked: Moment,
        answered: Moment,
        taken: Duration,
        given: Duration,
    ) -> Option<Self> {
        let (taken, given) = (nanos(taken)?, nanos(given)?);
        let (asked, answered) = (asked.as_nanos(), answered.as_nanos());
        let waited = answered.checked_sub(asked)?;
        let travelled = waited.checked_sub(given.checked_sub(taken)?)?;
        let uncertainty = travelled / 2;
        let zero = asked.checked_add(uncertainty)?.checked_sub(taken)?;
        Some(Self { zero, uncertainty })
    }

    /// A moment of the guest's clock on the host's. `None` beyond the end of time.
    #[must_use]
    pub fn to_host(self, guest: Duration) -> Option<Moment> {
        self.zero.checked_add(nanos(guest)?).map(Moment::from_nanos)
    }

    /// How far a moment may be off, in nanoseconds: half of the time that the exchange was on its
    /// way.
    #[must_use]
    pub fn uncertainty_ns(self) -> u64 {
        self.uncertainty
    }
}

fn nanos(time: Duration) -> Option<u64> {
    u64::try_from(time.as_nanos()).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn guest_that_took_longer_than_the_host_waited_is_not_believed() {
        let compare = |taken, given| {
            let (taken, given) = (Duration::from_nanos(taken), Duration::from_nanos(given));
            GuestClock::compare(Moment::from_nanos(1000), Moment::from_nanos(1100), taken, given)
        };
        assert!(compare(10, 110).is_some());
        assert_eq!(compare(10, 111), None);
        assert_eq!(compare(11, 10), None);
        assert_eq!(compare(5000, 5010), None);
    }

    proptest! {
        #[test]
        fn true_moment_is_within_the_uncertainty(
            zero in 0_u64..1 << 40,
            taken in 0_u64..1 << 40,
            to in 0_u64..1 << 30,
            work in 0_u64..1 << 30,
            back in 0_u64..1 << 30,
            moment in 0_u64..1 << 40,
        ) {
            prop_assume!(zero + taken >= to);
            let asked = zero + taken - to;
            let answered = zero + taken + work + back;
            let clock = GuestClock::compare(
                Moment::from_nanos(asked),
                Moment::from_nanos(answered),
                Duration::from_nanos(taken),
                Duration::from_nanos(taken + work),
            );
            let Some(clock) = clock else {
                // Only when the middle of the way lies before the host's boot.
                prop_assert!(asked + to.midpoint(back) < taken);
                return Ok(());
            };
            let read = clock.to_host(Duration::from_nanos(moment)).unwrap().as_nanos();
            prop_assert!(read.abs_diff(zero + moment) <= clock.uncertainty_ns() + 1);
        }
    }
}
