//! `pause` and `resume`.

use anyhow::{Context, Result, bail};
use kata_shim_api::api;

use super::Host;
use crate::registry::{Status, UNKNOWN};
use crate::sandbox::{Sandbox, is_late, is_refused, plain};

pub(super) fn pause(host: &Host, id: &str) -> Result<()> {
    let locked = host.registry.lock(id)?.context(UNKNOWN)?;
    let mut container = locked.load()?.context(UNKNOWN)?;
    // One that waits to be started can be frozen like one that runs, with runc, too.
    // It may only be thought to be frozen, where an earlier command was killed: the sandbox knows.
    let seems_paused = container.status() == Status::Paused;
    if !matches!(container.status(), Status::Created | Status::Running | Status::Paused) {
        bail!("container not running");
    }
    let sandbox = Sandbox::open(&host.registry, &container.sandbox)?;
    // Before it is done: who is killed, or waits in vain, meanwhile leaves a container that can be
    // resumed, frozen or not.
    container.paused = true;
    locked.save(&container)?;
    let request = api::PauseRequest { id: id.to_owned(), ..Default::default() };
    let paused = sandbox.call::<api::Empty>("Pause", &request);
    if let Err(error) = paused {
        if seems_paused && is_refused(&error) {
            bail!("container not running");
        }
        if !seems_paused && !is_late(&error) {
            container.paused = false;
            locked.save(&container)?;
        }
        return Err(plain(error));
    }
    Ok(())
}

pub(super) fn resume(host: &Host, id: &str) -> Result<()> {
    let locked = host.registry.lock(id)?.context(UNKNOWN)?;
    let mut container = locked.load()?.context(UNKNOWN)?;
    if container.status() != Status::Paused {
        bail!("container not paused");
    }
    let sandbox = Sandbox::open(&host.registry, &container.sandbox)?;
    let request = api::ResumeRequest { id: id.to_owned(), ..Default::default() };
    match sandbox.call::<api::Empty>("Resume", &request) {
        // It is not frozen: an earlier command was killed before it had frozen it, or after it had
        // thawed it.
        Ok(_) => {}
        Err(error) if is_refused(&error) => {}
        Err(error) => return Err(plain(error)),
    }
    container.paused = false;
    locked.save(&container)
}
