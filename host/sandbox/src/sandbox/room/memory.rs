//! Memory that comes and goes: the VMM asks the guest to take it, or to give some back.

use super::{PATIENCE, done};
use crate::memory::{Limit, Memory};
use crate::sandbox::Shared;

/// Gives the VM the memory that it needs for a container with this limit, if it can have it, and
/// waits until it is there. Returns the limit that the container had before.
pub(super) async fn make(shared: &Shared, container: &str, limit: Limit) -> Option<Limit> {
    let mut memory = shared.memory.lock().await;
    let before = memory.set(container, limit);
    if memory.can_grow() && memory.wanted_mib() > memory.asked_mib() {
        let wanted = memory.wanted_mib();
        if resize(shared, &mut memory, wanted).await {
            arrive(shared, wanted).await;
        }
    }
    if let Some(shortage) = memory.shortage().filter(|_| before != Some(limit)) {
        tracing::warn!("the virtual machine of sandbox {}: {shortage}", shared.id);
    }
    before
}

/// Takes back the memory that the VM does not need any more, as far as the guest gives it.
pub(super) async fn take_back(shared: &Shared) {
    let mut memory = shared.memory.lock().await;
    let wanted = memory.wanted_mib();
    if wanted < memory.asked_mib() {
        resize(shared, &mut memory, wanted).await;
    }
}

/// Whether the guest was asked.
async fn resize(shared: &Shared, memory: &mut Memory, mib: u32) -> bool {
    let asked = done(shared, "keeps its memory", shared.vm.resize_memory(mib)).await;
    if asked {
        tracing::info!("sandbox {}: the virtual machine is to have {mib} MiB", shared.id);
        memory.ask(mib);
    }
    asked
}

/// Waits until the guest has so much memory.
async fn arrive(shared: &Shared, mib: u32) {
    tokio::select! {
        biased;
        () = shared.until_gone() => {}
        arrived = tokio::time::timeout(PATIENCE, shared.vm.until_memory(mib)) => match arrived {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("sandbox {}: its memory cannot be told: {error}", shared.id),
            Err(_) => tracing::warn!(
                "sandbox {}: after {} s the guest has not found all of its {mib} MiB yet; its kernel needs virtio_mem",
                shared.id,
                PATIENCE.as_secs()
            ),
        }
    }
}
