//! `start`: runs the process of a container that was created.

use anyhow::{Context, Result, bail};
use kata_shim_api::api;

use super::Host;
use super::create::hook_state;
use crate::registry::{Stage, Status, UNKNOWN};
use crate::sandbox::{Sandbox, plain};

pub(super) fn run(host: &Host, id: &str) -> Result<()> {
    let locked = host.registry.lock(id)?.context(UNKNOWN)?;
    let mut container = locked.load()?.context(UNKNOWN)?;
    match container.status() {
        Status::Created => {}
        Status::Stopped => bail!("cannot start a container that has stopped"),
        Status::Creating => bail!("cannot start a container that is being created"),
        Status::Running => bail!("cannot start an already running container"),
        Status::Paused => bail!("cannot start a container in the paused state"),
    }
    let sandbox = Sandbox::open(&host.registry, &container.sandbox)?;
    let request = api::StartRequest { id: id.to_owned(), ..Default::default() };
    sandbox.call::<api::StartResponse>("Start", &request).map_err(plain)?;
    container.stage = Stage::Started;
    locked.save(&container)?;
    let state = hook_state(&container, "running", container.stand_in.pid);
    for error in kata_hooks::run_all("poststart", &container.poststart, &state) {
        host.report.warning(&error.to_string());
    }
    Ok(())
}
