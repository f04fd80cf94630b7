//! `delete`: removes a container that has ended, and with the last one its sandbox.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use kata_linux::cgroup::HostCgroup;
use kata_shim_api::{api, metadata};

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
        Ok(None) => {
            return match locked.forgotten() {
                // Its removal was killed.
                Ok(Some(container)) => remove(host, locked, &container),
                // Its creation was, before there was anything to know.
                _ => forget(host, locked, id),
            };
        }
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
    // A stand-in that is on its way out removes it itself.
    let cgroup = locked.announced_cgroup();
    let cgroup = cgroup.and_then(|path| HostCgroup::at(&path).ok());
    give_back(host, locked, Some(id), cgroup, None)
}

/// Gives back what a container that has ended has taken: its place in the sandbox, if it has one,
/// and the sandbox with its last one; its cgroup; what the poststop hooks undo, if it is known; and
/// its id last of all, so that whoever takes that anew finds nothing of this one. A sandbox that
/// cannot be removed does not keep the id: the next one's creation tries again.
pub(super) fn give_back(
    host: &Host,
    locked: Locked,
    sandbox: Option<&str>,
    cgroup: Option<HostCgroup>,
    container: Option<&Container>,
) -> Result<()> {
    let leave = |holder: Option<&Locked>| {
        sandbox.map_or(Ok(()), |id| sandbox::remove(&host.registry, id, holder))
    };
    locked.forget()?;
    let left = leave(Some(&locked));
    // Another container may be in it, as in that of a sandbox that lives on, or the engine may have
    // removed it.
    let _ = cgroup.map(|cgroup| cgroup.remove());
    if let Some(container) = container {
        run_poststop(host, container);
    }
    locked.remove()?;
    // One that went meanwhile may have left it to the first, as long as that one's id was taken.
    left.and_then(|()| leave(None))
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
        // Its stand-in has done that, unless it was killed: then the container may still be ending.
        let request = api::DeleteRequest { id: container.id.clone(), ..Default::default() };
        let along = [(metadata::FORCE, "")];
        let _ = sandbox.call_along::<api::DeleteResponse>("Delete", &request, &along);
    }
    let cgroup = HostCgroup::from_dirs(container.cgroups.clone());
    give_back(host, locked, Some(&container.sandbox), Some(cgroup), Some(container))
}

/// Runs the hooks that follow a container's end. That one has failed is told, and changes nothing.
fn run_poststop(host: &Host, container: &Container) {
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
    use std::path::Path;

    use super::*;
    use crate::cli::LogFormat;
    use crate::registry::Registry;
    use crate::report::Report;

    fn host(root: &Path) -> Host {
        Host {
            registry: Registry::new(root).unwrap(),
            report: Report::to(None, LogFormat::Text),
            config: String::new(),
            systemd_cgroup: false,
            debug: false,
        }
    }

    #[test]
    fn id_is_taken_until_nothing_is_left_of_the_container() {
        let root = tempfile::tempdir().unwrap();
        let host = host(&root.path().join("root"));
        let cgroup = root.path().join("cgroup");
        std::fs::create_dir(&cgroup).unwrap();
        let locked = host.registry.reserve("c").unwrap();
        let state = locked.dir().join("state.json");
        std::fs::write(&state, "{}").unwrap();
        let (sandbox, _listener) = Sandbox::make(&host.registry, "c").unwrap();
        let mut proxy = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        sandbox.record_proxy(proxy.id()).unwrap();
        std::thread::scope(|scope| {
            let cgroup = HostCgroup::from_dirs(vec![cgroup.clone()]);
            let removal = scope.spawn(|| give_back(&host, locked, Some("c"), Some(cgroup), None));
            // Then it waits for the proxy.
            while state.exists() {}
            let taken = host.registry.reserve("c").unwrap_err().to_string();
            proxy.kill().unwrap();
            proxy.wait().unwrap();
            removal.join().unwrap().unwrap();
            assert_eq!(taken, "container with given ID already exists");
        });
        assert!(!cgroup.exists() && !sandbox.dir.exists());
        host.registry.reserve("c").unwrap();
    }

    #[test]
    fn removal_that_was_killed_goes_on_where_it_was() {
        let root = tempfile::tempdir().unwrap();
        let host = host(root.path());
        let member =
            r#"{"id":"c","sandbox":"p","stand_in":{"pid":1,"start_time":1},"stage":"started"}"#;
        let locked = host.registry.reserve("c").unwrap();
        locked.save(&serde_json::from_str(member).unwrap()).unwrap();
        let (sandbox, listener) = Sandbox::make(&host.registry, "q").unwrap();
        drop(listener);
        let of_member = sandbox.dir.with_file_name("p");
        std::fs::rename(&sandbox.dir, &of_member).unwrap();
        locked.forget().unwrap();
        drop(locked);
        run(&host, "c", false).unwrap();
        assert!(!of_member.exists(), "the last member's sandbox stays");
        host.registry.reserve("c").unwrap();
    }

    #[test]
    fn a_container_that_cannot_be_read_is_removed_by_force_and_in_nobodys_way() {
        let root = tempfile::tempdir().unwrap();
        let host = host(root.path());
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
