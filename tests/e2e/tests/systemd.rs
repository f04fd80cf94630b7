//! Podman and Docker with systemd for their cgroups, as on nearly every host that has systemd. The
//! runtime is told the names of a slice and of a scope; whoever has a VM must find all of it there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use kata_e2e::{Engine, Input, Part, Process, docker_with_systemd, only_a_vm, podman_with_systemd};

/// Says `up`, and ends at SIGTERM with code 3.
const SERVER: &str = "trap 'echo bye; exit 3' TERM; echo up; sleep 1000 & wait";

/// What an engine counts at least of a guest that has booted. A stand-in alone has a tenth of it.
const OF_A_GUEST: u64 = 20 << 20;

#[test]
fn podmans_container_is_in_the_scope_that_systemd_would_give_it() -> Result<()> {
    podman_with_systemd(|podman| {
        podman.start("web", "--network none --memory 200m --cpus 0.5", SERVER)?;
        let id = podman.inspect("web", "{{.ID}}")?;
        lives(podman, &format!("machine.slice/libpod-{id}.scope"), "{{.MemUsage}} {{.PIDS}}")
    })
}

#[test]
fn dockers_container_is_in_the_scope_that_systemd_would_give_it() -> Result<()> {
    docker_with_systemd(|docker| {
        docker.start("web", "--network none --memory 200m --cpus 0.5", SERVER)?;
        let id = docker.inspect("web", "{{.Id}}")?;
        lives(docker, &format!("system.slice/docker-{id}.scope"), "{{.MemUsage}} {{.PIDs}}")?;
        // Also where it takes long to touch all the memory that a scope has in its caches.
        let greedy = docker.run("--name greedy --network none --memory 64m", "exec tail /dev/zero");
        assert_eq!(greedy.output()?.code, 137);
        let end = docker.inspect("greedy", "{{.State.ExitCode}} {{.State.OOMKilled}}")?;
        assert_eq!(end, "137 true");
        docker.succeed("rm greedy").map(drop)
    })
}

/// Goes through the life of `web`, which runs already and whose cgroup is `scope`.
fn lives(engine: &Engine, scope: &str, figures: &str) -> Result<()> {
    engine.says("web", "up")?;
    if only_a_vm("a cgroup of the second version whatever the host has") {
        assert_eq!(
            engine.shell("web", "cd /sys/fs/cgroup; cat memory.max cpu.max")?,
            "209715200\n50000 100000"
        );
    }
    is_in(engine, scope)?;
    is_counted(engine, scope, figures)?;
    // systemd looks at all of its cgroups again, and at what it has not made itself.
    systemctl("daemon-reload", std::iter::empty())?;
    is_in(engine, scope)?;
    is_counted(engine, scope, figures)?;
    engine.succeed("update --cpus 1 web")?;
    engine.succeed("pause web")?;
    engine.succeed("unpause web")?;
    engine.succeed("stop web")?;
    assert_eq!(engine.inspect("web", "{{.State.Status}} {{.State.ExitCode}}")?, "exited 3");
    goes(scope)?;
    // In the same place again.
    engine.succeed("start web")?;
    is_in(engine, scope)?;
    engine.succeed("rm --force web")?;
    goes(scope)
}

/// Whether the stand-in is in the cgroup itself and all else of the sandbox within it.
fn is_in(engine: &Engine, scope: &str) -> Result<()> {
    if !only_a_vm("the parts of a sandbox") {
        return Ok(());
    }
    let is_one = |process: &Process, matches: &dyn Fn(&str) -> bool| {
        let groups = process.cgroups()?;
        let all = !groups.is_empty() && groups.iter().all(|group| matches(group));
        ensure!(all, "{} is in {groups:?} and not in {scope}", process.describe());
        anyhow::Ok(())
    };
    for part in [Part::StandIn, Part::Proxy, Part::Vmm] {
        let found = engine.parts_of("web", part)?;
        ensure!(!found.is_empty(), "there is no process of {part:?}");
        for process in &found {
            match part {
                Part::StandIn => is_one(process, &|group| group == format!("/{scope}"))?,
                _ => is_one(process, &|group| group.starts_with(&format!("/{scope}/")))?,
            }
        }
    }
    Ok(())
}

/// Whether the engine counts what the VM uses, as the kernel does.
fn is_counted(engine: &Engine, scope: &str, figures: &str) -> Result<()> {
    let used: u64 = read(&directory(scope).join("memory.current"))?.parse()?;
    ensure!(used > OF_A_GUEST || !only_a_vm("a guest's memory"), "{scope} uses {used} bytes only");
    for file in ["cpu.stat", "pids.current", "io.stat"] {
        let path = directory(scope).join(file);
        ensure!(path.exists(), "{} is missing", path.display());
    }
    let told = engine.call_with(["stats", "--no-stream", "--format", figures, "web"])?.success()?;
    let pids = told.split_whitespace().last().context("no figures")?;
    ensure!(told.contains("B /") && !told.starts_with("0B"), "{told}");
    ensure!(pids.parse::<u32>().is_ok_and(|pids| pids > 0), "{told}");
    Ok(())
}

/// Whether the cgroup has gone with its container.
fn goes(scope: &str) -> Result<()> {
    let directory = directory(scope);
    let parent = directory.parent().context("a scope is in a slice")?;
    ensure!(!directory.exists(), "{} is left in {}", directory.display(), parent.display());
    Ok(())
}

/// Where the second version of cgroups has it, which systemd mounts there.
fn directory(scope: &str) -> PathBuf {
    Path::new("/sys/fs/cgroup").join(scope)
}

fn read(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("no {}", path.display()))?;
    Ok(text.trim().to_owned())
}

#[test]
fn pods_slice_holds_its_members_and_goes_with_it() -> Result<()> {
    podman_with_systemd(|podman| {
        podman.succeed("pod create --name pod --network none")?;
        podman.start("web", "--pod pod --memory 64m", SERVER)?;
        podman.says("web", "up")?;
        let (id, pod) = (podman.inspect("web", "{{.ID}}")?, podman.inspect("web", "{{.Pod}}")?);
        let slice = format!("machine.slice/machine-libpod_pod_{pod}.slice");
        let scope = directory(&slice).join(format!("libpod-{id}.scope"));
        ensure!(scope.is_dir(), "{} is not there", scope.display());
        // The VM is the pod's, and in its slice.
        let used: u64 = read(&directory(&slice).join("memory.current"))?.parse()?;
        ensure!(used > OF_A_GUEST || !only_a_vm("a guest's memory"), "{slice}: {used} bytes only");
        podman.succeed("pod rm --force --time 1 pod")?;
        goes(&slice)
    })
}

/// What services of systemd's are told besides, until this is dropped.
struct Told(Vec<String>);

impl Told {
    fn tell(variables: &[(&str, PathBuf)]) -> Result<Self> {
        let pairs = variables.iter().map(|(name, path)| format!("{name}={}", path.display()));
        systemctl("set-environment", pairs)?;
        Ok(Self(variables.iter().map(|(name, _)| (*name).to_owned()).collect()))
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        // The test's own result counts more.
        let _ = systemctl("unset-environment", self.0.drain(..));
    }
}

fn systemctl(command: &str, words: impl Iterator<Item = String>) -> Result<()> {
    let status = Command::new("systemctl").arg(command).args(words).status();
    ensure!(status.context("cannot run systemctl")?.success(), "systemctl {command} has failed");
    Ok(())
}

/// Docker's daemon looks itself. Podman has a timer of systemd's call it, which passes the id on,
/// and nothing about this Podman's directories.
#[test]
fn podmans_health_checks_come_from_a_timer() -> Result<()> {
    podman_with_systemd(|podman| {
        let _told = Told::tell(&[
            ("CONTAINERS_CONF", podman.file("containers.conf")),
            ("CONTAINERS_STORAGE_CONF", podman.file("storage.conf")),
        ])?;
        let health = "--health-cmd cat</srv/of-user --health-interval 1s --health-retries 2";
        podman.start("web", &format!("--network none {health}"), SERVER)?;
        let events = "events --since 1h --filter container=web --filter event=health_status";
        let events = podman.attach(events, Input::Nothing)?;
        let is_said_to_be = |health: &str| {
            events.expect(&format!("health_status={health}"))?;
            assert_eq!(podman.inspect("web", "{{.State.Health.Status}}")?, health);
            anyhow::Ok(())
        };
        is_said_to_be("healthy")?;
        podman.shell("web", "rm /srv/of-user")?;
        is_said_to_be("unhealthy")?;
        podman.succeed("rm --force --time 0 web").map(drop)
    })
}
