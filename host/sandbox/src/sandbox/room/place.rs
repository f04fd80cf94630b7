//! The VM's place on the host: the processors and memory nodes that its containers may use.

use crate::placement::{Placement, Placements};
use crate::sandbox::Shared;
use crate::{Footprint, FootprintError};

/// Where the VM is, and where its containers want it.
#[derive(Debug)]
pub(in crate::sandbox) struct Place {
    now: Placement,
    wanted: Placements,
}

impl Place {
    /// That of a VM as it has booted.
    pub(in crate::sandbox) fn new(now: Placement) -> Self {
        Self { now, wanted: Placements::default() }
    }

    fn follow(&mut self, footprint: &Footprint) -> Result<(), FootprintError> {
        let together = self.wanted.together();
        if together != self.now {
            footprint.place(&together)?;
            self.now = together;
        }
        Ok(())
    }
}

/// Lets the VM run where a container may, beside the others. Returns what the container named
/// before. On an error nothing has changed.
pub(super) fn set(
    shared: &Shared,
    container: &str,
    placement: Placement,
) -> Result<Option<Placement>, FootprintError> {
    let mut place = shared.place();
    let before = place.wanted.set(container, placement);
    let followed = place.follow(&shared.footprint);
    if followed.is_err() {
        place.wanted.restore(container, before.clone());
    }
    followed.map(|()| before)
}

/// Makes a container's what it was before, with `None` that of one that is not there.
pub(super) fn restore(shared: &Shared, container: &str, before: Option<Placement>) {
    let mut place = shared.place();
    place.wanted.restore(container, before);
    if let Err(error) = place.follow(&shared.footprint) {
        tracing::warn!("sandbox {}: the virtual machine stays where it is: {error}", shared.id);
    }
}
