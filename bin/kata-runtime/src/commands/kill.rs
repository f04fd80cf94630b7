//! `kill`: sends a signal.

use std::time::Duration;

use anyhow::{Result, bail};
use kata_shim_api::api;

use super::Host;
use crate::cli::KillArgs;
use crate::registry::{Container, Status};
use crate::sandbox::{Sandbox, has_ended, plain};
use crate::signal;

/// How long the host's process may take to follow the one in the guest that has ended.
const PATIENCE: Duration = Duration::from_secs(2);

/// What runc says of one that has ended; engines look for it.
const NOT_RUNNING: &str = "container not running";

pub(super) fn run(host: &Host, args: &KillArgs) -> Result<()> {
    let container = host.registry.load(&args.id)?;
    let signal = signal::parse(&args.signal)?;
    match container.status() {
        // Nothing is left that the signal could miss.
        Status::Stopped if args.all => Ok(()),
        Status::Stopped => bail!(NOT_RUNNING),
        _ if signal == 0 => Ok(()),
        _ => send(host, &container, signal, args.all),
    }
}

/// Sends a signal to a container that has not stopped, as far as is known.
pub(super) fn send(host: &Host, container: &Container, signal: u32, all: bool) -> Result<()> {
    let sandbox = Sandbox::open(&host.registry, &container.sandbox)?;
    let request = api::KillRequest { id: container.id.clone(), signal, all, ..Default::default() };
    match sandbox.call::<api::Empty>("Kill", &request) {
        Ok(_) => Ok(()),
        Err(error) if has_ended(&error) => {
            // Who is told so asks how it stands next, and is not to find it running. One whose last
            // output nobody takes may.
            let _ = container.stand_in.wait(PATIENCE);
            if all { Ok(()) } else { bail!(NOT_RUNNING) }
        }
        Err(error) => Err(plain(error)),
    }
}
