//! `start`: runs the process of a container that was created, and its poststart hooks. The first of
//! these that fails ends the container, as with runc.

use std::path::Path;

use anyhow::{Context, Result, bail};
use kata_network::Namespace;
use kata_shim_api::api;

use super::create::hook_state;
use super::{Host, delete};
use crate::registry::{Container, Stage, Status, UNKNOWN};
use crate::sandbox::{Sandbox, is_refused, plain};

pub(super) fn run(host: &Host, id: &str) -> Result<()> {
    let locked = host.registry.lock(id)?.context(UNKNOWN)?;
    let mut container = locked.load()?.context(UNKNOWN)?;
    // It may only be thought to run, where an earlier command was killed: the sandbox knows.
    let seems_to_run = container.status() == Status::Running;
    match container.status() {
        Status::Created | Status::Running => {}
        Status::Stopped => bail!("cannot start a container that has stopped"),
        Status::Creating => bail!("cannot start a container that is being created"),
        Status::Paused => bail!("cannot start a container in the paused state"),
    }
    let sandbox = Sandbox::open(&host.registry, &container.sandbox)?;
    if container.sandbox == container.id && !seems_to_run {
        // The network is what it is now: the start takes it over.
        host.report.note(|| no_network(&container));
    }
    // Before it is done: who is killed meanwhile leaves a container that may run.
    container.stage = Stage::Started;
    locked.save(&container)?;
    let request = api::StartRequest { id: id.to_owned(), ..Default::default() };
    if let Err(error) = sandbox.call::<api::StartResponse>("Start", &request) {
        if seems_to_run && is_refused(&error) {
            bail!("cannot start an already running container");
        }
        if !seems_to_run {
            container.stage = Stage::Created;
            locked.save(&container)?;
        }
        return Err(plain(error));
    }
    let state = hook_state(&container, "running", container.stand_in.pid);
    let run = kata_hooks::run("poststart", &container.poststart, &state);
    if run.is_err()
        && let Err(error) = delete::end(host, &container)
    {
        // What to do about the hook is what the caller has to be told.
        host.report.warning(&format!("after the failure: {error:#}"));
    }
    Ok(run?)
}

/// What there is to tell of a network namespace that is empty. The sandbox's owner has it in its
/// own log, which goes with the sandbox.
fn no_network(container: &Container) -> Option<String> {
    let path = format!("/proc/{}/ns/net", container.stand_in.pid);
    // That it cannot be looked at is the start's to tell.
    let namespace = Namespace::open(Path::new(&path)).ok()?;
    let there = kata_network::scan_blocking(&namespace).ok()?;
    kata_network::in_use(&there).next().is_none().then(|| {
        format!(
            "no interface but lo is in the network namespace of container {}, so it has no network",
            container.id
        )
    })
}
