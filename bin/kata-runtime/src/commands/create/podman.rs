//! Pods as Podman alone has them: such as have no infra container, and such as are restarted while
//! their containers run.

use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use kata_host_runtime::are_of_podman;

use super::super::{Host, delete, kill};
use crate::bundle::Bundle;
use crate::registry::{Container, Status};
use crate::signal;

/// The signal that asks a container to end, among its annotations.
const STOP_SIGNAL: &str = "org.opencontainers.image.stopSignal";

/// How long a container that is asked to end may take: what Podman gives it by default.
const GRACE: Duration = Duration::from_secs(10);

/// Whether the sandbox that a bundle names is nobody's. Containers of a pod without an infra
/// container name the pod itself, and share nothing: each is alone in a sandbox of its own.
pub(super) fn is_alone(host: &Host, bundle: &Bundle, sandbox: &str) -> Result<bool> {
    Ok(are_of_podman(bundle.spec.annotations().as_ref())
        && !bundle.joins_another()
        && !host.registry.has_heard_of(sandbox)?)
}

/// Ends the containers of a sandbox that is about to be made anew. `podman pod restart` stops and
/// starts one container after the other, the infra container first, which is the VM here: the
/// others find themselves ended when it is their turn.
pub(super) fn end_members(host: &Host, bundle: &Bundle, sandbox: &str) -> Result<()> {
    if !are_of_podman(bundle.spec.annotations().as_ref()) {
        return Ok(());
    }
    let is_running = |one: &Container| one.sandbox == sandbox && one.status() != Status::Stopped;
    let members: Vec<_> = host.registry.list()?.containers.into_iter().filter(is_running).collect();
    // Each by itself: a guest that does not answer is waited for.
    let ended: Vec<Result<()>> = thread::scope(|scope| {
        let end = |member| scope.spawn(move || end_member(host, member));
        let ends: Vec<_> = members.iter().map(end).collect();
        let joined =
            ends.into_iter().map(|end| end.join().unwrap_or_else(|_| bail!("a thread panicked")));
        joined.collect()
    });
    ended.into_iter().collect()
}

fn end_member(host: &Host, member: &Container) -> Result<()> {
    let signal = member.annotations.get(STOP_SIGNAL).map_or("", String::as_str);
    // One that cannot be asked is killed.
    let _ = signal::parse(signal).and_then(|signal| kill::send(host, member, signal, false));
    if member.stand_in.wait(GRACE) { Ok(()) } else { delete::end(host, member) }
}
