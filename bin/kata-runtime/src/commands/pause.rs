//! `pause` and `resume`.

use anyhow::{Context, Result, bail};
use kata_shim_api::api;

use super::Host;
use crate::registry::{Status, UNKNOWN};
use crate::sandbox::{Sandbox, plain};

pub(super) fn pause(host: &Host, id: &str) -> Result<()> {
    let locked = host.registry.lock(id)?.context(UNKNOWN)?;
    let mut container = locked.load()?.context(UNKNOWN)?;
    // One that waits to be started can be frozen like one that runs, with runc, too.
    if !matches!(container.status(), Status::Created | Status::Running) {
        bail!("container not running");
    }
    let sandbox = Sandbox::open(&host.registry, &container.sandbox)?;
    let request = api::PauseRequest { id: id.to_owned(), ..Default::default() };
    sandbox.call::<api::Empty>("Pause", &request).map_err(plain)?;
    container.paused = true;
    locked.save(&container)
}

pub(super) fn resume(host: &Host, id: &str) -> Result<()> {
    let locked = host.registry.lock(id)?.context(UNKNOWN)?;
    let mut container = locked.load()?.context(UNKNOWN)?;
    if container.status() != Status::Paused {
        bail!("container not paused");
    }
    let sandbox = Sandbox::open(&host.registry, &container.sandbox)?;
    let request = api::ResumeRequest { id: id.to_owned(), ..Default::default() };
    sandbox.call::<api::Empty>("Resume", &request).map_err(plain)?;
    container.paused = false;
    locked.save(&container)
}
