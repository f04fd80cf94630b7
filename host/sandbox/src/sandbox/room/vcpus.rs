//! Virtual CPUs that come and go: the VMM gives and takes them, the guest's agent switches them on
//! and off.

use super::done;
use crate::sandbox::Shared;
use crate::vcpus::{Bandwidth, Vcpus};

/// Gives the VM the virtual CPUs that it needs for a container with this limit, if it can have
/// them, and waits until they are used. Returns the limit that the container had before.
pub(super) async fn make(
    shared: &Shared,
    container: &str,
    bandwidth: Bandwidth,
) -> Option<Bandwidth> {
    let mut vcpus = shared.vcpus.lock().await;
    let before = vcpus.set(container, bandwidth);
    if vcpus.can_grow() && vcpus.wanted() > vcpus.has() {
        grow(shared, &mut vcpus).await;
    }
    if let Some(shortage) = vcpus.shortage().filter(|_| before != Some(bandwidth)) {
        tracing::info!("the virtual machine of sandbox {}: {shortage}", shared.id);
    }
    before
}

/// Takes back the virtual CPUs that the VM does not need any more.
pub(super) async fn take_back(shared: &Shared) {
    let mut vcpus = shared.vcpus.lock().await;
    if vcpus.wanted() < vcpus.has() {
        shrink(shared, &mut vcpus).await;
    }
}

async fn grow(shared: &Shared, vcpus: &mut Vcpus) {
    let (count, new) = (vcpus.wanted(), vcpus.wanted() - vcpus.has());
    if !done(shared, "gets no more virtual CPUs", shared.vm.resize_vcpus(count)).await {
        return;
    }
    // Also if the guest does not use them: so they are taken away again.
    vcpus.now_has(count);
    if done(shared, "does not use its new virtual CPUs", shared.agent.use_cpus(count, new)).await {
        tracing::info!("sandbox {}: the virtual machine has {count} virtual CPUs", shared.id);
    }
}

async fn shrink(shared: &Shared, vcpus: &mut Vcpus) {
    let count = vcpus.wanted();
    // A CPU that is on would be switched off when it is taken away, but not every VMM takes one
    // away.
    if !done(shared, "keeps its virtual CPUs", shared.agent.use_cpus(count, 0)).await {
        return;
    }
    vcpus.now_has(count);
    if done(shared, "does not let virtual CPUs go", shared.vm.resize_vcpus(count)).await {
        tracing::info!("sandbox {}: the virtual machine has {count} virtual CPUs", shared.id);
    }
}
