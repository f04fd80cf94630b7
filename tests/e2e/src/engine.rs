//! Engines that call the OCI command line: Podman, and Docker's daemon, each with directories,
//! images and a network of its own.
//!
//! ```text
//!   podman(|podman| {                                      or docker(|docker| …): the same words for both
//!       podman.run("--rm --user 7", "id -u").output()?     one `podman run` of a shell to be
//!       podman.start("web", "-p 80:80", "…")?              a detached one
//!       podman.succeed("stop --time 1 web")?               any other command
//!   })                                                     the leak check, whatever happened before
//! ```

mod docker;
mod podman;
mod release;

use std::ffi::OsString;
use std::fs;
use std::net::Ipv4Addr;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::client::{self, Client, Input, Output};
use crate::configuration::file_under_test;
use crate::deadline::Deadline;
use crate::image::Image;
use crate::leaks::{EngineTraces, Machine};
use crate::mark::Mark;
use crate::name_server::NameServer;
use crate::netns::{Netns, PICTURE};
use crate::process::{Part, Process, await_part, parts_of};
use crate::runtime::{Installation, Runtime};
use crate::scenario::sweep;
use crate::stream::tail;

use docker::Dockerd;

/// Less than any VM takes, in bytes, and far more than kata-shim does.
const LEAST_OF_A_VM: f64 = 32.0 * 1024.0 * 1024.0;

/// The image of all containers, and of a pod's first one.
const IMAGE: &str = "localhost/busybox";

/// Runs `test` with a Podman of its own, and checks that nothing is left. What the test left on
/// purpose is an error, too.
pub fn podman(test: impl FnOnce(&Engine) -> Result<()>) -> Result<()> {
    scenario(Kind::Podman, Cgroups::Plain, file_under_test().as_deref(), test)
}

/// Runs `test` with a Docker daemon of its own, and checks that nothing is left. What the test left
/// on purpose is an error, too.
pub fn docker(test: impl FnOnce(&Engine) -> Result<()>) -> Result<()> {
    scenario(Kind::Docker, Cgroups::Plain, file_under_test().as_deref(), test)
}

/// As [`podman`], with systemd for its cgroups. Left out, and said so, where systemd is not the
/// host's init.
pub fn podman_with_systemd(test: impl FnOnce(&Engine) -> Result<()>) -> Result<()> {
    with_systemd(Kind::Podman, test)
}

/// As [`docker`], with systemd for its cgroups. Left out, and said so, where systemd is not the
/// host's init.
pub fn docker_with_systemd(test: impl FnOnce(&Engine) -> Result<()>) -> Result<()> {
    with_systemd(Kind::Docker, test)
}

/// As [`docker`], with the shim in place of the command line: Docker's containerd starts it. With
/// `configuration` as the runtime's file, if one is given. Left out, and said so, where Docker is
/// too old to know other shims than runc's.
pub fn docker_with_shim(
    configuration: Option<&Path>,
    test: impl FnOnce(&Engine) -> Result<()>,
) -> Result<()> {
    if !docker::knows_shims()? {
        return Ok(());
    }
    let file = configuration.map(Path::to_owned).or_else(file_under_test);
    scenario(Kind::DockerWithShim, Cgroups::Plain, file.as_deref(), test)
}

/// As [`podman`] and [`docker`], one in the other, with this configuration file of the runtime.
pub fn podman_and_docker(
    configuration: &Path,
    test: impl FnOnce(&Engine, &Engine) -> Result<()>,
) -> Result<()> {
    let file = Some(configuration);
    scenario(Kind::Podman, Cgroups::Plain, file, |podman| {
        scenario(Kind::Docker, Cgroups::Plain, file, |docker| test(podman, docker))
    })
}

fn with_systemd(kind: Kind, test: impl FnOnce(&Engine) -> Result<()>) -> Result<()> {
    // Where it says so of itself (sd_booted(3)).
    if !Path::new("/run/systemd/system").is_dir() {
        eprintln!("left out, for systemd is not this machine's init: cgroups of systemd's");
        return Ok(());
    }
    scenario(kind, Cgroups::Systemd, file_under_test().as_deref(), test)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Podman,
    /// Runc's shim starts the runtime's command line.
    Docker,
    /// The runtime has a shim of its own.
    DockerWithShim,
}

/// Who makes the engine's cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cgroups {
    /// The engine and its runtime, by themselves.
    Plain,
    /// systemd, in its slices; the runtime is told names for scopes of it.
    Systemd,
}

impl Cgroups {
    /// As both engines call it.
    fn manager(self) -> &'static str {
        match self {
            Self::Plain => "cgroupfs",
            Self::Systemd => "systemd",
        }
    }
}

/// A Podman or Docker with a directory and a network namespace of its own, the runtime under test
/// as its default, and an image.
#[derive(Debug)]
pub struct Engine {
    kind: Kind,
    cgroups: Cgroups,
    mark: Mark,
    directory: TempDir,
    network: Netns,
    // Locked only to replace the daemon when it is started again; `None` for Podman, which has
    // none.
    daemon: Mutex<Option<Dockerd>>,
    // Of the containers that were started detached. Locked only to add one or copy them.
    ids: Mutex<Vec<String>>,
}

fn scenario(
    kind: Kind,
    cgroups: Cgroups,
    configuration: Option<&Path>,
    test: impl FnOnce(&Engine) -> Result<()>,
) -> Result<()> {
    if Runtime::under_test() == Runtime::Kata {
        Installation::under_test().check()?;
    }
    let before = Machine::now();
    let engine = Engine::start_up(kind, cgroups, configuration)?;
    let traces = EngineTraces::of(&engine, before);
    // An assertion that fails shall not leave its containers to the next test.
    let result =
        panic::catch_unwind(AssertUnwindSafe(|| engine.import().and_then(|()| test(&engine))))
            .unwrap_or_else(|_| bail!("an assertion failed; it is printed above"))
            .and_then(|()| engine.nothing_is_known())
            .and_then(|()| traces.vanish())
            .with_context(|| format!("the engine says:\n{}", engine.log_tail()));
    if result.is_err() {
        // The failure was told already, and the next test shall not suffer.
        engine.remove_all();
    }
    let stopped = engine.stop();
    let result = result.and(stopped).and_then(|()| traces.vanish_with_daemon());
    sweep(&engine.mark);
    for id in engine.ids() {
        sweep(&Mark::of(&id));
    }
    result
}

impl Engine {
    fn start_up(kind: Kind, cgroups: Cgroups, configuration: Option<&Path>) -> Result<Self> {
        let mark = Mark::unique();
        let directory = tempfile::Builder::new()
            .prefix(&format!("kata-{mark}-"))
            .tempdir()
            .context("cannot make a directory for the engine")?;
        let network = Netns::new(&mark)?;
        let mut engine = Self {
            kind,
            cgroups,
            mark,
            directory,
            network,
            daemon: Mutex::new(None),
            ids: Mutex::new(Vec::new()),
        };
        // Beside the engine's own files, so that it carries the mark. For one that is empty
        // defaults stand.
        let text = configuration.map_or_else(|| Ok(String::new()), fs::read_to_string);
        text.and_then(|text| fs::write(engine.file("configuration.toml"), text))
            .context("cannot copy the runtime's configuration")?;
        match kind {
            Kind::Podman => podman::configure(&engine)?,
            Kind::Docker | Kind::DockerWithShim => {
                let daemon = Dockerd::start(&engine)?;
                engine.daemon = Mutex::new(Some(daemon));
            }
        }
        Ok(engine)
    }

    /// Makes the image from the busybox of this machine.
    fn import(&self) -> Result<()> {
        let layer = self.file("layer.tar");
        fs::write(&layer, Image::layer()?).context("cannot write the image")?;
        // Processes that are the first of their container heed a signal only if they say so.
        let command = r#"CMD ["sh", "-c", "trap exit TERM; sleep 1000 & wait"]"#;
        let mut import = self.command();
        import.args(["import", "--change", command]).arg(layer).arg(IMAGE);
        client::run(import)?.success().map(drop).context("cannot import the image")
    }

    /// Runs the engine's client with these words to its end.
    pub fn call(&self, words: &str) -> Result<Output> {
        self.call_with(words.split_whitespace())
    }

    /// Runs the engine's client to its end, for arguments that have spaces.
    pub fn call_with<A: Into<OsString>>(
        &self,
        args: impl IntoIterator<Item = A>,
    ) -> Result<Output> {
        let mut command = self.command();
        command.args(args.into_iter().map(Into::into));
        client::run(command)
    }

    /// Runs the engine's client with these words to its end, which must be a good one. Returns what
    /// it has said, without the last line end.
    pub fn succeed(&self, words: &str) -> Result<String> {
        let said = self.call(words)?.success().with_context(|| words.to_owned())?;
        Ok(said.trim_end().to_owned())
    }

    /// Starts the engine's client with these words.
    pub fn attach(&self, words: &str, input: Input) -> Result<Client> {
        let mut command = self.command();
        command.args(words.split_whitespace());
        Client::spawn(command, input)
    }

    /// One `run` to be with these flags; the container runs a shell with `script`.
    pub fn run<'a>(&'a self, flags: &str, script: &str) -> EngineRun<'a> {
        let words = flags.split_whitespace().map(Into::into);
        let command = [IMAGE, "sh", "-c", script].map(OsString::from);
        let args = std::iter::once("run".into()).chain(words).chain(command).collect();
        EngineRun { engine: self, args, input: Input::Nothing }
    }

    /// Starts a container `name` with these flags that runs a shell with `script` by itself.
    pub fn start(&self, name: &str, flags: &str, script: &str) -> Result<()> {
        let run = self.run(&format!("--detach --name {name} {flags}"), script);
        let id = run.output()?.success().with_context(|| format!("cannot start {name}"))?;
        self.ids_mut().push(id.trim_end().to_owned());
        Ok(())
    }

    /// Runs a shell with `script` in a container to its end, which must be a good one. Returns what
    /// it has said, without the last line end.
    pub fn shell(&self, container: &str, script: &str) -> Result<String> {
        let said = self.call_with(["exec", container, "sh", "-c", script])?;
        let said = said.success().with_context(|| format!("in {container}: {script}"))?;
        Ok(said.trim_end().to_owned())
    }

    /// What `inspect --format` says of a container.
    pub fn inspect(&self, container: &str, format: &str) -> Result<String> {
        let said = self.call_with(["inspect", "--format", format, container])?.success()?;
        Ok(said.trim_end().to_owned())
    }

    /// The exit code, and whether Podman was told that memory was wanting. The conmon that goes
    /// with Podman 4 tells it by a file where Podman was started, in which Podman does not look:
    /// there `inspect` says nothing under runc either.
    pub fn how_it_ended(&self, container: &str) -> Result<String> {
        let end = self.inspect(container, "{{.State.ExitCode}} {{.State.OOMKilled}}")?;
        let file = self.file("oom");
        if self.release()? >= 5 || !file.exists() {
            return Ok(end);
        }
        fs::remove_file(file).context("cannot remove what conmon has left")?;
        Ok(end.replace("false", "true"))
    }

    /// Checks that the engine's statistics show a container's memory. Where they are those of the
    /// host's processes that is its VM's, and more than any process takes that stands for one.
    pub fn counts_memory(&self, container: &str) -> Result<()> {
        let shown =
            self.succeed(&format!("stats --no-stream --format {{{{.MemUsage}}}} {container}"))?;
        let used = shown.split(" /").next().and_then(bytes).with_context(|| shown.clone())?;
        let is_of_a_vm =
            Runtime::under_test() == Runtime::Kata && self.kind != Kind::DockerWithShim;
        let least = if is_of_a_vm { LEAST_OF_A_VM } else { 0.0 };
        ensure!(used > least, "{container} uses {shown}");
        Ok(())
    }

    /// Checks that the engine's statistics show that a container computes, which it is told to do
    /// here, and has received and sent something.
    pub fn counts_work(&self, container: &str) -> Result<()> {
        self.succeed(&format!("exec --detach {container} yes"))?;
        let format = "{{.CPUPerc}};{{.NetIO}}";
        let shown = self.succeed(&format!("stats --no-stream --format {format} {container}"))?;
        let told = || format!("{container} uses {shown}");
        let (processor, network) = shown.trim().split_once(';').with_context(told)?;
        let percent: f64 = processor.trim_end_matches('%').parse().with_context(told)?;
        ensure!(percent > 0.0, "{}", told());
        let amounts: Vec<_> = network.split(" / ").map(bytes).collect();
        ensure!(amounts.len() == 2, "{}", told());
        ensure!(amounts.iter().all(|one| one.is_some_and(|bytes| bytes > 0.0)), "{}", told());
        Ok(())
    }

    /// Waits until the container has written `text`, from its beginning on.
    pub fn says(&self, container: &str, text: &str) -> Result<()> {
        self.attach(&format!("logs --follow {container}"), Input::Nothing)?.expect(text)
    }

    /// Runs a shell in the network that is the host's for this engine, to its end.
    pub fn on_host(&self, script: &str) -> Result<Output> {
        let mut shell = self.network.command("sh");
        shell.args(["-c", script]);
        client::run(shell)
    }

    /// All that there is to see of the network that is the host's for this engine, but for counters
    /// and clocks.
    pub fn picture_of_host(&self) -> Result<String> {
        self.on_host(PICTURE)?.success()
    }

    /// A name server at an address of the network that is the host's for this engine. It knows one
    /// name, with one address.
    pub fn name_server(&self, at: Ipv4Addr, name: &str, address: Ipv4Addr) -> Result<NameServer> {
        NameServer::start(self.network.name(), at, name, address)
    }

    /// The processes of one part of a container's sandbox.
    pub fn parts_of(&self, container: &str, part: Part) -> Result<Vec<Process>> {
        let format = if self.kind == Kind::Podman { "{{.ID}}" } else { "{{.Id}}" };
        parts_of(&Mark::of(&self.inspect(container, format)?), part)
    }

    /// Waits for the first process of one part of any of its containers, which may still be on its
    /// way.
    pub fn await_part(&self, part: Part) -> Result<Process> {
        await_part(&self.mark, part, Deadline::for_command())
    }

    /// A path for a file or directory of the test.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The engine's client, without arguments.
    #[must_use]
    pub fn command(&self) -> Command {
        match self.kind {
            Kind::Podman => podman::command(self),
            Kind::Docker | Kind::DockerWithShim => docker::command(self),
        }
    }

    /// Kills Docker's daemon with SIGKILL, and starts it again on the same directories.
    pub fn kill_and_restart_daemon(&self) -> Result<()> {
        let mut daemon = self.daemon();
        let running = daemon.take().context("this engine has no daemon")?;
        running.kill()?;
        // The kernel kills the daemon's containerd after it, which must be gone before a new one
        // can take its place.
        for process in crate::process::marked(&self.mark)? {
            let is_containerd = process.program.ends_with("containerd");
            ensure!(
                !is_containerd || process.ends(Deadline::for_command())?,
                "containerd lives on"
            );
        }
        // Where PID 1 is slow to reap, dockerd would take the dead one for a living one.
        let _ = fs::remove_file(self.file("exec/containerd/containerd.pid"));
        *daemon = Some(Dockerd::start(self)?);
        Ok(())
    }

    /// Asks Docker's daemon to end, as for a reboot, and starts it again on the same directories.
    pub fn restart_daemon(&self) -> Result<()> {
        let mut daemon = self.daemon();
        daemon.take().context("this engine has no daemon")?.stop()?;
        *daemon = Some(Dockerd::start(self)?);
        Ok(())
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn mark(&self) -> &Mark {
        &self.mark
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn network(&self) -> &Netns {
        &self.network
    }

    pub(crate) fn ids(&self) -> Vec<String> {
        self.ids_mut().clone()
    }

    fn ids_mut(&self) -> MutexGuard<'_, Vec<String>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn daemon(&self) -> MutexGuard<'_, Option<Dockerd>> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) -> Result<()> {
        match self.daemon().take() {
            Some(daemon) => daemon.stop(),
            None => Ok(()),
        }
    }

    fn log_tail(&self) -> String {
        self.daemon().as_ref().map(|daemon| tail(&daemon.log()).to_owned()).unwrap_or_default()
    }

    /// Removes all containers and pods, as far as that goes.
    fn remove_all(&self) {
        let pods = (self.kind == Kind::Podman).then_some("pod rm --all --force --time 0");
        let _ = pods.map(|words| self.call(words));
        for id in self.succeed("ps --all --quiet").unwrap_or_default().lines() {
            let _ = self.call(&format!("rm --force {id}"));
        }
    }

    /// Fails when the engine still knows a container, a volume or a pod.
    fn nothing_is_known(&self) -> Result<()> {
        let mut lists = vec!["ps --all --quiet", "volume ls --quiet"];
        if self.kind == Kind::Podman {
            lists.push("pod ps --quiet");
        }
        for list in lists {
            // A container whose --rm is still at work is about to go.
            let deadline = Deadline::for_command();
            let known = self.succeed(list)?;
            ensure!(known.is_empty() || self.goes(list, deadline)?, "`{list}` still lists {known}");
        }
        Ok(())
    }

    /// Whether what `list` lists goes by itself: Podman removes a detached container in a process
    /// of its own.
    fn goes(&self, list: &str, deadline: Deadline) -> Result<bool> {
        for process in crate::process::marked(&self.mark)? {
            let cleans_up = process.command_line.iter().any(|word| word == "cleanup");
            if (cleans_up || process.program.ends_with("conmon")) && !process.ends(deadline)? {
                return Ok(false);
            }
        }
        Ok(self.succeed(list)?.is_empty())
    }
}

/// An amount of memory as Podman and Docker show it, like `75.3MB` or `1.2GiB`, in bytes.
fn bytes(shown: &str) -> Option<f64> {
    let (number, unit) = shown.split_at(shown.find(|c: char| c.is_ascii_alphabetic())?);
    let base = if unit.ends_with("iB") { 1024.0_f64 } else { 1000.0 };
    let power =
        ["B", "K", "M", "G"].iter().position(|&one| unit.to_uppercase().starts_with(one))?;
    Some(number.parse::<f64>().ok()? * base.powi(power.try_into().ok()?))
}

/// One `run`: what it is told before it starts.
#[derive(Debug)]
#[must_use = "it runs only when output or attach is called"]
pub struct EngineRun<'a> {
    engine: &'a Engine,
    args: Vec<OsString>,
    input: Input,
}

impl EngineRun<'_> {
    /// With this on its standard input. A terminal also needs `--tty` among the flags.
    pub fn stdin(mut self, input: Input) -> Self {
        self.input = input;
        self
    }

    /// Runs it to its end.
    pub fn output(self) -> Result<Output> {
        self.attach()?.wait()
    }

    /// Starts it and stays attached.
    pub fn attach(self) -> Result<Client> {
        let mut command = self.engine.command();
        command.args(self.args);
        Client::spawn(command, self.input)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_as_engines_show_them() {
        for (shown, expected) in [
            ("0B", 0.0),
            ("512B", 512.0),
            ("1.5kB", 1500.0),
            ("75.25MB", 75_250_000.0),
            ("1.5KiB", 1536.0),
            ("64MiB", 67_108_864.0),
            ("2GiB", 2_147_483_648.0),
        ] {
            assert!((bytes(shown).unwrap() - expected).abs() < 0.5, "{shown}");
        }
        assert_eq!(["", "--", "7", "MB", "7XB"].map(bytes), [None; 5]);
    }
}
