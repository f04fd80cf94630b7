//! A containerd of one's own.

use std::ffi::OsString;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::client::{self, Client, Input, Output};
use crate::cni;
use crate::deadline::Deadline;
use crate::events::Events;
use crate::image::Image;
use crate::mark::Mark;
use crate::netns::{Netns, dial_in};
use crate::run::Run;
use crate::runtime::Installation;
use crate::stream::{Stream, tail};

/// How the ids of containers begin.
pub(crate) const CONTAINER: &str = "c";

/// What the daemon says when it answers requests.
const READY: &str = "containerd successfully booted";

/// How long it may take until it says so, and how long to end.
const START: Duration = Duration::from_secs(60);

/// Plugins without which a daemon starts faster and touches nothing outside its directory. Unknown
/// names are harmless.
const DISABLED: &[&str] = &[
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
    "io.containerd.internal.v1.opt",
    "io.containerd.nri.v1.nri",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.internal.v1.tracing",
];

/// The programs of one release of containerd, as command lines to which arguments are appended.
#[derive(Debug, Clone)]
pub struct Daemon {
    pub(crate) containerd: Vec<OsString>,
    pub(crate) ctr: Vec<OsString>,
    /// Where its further programs are; the machine's `PATH` comes after it.
    pub(crate) bin: Option<PathBuf>,
}

impl Daemon {
    /// The machine's own, from its `PATH`.
    #[must_use]
    pub fn of_this_machine() -> Self {
        Self { containerd: vec!["containerd".into()], ctr: vec!["ctr".into()], bin: None }
    }

    /// What `containerd --version` says.
    pub fn version(&self) -> Result<String> {
        let mut command = command(&self.containerd);
        command.arg("--version");
        client::run(command)?.success()
    }

    /// What it makes of a configuration file: all of its settings.
    pub fn understands(&self, file: &Path) -> Result<String> {
        let mut command = command(&self.containerd);
        command.arg("--config").arg(file).args(["config", "dump"]);
        client::run(command)?.success().with_context(|| file.display().to_string())
    }
}

/// A running containerd with a directory, a socket and a namespace of its own, and the image
/// [`Image::busybox`] in it.
#[derive(Debug)]
pub struct Containerd {
    directory: TempDir,
    mark: Mark,
    daemon: Daemon,
    environment: Vec<(String, OsString)>,
    namespace: String,
    network: Option<Netns>,
    // Locked only to replace the process when it is started again.
    process: Mutex<Client>,
    next: AtomicU32,
    // Those that others have chosen. Locked only to add one or copy them.
    foreign_ids: Mutex<Vec<String>>,
}

impl Containerd {
    /// Starts one and waits until it answers. `kubernetes` gives it a network of its own with CNI,
    /// and the namespace of Kubernetes' containers.
    pub(crate) fn start(
        daemon: Daemon,
        mut environment: Vec<(String, OsString)>,
        plugins: &str,
        kubernetes: bool,
    ) -> Result<Self> {
        let mark = Mark::unique();
        let directory = tempfile::Builder::new()
            .prefix(&format!("kata-{mark}-"))
            .tempdir()
            .context("cannot make a directory for containerd")?;
        let config = directory.path().join("config.toml");
        fs::write(&config, configuration(directory.path(), plugins))
            .with_context(|| format!("cannot write {}", config.display()))?;
        environment.push(("KATA_E2E_FIXTURE".to_owned(), mark.as_str().into()));
        let (namespace, network) = if kubernetes {
            cni::write_bridge(&directory.path().join("cni"))?;
            ("k8s.io".to_owned(), Some(Netns::new(&mark)?))
        } else {
            (format!("ns-{mark}"), None)
        };
        let process = Mutex::new(launch(&daemon, network.as_ref(), &config, &environment)?);
        let containerd = Self {
            directory,
            mark,
            daemon,
            environment,
            namespace,
            network,
            process,
            next: AtomicU32::new(1),
            foreign_ids: Mutex::default(),
        };
        containerd.import(&Image::busybox())?;
        Ok(containerd)
    }

    /// What everything of this fixture carries in its name.
    #[must_use]
    pub fn mark(&self) -> &Mark {
        &self.mark
    }

    /// A directory for the test's own files; it goes with the fixture.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The namespace of everything that the test makes.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Runs a shell in the daemon's own network, to its end. Fails where that is the machine's.
    pub fn on_host(&self, script: &str) -> Result<Output> {
        let network = self.network.as_ref().context("this daemon has no network of its own")?;
        let mut shell = network.command("sh");
        shell.args(["-c", script]);
        client::run(shell)
    }

    /// Connects to a TCP server in the daemon's own network. Fails where that is the machine's.
    pub fn dial(&self, address: SocketAddr) -> Result<TcpStream> {
        let network = self.network.as_ref().context("this daemon has no network of its own")?;
        dial_in(&network.path(), address)
    }

    /// Has the leak check look for a container, too, whose id is not the fixture's choice.
    pub fn answer_for(&self, id: &str) {
        self.foreign_ids().push(id.to_owned());
    }

    /// Its socket.
    #[must_use]
    pub fn address(&self) -> PathBuf {
        self.directory().join("containerd.sock")
    }

    /// The daemon's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process().pid()
    }

    /// What it has logged since it was started last, shims included.
    #[must_use]
    pub fn log(&self) -> Stream {
        self.process().stderr.clone()
    }

    /// Imports an image.
    pub fn import(&self, image: &Image) -> Result<()> {
        let file = self.directory().join(format!("{}.tar", self.unique("image")));
        fs::write(&file, image.archive()?)
            .with_context(|| format!("cannot write {}", file.display()))?;
        let path = file.to_string_lossy().into_owned();
        self.ctr(["images", "import", &path])?.success().context("cannot import the image")?;
        fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))
    }

    /// A container to be that runs `command`.
    pub fn run<'a>(&'a self, command: impl IntoIterator<Item = impl Into<String>>) -> Run<'a> {
        Run::new(self, command.into_iter().map(Into::into).collect())
    }

    /// A container to be that runs a shell with `script`.
    pub fn shell(&self, script: &str) -> Run<'_> {
        self.run(["sh", "-c", script])
    }

    /// Runs `ctr` to its end.
    pub fn ctr(&self, args: impl IntoIterator<Item = impl Into<OsString>>) -> Result<Output> {
        client::run(self.ctr_command(args))
    }

    /// Listens to its events from now on.
    pub fn events(&self) -> Result<Events> {
        Events::of(self)
    }

    /// Starts `ctr`.
    pub fn start_ctr(
        &self,
        args: impl IntoIterator<Item = impl Into<OsString>>,
        input: Input,
    ) -> Result<Client> {
        Client::spawn(self.ctr_command(args), input)
    }

    fn ctr_command(&self, args: impl IntoIterator<Item = impl Into<OsString>>) -> Command {
        let mut ctr = command(&self.daemon.ctr);
        ctr.arg("--address").arg(self.address()).args(["--namespace", self.namespace()]);
        ctr.args(args.into_iter().map(Into::into));
        ctr
    }

    /// Kills the daemon with SIGKILL, and starts it again on the same directories.
    pub fn kill_and_restart(&self) -> Result<()> {
        self.kill()?;
        let config = self.directory().join("config.toml");
        *self.process() = launch(&self.daemon, self.network.as_ref(), &config, &self.environment)?;
        Ok(())
    }

    /// Kills the daemon with SIGKILL and waits for its end.
    pub fn kill(&self) -> Result<()> {
        self.end_with(Signal::KILL)
    }

    /// Asks the daemon to end, and waits for it.
    pub(crate) fn stop(&self) -> Result<()> {
        self.end_with(Signal::TERM)
    }

    fn end_with(&self, signal: Signal) -> Result<()> {
        let process = self.process();
        process.signal(signal)?;
        ensure!(process.ends(Deadline::after(START))?, "containerd does not end on {signal:?}");
        Ok(())
    }

    /// A name that nothing else has, beginning with `what`.
    pub(crate) fn unique(&self, what: &str) -> String {
        format!("{what}{}-{}", self.next.fetch_add(1, Ordering::Relaxed), self.mark)
    }

    /// The ids that containers of this fixture may have had.
    pub(crate) fn ids(&self) -> Vec<String> {
        let numbers = 1..self.next.load(Ordering::Relaxed);
        let own = numbers.map(|number| format!("{CONTAINER}{number}-{}", self.mark));
        own.chain(self.foreign_ids().iter().cloned()).collect()
    }

    /// What everything of this fixture carries, and the ids that carry no mark.
    pub(crate) fn marks(&self) -> Vec<Mark> {
        let foreign = self.foreign_ids();
        foreign.iter().map(|id| Mark::of(id)).chain([self.mark.clone()]).collect()
    }

    fn foreign_ids(&self) -> MutexGuard<'_, Vec<String>> {
        self.foreign_ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn process(&self) -> MutexGuard<'_, Client> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn launch(
    daemon: &Daemon,
    network: Option<&Netns>,
    config: &Path,
    environment: &[(String, OsString)],
) -> Result<Client> {
    let mut containerd = match network {
        Some(network) => {
            let mut nsenter = network.command("--");
            nsenter.args(&daemon.containerd);
            nsenter
        }
        None => command(&daemon.containerd),
    };
    containerd
        .arg("--config")
        .arg(config)
        .env("PATH", Installation::under_test().search_path(daemon.bin.as_deref()));
    containerd.envs(environment.iter().map(|(name, value)| (name, value)));
    let client = Client::spawn(containerd, Input::Nothing)?;
    client.stderr.expect(READY, Deadline::after(START)).context("containerd does not start")?;
    Ok(client)
}

/// A configuration that every release from 1.6 to 2.x takes, unless `plugins` has tables that came
/// with 2.0. `{directory}` in them is the daemon's own, and what they name is not switched off.
fn configuration(directory: &Path, plugins: &str) -> String {
    let disabled: Vec<_> = DISABLED.iter().filter(|plugin| !plugins.contains(**plugin)).collect();
    let plugins = plugins.replace("{directory}", &directory.display().to_string());
    let directory = directory.display();
    let level = std::env::var("KATA_E2E_LOG").unwrap_or("info".to_owned());
    let version = if plugins.contains(".cri.v1.") { 3 } else { 2 };
    format!(
        "version = {version}\n\
         root = '{directory}/root'\n\
         state = '{directory}/state'\n\
         temp = '{directory}/temp'\n\
         disabled_plugins = {disabled:?}\n\
         [grpc]\n\
         address = '{directory}/containerd.sock'\n\
         [debug]\n\
         level = '{level}'\n\
         {plugins}"
    )
}

fn command(words: &[OsString]) -> Command {
    let mut words = words.iter();
    let mut command = Command::new(words.next().expect("a command line has a program"));
    command.args(words);
    command
}

/// The end of the daemon's log, for errors.
pub(crate) fn log_tail(containerd: &Containerd) -> String {
    tail(&containerd.log().text()).to_owned()
}
