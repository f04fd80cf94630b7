//! `run`: create, start, wait, delete.

use anyhow::{Context, Result};

use super::{Host, create, delete, start};
use crate::bundle::Bundle;
use crate::cli::RunArgs;
use crate::foreground::Foreground;
use crate::terminal::RawTerminal;

/// Returns the status of the container's process.
pub(super) fn run(host: &Host, args: &RunArgs) -> Result<u8> {
    carry_out(host, args).context("kata-runtime run failed")
}

fn carry_out(host: &Host, args: &RunArgs) -> Result<u8> {
    let id = &args.create.id;
    if args.detach {
        create::create(host, &args.create, true)?;
        return start_or_delete(host, id).map(|()| 0);
    }
    let mut foreground = Foreground::begin()?;
    let has_terminal = Bundle::load(&args.create.bundle)?.terminal();
    let mut stand_in = create::create(host, &args.create, false)?;
    let raw = if has_terminal { RawTerminal::of_stdin() } else { None };
    start_or_delete(host, id)?;
    let status = foreground.wait(&mut stand_in);
    drop(raw);
    if !args.keep
        && let Err(error) = delete::ended(host, id)
    {
        // How the process has ended is what the caller has to be told.
        host.report.warning(&format!("{error:#}"));
    }
    status
}

fn start_or_delete(host: &Host, id: &str) -> Result<()> {
    let started = start::run(host, id);
    if started.is_err()
        && let Err(error) = delete::ended(host, id)
    {
        host.report.warning(&format!("after the failure: {error:#}"));
    }
    started
}
