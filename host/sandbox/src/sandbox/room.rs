//! Room for containers that come, change and go. Limits hold in the guest's cgroups in any case;
//! here the VM is made as large as they let its containers be, and kept where on the host they may
//! run.

mod memory;
mod place;
mod vcpus;

use std::time::Duration;

use oci_spec::runtime::LinuxResources;

pub(super) use place::Place;

use super::Shared;
use crate::memory::{Limit, limit, new_limit};
use crate::placement::Placement;
use crate::vcpus::Bandwidth;
use crate::{ContainerPlan, SandboxError};

/// How long the guest may take to find what is new or to let go of what goes, and the VMM to hear
/// of it. Whoever waits goes on without what is late.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a container may use; `None` for what stays as it is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Room {
    memory: Option<Limit>,
    cpus: Option<Bandwidth>,
}

/// What a container had before a change.
#[derive(Debug, Default)]
pub(super) struct Before {
    room: Room,
    /// `None` for one of which nothing was known.
    placement: Option<Placement>,
}

/// Gives the VM what it needs for a new container with its limits, if it can have it, and waits
/// until it is there.
///
/// # Errors
///
/// When the container is to run where nothing of the host can be.
pub(super) async fn make(shared: &Shared, plan: &ContainerPlan) -> Result<(), SandboxError> {
    if plan.stands_for_pod {
        return Ok(());
    }
    place::make(shared, &plan.id, plan.placement.clone()).await?;
    let linux = plan.spec.linux().as_ref();
    let resources = linux.and_then(|linux| linux.resources().as_ref());
    let cpus = Bandwidth::default().updated(resources.and_then(|all| all.cpu().as_ref()));
    let room = Room { memory: Some(limit(resources)), cpus: Some(cpus) };
    set(shared, &plan.id, room).await;
    Ok(())
}

/// The same for a container whose limits are to change. Returns those that it had before, where
/// they do.
pub(super) async fn change(
    shared: &Shared,
    container: &str,
    resources: &LinuxResources,
    placement: Placement,
) -> Result<Before, SandboxError> {
    // One that has ended, or stands for a pod, has no say.
    let Some(placement) = place::change(shared, container, placement).await? else {
        return Ok(Before::default());
    };
    let cpus = match resources.cpu() {
        Some(cpu) => shared.vcpus.lock().await.updated(container, cpu),
        None => None,
    };
    let room = set(shared, container, Room { memory: new_limit(resources), cpus }).await;
    Ok(Before { room, placement: Some(placement) })
}

async fn set(shared: &Shared, container: &str, room: Room) -> Room {
    let mut before = Room::default();
    if let Some(limit) = room.memory {
        before.memory = memory::make(shared, container, limit).await;
    }
    if let Some(bandwidth) = room.cpus {
        before.cpus = vcpus::make(shared, container, bandwidth).await;
    }
    before
}

/// Takes note that a container's limits are after all what they were before.
pub(super) async fn restore(shared: &Shared, container: &str, before: Before) {
    let Before { room: before, placement } = before;
    if let Some(placement) = placement {
        place::restore(shared, container, placement).await;
    }
    if let Some(limit) = before.memory {
        shared.memory.lock().await.set(container, limit);
    }
    if let Some(bandwidth) = before.cpus {
        shared.vcpus.lock().await.set(container, bandwidth);
    }
}

/// Forgets a container, and takes back what only it needed.
pub(super) async fn leave(shared: &Shared, container: &str) {
    shared.memory.lock().await.forget(container);
    shared.vcpus.lock().await.forget(container);
    place::leave(shared, container).await;
    take_back(shared).await;
}

/// Takes back what the VM does not need any more, as far as the guest gives it.
pub(super) async fn take_back(shared: &Shared) {
    memory::take_back(shared).await;
    vcpus::take_back(shared).await;
}

/// Whether a step was done in time. A VMM that the guest has taken over may never answer, and
/// nobody who creates or deletes a container shall wait for that, nor for a guest.
async fn done<E: std::error::Error>(
    shared: &Shared,
    otherwise: &str,
    step: impl Future<Output = Result<(), E>>,
) -> bool {
    let outcome = tokio::select! {
        biased;
        () = shared.until_gone() => return false,
        outcome = tokio::time::timeout(PATIENCE, step) => outcome,
    };
    let reason = match outcome {
        Ok(Ok(())) => return true,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("there is no answer within {} s", PATIENCE.as_secs()),
    };
    tracing::warn!("sandbox {}: the virtual machine {otherwise}: {reason}", shared.id);
    false
}
