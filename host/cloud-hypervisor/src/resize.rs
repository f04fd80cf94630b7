//! Memory and virtual CPUs that come and go while the machine runs.
//!
//! The VMM answers as soon as the guest is asked. How much memory the guest has taken it tells.
//! Whether processors have gone it shows by its answer to the same request once more: it refuses
//! that until there are as many as it is asked for.

use std::ops::RangeInclusive;
use std::time::Duration;

use kata_hypervisor::{HypervisorError, VmSpec};
use tokio::time::sleep;

use crate::api::{ApiError, Client, VmResize};
use crate::machine::bytes;

/// What the VMM says (HTTP status) as long as processors that were to go are there.
const STILL_GOING: u16 = 429;

/// The time between two looks at whether they have gone, of which no event tells. The VMM writes a
/// line to its stderr for each look that is too early.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What a machine may have; `None` of what stays as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Room {
    vcpus: Option<RangeInclusive<u32>>,
    memory_mib: Option<RangeInclusive<u32>>,
}

impl Room {
    pub(crate) fn of(spec: &VmSpec) -> Self {
        Self {
            vcpus: spec.most_vcpus.map(|most| spec.vcpus..=most),
            memory_mib: spec.most_memory_mib.map(|most| spec.memory_mib..=most),
        }
    }

    /// See [`kata_hypervisor::Vm::resize_vcpus`].
    pub(crate) async fn resize_vcpus(
        &self,
        client: &Client,
        count: u32,
    ) -> Result<(), HypervisorError> {
        let vcpus = clamped(count, self.vcpus.as_ref()).ok_or(HypervisorError::FixedVcpus)?;
        let resize = VmResize { desired_vcpus: Some(vcpus), ..VmResize::default() };
        // What asks, and what comes after those that go, which takes the guest a moment.
        ask_until_taken(client, resize).await?;
        sleep(LOOK_AGAIN).await;
        Ok(ask_until_taken(client, resize).await?)
    }

    /// See [`kata_hypervisor::Vm::resize_memory`].
    pub(crate) async fn resize_memory(
        &self,
        client: &Client,
        mib: u32,
    ) -> Result<(), HypervisorError> {
        let mib = clamped(mib, self.memory_mib.as_ref()).ok_or(HypervisorError::FixedMemory)?;
        let resize = VmResize { desired_ram: Some(bytes(mib)), ..VmResize::default() };
        match client.resize(resize).await {
            // What it is asked for already, it refuses.
            Err(ApiError::Refused { .. })
                if client.info().await?.config.memory.wanted() == bytes(mib) =>
            {
                Ok(())
            }
            answer => Ok(answer?),
        }
    }

    /// See [`kata_hypervisor::Vm::memory_mib`].
    pub(crate) async fn memory_mib(&self, client: &Client) -> Result<u32, HypervisorError> {
        let least = *self.memory_mib.as_ref().ok_or(HypervisorError::FixedMemory)?.start();
        let has = client.info().await?.memory_actual_size.map(|bytes| bytes >> 20);
        Ok(has.and_then(|mib| u32::try_from(mib).ok()).unwrap_or(least))
    }
}

fn clamped(wanted: u32, room: Option<&RangeInclusive<u32>>) -> Option<u32> {
    room.map(|room| wanted.max(*room.start()).min(*room.end()))
}

async fn ask_until_taken(client: &Client, resize: VmResize) -> Result<(), ApiError> {
    loop {
        match client.resize(resize).await {
            Err(ApiError::Refused { status: STILL_GOING, .. }) => sleep(LOOK_AGAIN).await,
            answer => return answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use kata_hypervisor::GuestRoot;

    use super::*;

    #[test]
    fn room_is_what_the_spec_has_and_no_more() {
        let spec = VmSpec {
            vcpus: 2,
            most_vcpus: Some(4),
            ..VmSpec::bare("x", "/kernel", GuestRoot::Initrd("/initrd".into()), "/run/x")
        };
        let room = Room::of(&spec);
        let vcpus = |count| clamped(count, room.vcpus.as_ref());
        assert_eq!([vcpus(1), vcpus(3), vcpus(9)], [Some(2), Some(3), Some(4)]);
        assert_eq!(clamped(512, room.memory_mib.as_ref()), None);
    }
}
