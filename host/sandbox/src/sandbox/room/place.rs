//! The VM's place on the host: the processors and memory nodes that its containers may use.

use kata_log::chain;
use tokio::sync::MutexGuard;

use crate::placement::{Placement, Placements};
use crate::sandbox::Shared;
use crate::{FootprintError, SandboxError};

/// Where the VM is, and where its containers want it.
#[derive(Debug)]
pub(in crate::sandbox) struct Place {
    now: Placement,
    wanted: Placements,
}

impl Place {
    /// That of a VM as it has booted for its first container.
    pub(in crate::sandbox) fn new(first: &str, now: Placement) -> Self {
        Self { now, wanted: Placements::new(first) }
    }
}

/// Lets the VM run where a new container may, beside the others. On an error nothing has changed.
pub(super) async fn make(
    shared: &Shared,
    container: &str,
    placement: Placement,
) -> Result<(), SandboxError> {
    let mut place = shared.place.lock().await;
    place.wanted.add(container, placement);
    let followed = follow(shared, &mut place).await;
    if followed.is_err() {
        place.wanted.forget(container);
    }
    followed
}

/// The same for a container that was here before. Returns what it had before; `None` for one that
/// was not here, of which nothing is taken note.
pub(super) async fn change(
    shared: &Shared,
    container: &str,
    placement: Placement,
) -> Result<Option<Placement>, SandboxError> {
    let mut place = shared.place.lock().await;
    let before = place.wanted.update(container, placement);
    let followed = follow(shared, &mut place).await;
    if let (Err(_), Some(before)) = (&followed, &before) {
        place.wanted.restore(container, before.clone());
    }
    followed.map(|()| before)
}

/// Makes a container's what it was before, if it is still here.
pub(super) async fn restore(shared: &Shared, container: &str, before: Placement) {
    let mut place = shared.place.lock().await;
    place.wanted.restore(container, before);
    follow_or_stay(shared, &mut place).await;
}

/// Forgets a container.
pub(super) async fn leave(shared: &Shared, container: &str) {
    let mut place = shared.place.lock().await;
    place.wanted.forget(container);
    follow_or_stay(shared, &mut place).await;
}

async fn follow_or_stay(shared: &Shared, place: &mut MutexGuard<'_, Place>) {
    match follow(shared, place).await {
        Ok(()) | Err(SandboxError::Gone { .. }) => {}
        Err(error) => {
            let why = chain(&error);
            tracing::warn!("sandbox {}: the virtual machine stays where it is: {why}", shared.id);
        }
    }
}

/// Puts the VM where its containers want it. While the lock is held, the cgroup is not removed.
async fn follow(shared: &Shared, place: &mut MutexGuard<'_, Place>) -> Result<(), SandboxError> {
    let together = place.wanted.together();
    if together == place.now {
        return Ok(());
    }
    if shared.gone.borrow().is_some() {
        return Err(shared.gone_error());
    }
    let (cgroups, to) = (shared.footprint.cgroups(), together.clone());
    // A VM's memory is moved from node to node before the kernel answers.
    let placed = tokio::task::spawn_blocking(move || cgroups.place(&to)).await;
    placed.map_err(|_| shared.gone_error())?.map_err(FootprintError::from)?;
    place.now = together;
    Ok(())
}
