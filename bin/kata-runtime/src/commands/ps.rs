//! `ps`: the host's processes that stand for those of a container.

use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Host, print};
use crate::cli::{ListFormat, PsArgs};
use crate::registry::{self, Status};

pub(super) fn run(host: &Host, args: &PsArgs) -> Result<()> {
    let container = host.registry.load(&args.id)?;
    let mut pids = Vec::new();
    if container.status() != Status::Stopped {
        pids.push(container.stand_in.pid);
        let dir = host.registry.dir(&args.id)?;
        pids.extend(registry::execs(&dir).iter().map(|exec| exec.pid));
        pids.sort_unstable();
    }
    match args.format {
        ListFormat::Json if pids.is_empty() => print("null\n"),
        ListFormat::Json => print(&format!("{}\n", serde_json::to_string(&pids)?)),
        ListFormat::Table => print(&table(&args.ps_args, &pids)?),
    }
}

/// What ps(1) says of these processes.
fn table(args: &[String], pids: &[u32]) -> Result<String> {
    let mut ps = Command::new("ps");
    if args.is_empty() {
        ps.arg("-ef");
    } else {
        ps.args(args);
    }
    let output = ps.output().context("cannot run ps")?;
    if !output.status.success() {
        bail!("ps has failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let heading = lines.next().unwrap_or_default();
    let column = heading.split_whitespace().position(|name| name == "PID");
    let column = column.context("couldn't find PID field in ps output")?;
    let is_ours = |line: &&str| {
        let pid = line.split_whitespace().nth(column).and_then(|pid| pid.parse().ok());
        pid.is_some_and(|pid: u32| pids.contains(&pid))
    };
    Ok(std::iter::once(heading)
        .chain(lines.filter(is_ours))
        .map(|line| format!("{line}\n"))
        .collect())
}
