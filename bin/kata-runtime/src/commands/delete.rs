//! `delete`: removes a container that has ended, and with the last one its sandbox.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use kata_linux::cgroup::HostCgroup;
use kata_shim_api::api;

use super::Host;
use super::create::hook_state;
use super::kill;
use crate::registry::{Container, Locked, Status, UNKNOWN};
use crate::sandbox::{self, Sandbox};

/// SIGKILL.
const KILL: u32 = 9;

/// How long a killed container may take to end before its stand-in is killed, and that to be gone.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn run(host: &Host, id: &str, force: bool) -> Result<()> {
    let Some(locked) = host.registry.lock(id)? else {
        return if force { Ok(()) } else { Err(anyhow::anyhow!(UNKNOWN)) };
    };
    let container = match locked.load() {
        Ok(Some(container)) => container,
        // Its creation was killed before there was anything to know.
        Ok(None) => return forget(host, locked, id),
        Err(error) if force => {
            host.report.warning(&format!(
                "{error:#}; its poststop hooks are not run, and what it has in another one's sandbox goes with that"
            ));
            return forget(host, locked, id);
        }
        Err(error) => {
            let unknown = format!("nothing is known of container {id}, which --force removes");
            return Err(error.context(unknown));
        }
    };
    match container.status() {
        Status::Stopped => {}
        Status::Running | Status::Paused if !force => {
            let status = container.status().word();
            bail!("cannot delete container {id} that is not stopped: {status}")
        }
        _ => end(host, &container)?,
    }
    remove(host, locked, &container)
}

/// Removes a container of which no more is known than its cgroup, and the sandbox that has its id,
/// unless others are in it.
fn forget(host: &Host, locked: Locked, id: &str) -> Result<()> {
    let cgroup = locked.announced_cgroup();
    locked.remove()?;
    let removed = sandbox::remove(&host.registry, id);
    if let Some(cgroup) = cgroup {
        // Another container may be in it, or the engine may have removed it; a stand-in that is on
        // its way out removes it itself.
        let _ = HostCgroup::at(&cgroup).and_then(|cgroup| cgroup.remove());
    }
    removed
}

/// Kills a container and waits for its end.
pub(super) fn end(host: &Host, container: &Container) -> Result<()> {
    // One that has ended meanwhile, or whose sandbox is dead, is as good as killed.
    let _ = kill::send(host, container, KILL, false);
    if container.stand_in.wait(PATIENCE) || container.stand_in.kill_and_wait(PATIENCE) {
        return Ok(());
    }
    bail!("container {} does not end, although it was killed", container.id)
}

/// Removes a container that has ended.
pub(super) fn remove(host: &Host, locked: Locked, container: &Container) -> Result<()> {
    if let Ok(sandbox) = Sandbox::open(&host.registry, &container.sandbox) {
        // Its stand-in has done that, unless it was killed.
        let request = api::DeleteRequest { id: container.id.clone(), ..Default::default() };
        let _ = sandbox.call::<api::DeleteResponse>("Delete", &request);
    }
    locked.remove()?;
    sandbox::remove(&host.registry, &container.sandbox)?;
    // The cgroup of a sandbox that lives on is still needed, and one that the engine has removed is
    // fine.
    let _ = HostCgroup::from_dirs(container.cgroups.clone()).remove();
    run_poststop(host, container);
    Ok(())
}

/// Runs the hooks that follow a container's end. That one has failed is told, and changes nothing.
pub(super) fn run_poststop(host: &Host, container: &Container) {
    let state = hook_state(container, "stopped", 0);
    for error in kata_hooks::run_all("poststop", &container.poststop, &state) {
        host.report.warning(&error.to_string());
    }
}

/// As [`run`] for a container that this process has made and seen end.
pub(super) fn ended(host: &Host, id: &str) -> Result<()> {
    run(host, id, true).with_context(|| format!("cannot delete container {id}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::LogFormat;
    use crate::registry::Registry;
    use crate::report::Report;

    #[test]
    fn a_container_that_cannot_be_read_is_removed_by_force_and_in_nobodys_way() {
        let root = tempfile::tempdir().unwrap();
        let host = Host {
            registry: Registry::new(root.path()).unwrap(),
            report: Report::to(None, LogFormat::Text),
            config: String::new(),
            systemd_cgroup: false,
            debug: false,
        };
        let bad = host.registry.reserve("bad").unwrap().dir().to_owned();
        std::fs::write(bad.join("state.json"), "{").unwrap();
        host.registry.reserve("other").unwrap();
        let (sandbox, _listener) = Sandbox::make(&host.registry, "other").unwrap();
        run(&host, "other", false).unwrap();
        assert!(!sandbox.dir.exists());

        let (sandbox, _listener) = Sandbox::make(&host.registry, "bad").unwrap();
        let error = format!("{:#}", run(&host, "bad", false).unwrap_err());
        assert!(error.starts_with("nothing is known of container bad"), "{error}");
        assert!(bad.exists());
        run(&host, "bad", true).unwrap();
        assert!(!bad.exists() && !sandbox.dir.exists());
    }
}
