//! What the sandbox records of its own start.

use std::path::PathBuf;

use kata_agent_client::BootStamps;
use kata_timeline::{GuestClock, Recorder, Stage};

/// A start's record, and where it is written down for whoever looks into it while the sandbox
/// lives.
#[derive(Debug)]
pub(crate) struct Timing {
    pub(crate) times: Recorder,
    pub(crate) sandbox: String,
    /// The sandbox's own directory, with which the file goes.
    pub(crate) dir: PathBuf,
}

impl Timing {
    /// Records one of the last stages, and if it is reached for the first time, writes the record
    /// down.
    pub(crate) fn stamp_and_save(&self, stage: Stage) {
        if self.times.stamp(stage)
            && let Err(error) = self.times.timeline(&self.sandbox).save(&self.dir)
        {
            // The directory may be going away with the sandbox, and nothing depends on the record.
            tracing::debug!("sandbox {}: its timeline is not written: {error}", self.sandbox);
        }
    }
}

/// Enters what the guest has told of its boot, if the exchange in which it did shows that it can be
/// true.
pub(crate) fn record_guest(times: &Recorder, told: Option<BootStamps>) {
    let Some(told) = told.filter(is_in_order) else { return };
    let so_far = times.timeline("");
    let (Some(asked), Some(answered)) =
        (so_far.at(Stage::AgentReached), so_far.at(Stage::SandboxCreated))
    else {
        return;
    };
    let Some(clock) = GuestClock::compare(asked, answered, told.taken, told.given) else { return };
    times.set_guest_clock(clock);
    // Before that, the machine did not exist.
    let first = told.machine_age.and_then(|age| Some(clock.to_host(told.given)?.before(age)));
    if let Some(first) = first.filter(|first| Some(*first) >= so_far.at(Stage::VmmExecuted)) {
        times.stamp_at(Stage::KernelEntered, first);
    }
    // The kernel's log has a clock of its own, which may be a little ahead.
    let kernel_done = told.kernel_done.map(|done| done.min(told.agent_started));
    for (stage, moment) in [
        (Stage::KernelDone, kernel_done),
        (Stage::AgentStarted, Some(told.agent_started)),
        (Stage::AgentReady, Some(told.agent_ready)),
    ] {
        if let Some(at) = moment.and_then(|moment| clock.to_host(moment)) {
            times.stamp_at(stage, at);
        }
    }
}

fn is_in_order(told: &BootStamps) -> bool {
    [told.agent_started, told.agent_ready, told.taken, told.given].is_sorted()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kata_timeline::Moment;

    use super::*;

    const MS: u64 = 1_000_000;

    fn recorder() -> Recorder {
        let times = Recorder::new();
        times.stamp_at(Stage::AgentReached, Moment::from_nanos(2000 * MS));
        times.stamp_at(Stage::SandboxCreated, Moment::from_nanos(2050 * MS));
        times
    }

    fn told() -> BootStamps {
        let ms = Duration::from_millis;
        BootStamps {
            kernel_done: Some(ms(805)),
            agent_started: ms(800),
            agent_ready: ms(900),
            taken: ms(1010),
            given: ms(1050),
            machine_age: Some(ms(1450)),
        }
    }

    #[test]
    fn guests_moments_become_the_hosts() {
        let times = recorder();
        record_guest(&times, Some(told()));
        let timeline = times.timeline("s");
        // The exchange took 10 ms more on the host than in the guest, half of that on each way.
        assert_eq!(timeline.at(Stage::KernelEntered), Some(Moment::from_nanos(595 * MS)));
        assert_eq!(timeline.at(Stage::KernelDone), timeline.at(Stage::AgentStarted));
        assert_eq!(timeline.guest_uncertainty_ns, Some(5 * MS));
    }

    #[test]
    fn machine_is_not_older_than_its_vmm() {
        let times = recorder();
        times.stamp_at(Stage::VmmExecuted, Moment::from_nanos(600 * MS));
        record_guest(&times, Some(told()));
        assert_eq!(times.timeline("s").at(Stage::KernelEntered), None);
    }

    #[test]
    fn guest_that_cannot_be_right_is_left_out() {
        let ms = Duration::from_millis;
        for lie in [
            BootStamps { agent_started: ms(901), ..told() },
            BootStamps { given: ms(1061), ..told() },
            BootStamps { taken: Duration::MAX, given: Duration::MAX, ..told() },
        ] {
            let times = recorder();
            record_guest(&times, Some(lie));
            assert_eq!(times.timeline("s").stamps.len(), 2, "{lie:?}");
        }
    }
}
