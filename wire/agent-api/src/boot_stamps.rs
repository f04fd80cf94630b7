//! When the guest reached the stages of its boot: an addition of ours to the answer to
//! CreateSandbox.
//!
//! The answer is `google.protobuf.Empty`, and the stamps are fields of it that no other peer knows.
//! A decoder skips what it does not know (protobuf's encoding rules), so that other runtimes do not
//! notice, and an answer without them is from another agent.
//!
//! | field | what, in nanoseconds of the guest's `CLOCK_MONOTONIC` |
//! |---|---|
//! | 20001 | the kernel executed its init; by the kernel's own clock, missing if it did not tell |
//! | 20002 | the agent's first instruction |
//! | 20003 | the agent had set the machine up |
//! | 20004 | the request was taken |
//! | 20005 | the answer was given |
//! | 20006 | how long the machine had been running then, missing if nothing tells |

use std::time::Duration;

use protobuf::UnknownValueRef;

use crate::empty::Empty;

const FIRST_FIELD: u32 = 20001;

/// Moments on the guest's clock. Whoever gets them from a guest must not believe them without a
/// look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BootStamps {
    /// The kernel executed its init; `None` if it did not tell.
    pub kernel_done: Option<Duration>,
    /// The agent's first instruction.
    pub agent_started: Duration,
    /// The agent had set the machine up.
    pub agent_ready: Duration,
    /// The request was taken.
    pub taken: Duration,
    /// The answer was given.
    pub given: Duration,
    /// How long the machine had been running when the answer was given, which is longer than the
    /// kernel's clock says; `None` if nothing tells.
    pub machine_age: Option<Duration>,
}

impl BootStamps {
    /// An answer that carries them.
    #[must_use]
    pub fn to_answer(&self) -> Empty {
        let mut answer = Empty::new();
        let stamps = [
            self.kernel_done,
            Some(self.agent_started),
            Some(self.agent_ready),
            Some(self.taken),
            Some(self.given),
            self.machine_age,
        ];
        for (field, stamp) in (FIRST_FIELD..).zip(stamps) {
            if let Some(nanos) = stamp.and_then(|stamp| u64::try_from(stamp.as_nanos()).ok()) {
                answer.special_fields.mut_unknown_fields().add_varint(field, nanos);
            }
        }
        answer
    }

    /// What an answer carries; `None` if it is another agent's.
    #[must_use]
    pub fn of_answer(answer: &Empty) -> Option<Self> {
        let stamp = |field| match answer.special_fields.unknown_fields().get(field) {
            Some(UnknownValueRef::Varint(nanos)) => Some(Duration::from_nanos(nanos)),
            _ => None,
        };
        Some(Self {
            kernel_done: stamp(FIRST_FIELD),
            agent_started: stamp(FIRST_FIELD + 1)?,
            agent_ready: stamp(FIRST_FIELD + 2)?,
            taken: stamp(FIRST_FIELD + 3)?,
            given: stamp(FIRST_FIELD + 4)?,
            machine_age: stamp(FIRST_FIELD + 5),
        })
    }
}

#[cfg(test)]
mod tests {
    use protobuf::Message;

    use super::*;

    #[test]
    fn stamps_survive_the_wire() {
        let ms = Duration::from_millis;
        let mut stamps = BootStamps {
            kernel_done: Some(ms(900)),
            agent_started: ms(905),
            agent_ready: ms(1000),
            taken: ms(1100),
            given: ms(1150),
            machine_age: Some(ms(1500)),
        };
        for kernel_done in [None, Some(ms(900))] {
            stamps.kernel_done = kernel_done;
            let bytes = stamps.to_answer().write_to_bytes().unwrap();
            let answer = Empty::parse_from_bytes(&bytes).unwrap();
            assert_eq!(BootStamps::of_answer(&answer), Some(stamps));
        }
    }

    #[test]
    fn answer_of_another_agent_has_none() {
        assert_eq!(BootStamps::of_answer(&Empty::new()), None);
        let mut odd = Empty::new();
        for field in FIRST_FIELD..FIRST_FIELD + 6 {
            odd.special_fields.mut_unknown_fields().add_fixed32(field, 7);
        }
        assert_eq!(BootStamps::of_answer(&odd), None);
    }
}
