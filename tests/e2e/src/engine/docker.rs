//! Docker's daemon for a fixture.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::release::release;
use super::{Cgroups, Engine, Kind};
use crate::client::{Client, Input};
use crate::deadline::Deadline;
use crate::runtime::{Installation, Runtime};

/// What the daemon says when it answers requests.
const READY: &str = "API listen on";

/// How long it may take until it says so, and how long to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// The first release whose daemon.json takes shims (`runtimeType`).
const KNOWS_SHIMS: u32 = 24;

/// Whether this machine's Docker takes other shims than runc's. If not, says that it does not.
pub(super) fn knows_shims() -> Result<bool> {
    let release = release(Command::new("dockerd"))?;
    if release < KNOWS_SHIMS {
        eprintln!(
            "left out, for Docker {release} has no shims but runc's ({KNOWS_SHIMS} and newer have): Docker with a shim"
        );
    }
    Ok(release >= KNOWS_SHIMS)
}

/// A running dockerd, with the containerd that it has started.
#[derive(Debug)]
pub(super) struct Dockerd(Client);

impl Dockerd {
    /// Starts it and waits until it answers.
    pub(super) fn start(engine: &Engine) -> Result<Self> {
        let file = |name: &str| engine.file(name);
        let config = file("daemon.json");
        fs::write(&config, configuration(engine)?.to_string())
            .with_context(|| format!("cannot write {}", config.display()))?;
        let mut dockerd = engine.network().command("dockerd");
        dockerd.arg("--config-file").arg(config);
        if engine.kind() == Kind::Docker {
            dockerd.env("KATA_CONF_FILE", file("configuration.toml"));
        }
        // Where the daemon's containerd looks for shims.
        dockerd.env("PATH", Installation::under_test().search_path(None));
        let client = Client::spawn(dockerd, Input::Nothing)?;
        client.stderr.expect(READY, Deadline::after(PATIENCE)).context("dockerd does not start")?;
        Ok(Self(client))
    }

    pub(super) fn log(&self) -> String {
        self.0.stderr.text()
    }

    /// Asks it to end, and waits for it.
    pub(super) fn stop(self) -> Result<()> {
        self.end_with(Signal::TERM)
    }

    pub(super) fn kill(self) -> Result<()> {
        self.end_with(Signal::KILL)
    }

    fn end_with(self, signal: Signal) -> Result<()> {
        self.0.signal(signal)?;
        ensure!(self.0.ends(Deadline::after(PATIENCE))?, "dockerd does not end on {signal:?}");
        Ok(())
    }
}

/// The installed example, with the fixture's own places.
fn configuration(engine: &Engine) -> Result<Value> {
    let with_shim = engine.kind() == Kind::DockerWithShim;
    let name = if with_shim { "docker-daemon-shim.json" } else { "docker-daemon-default.json" };
    let example = Installation::under_test().example(name);
    let text = fs::read_to_string(&example)
        .with_context(|| format!("cannot read {}", example.display()))?;
    let mut all: Value = serde_json::from_str(&text)
        .with_context(|| format!("cannot understand {}", example.display()))?;
    let file = |name: &str| engine.file(name);
    all["data-root"] = json!(file("data"));
    all["exec-root"] = json!(file("exec"));
    all["pidfile"] = json!(file("dockerd.pid"));
    all["hosts"] = json!([address(engine)]);
    // Said, since systemd's is the default only on cgroups of the second version.
    all["exec-opts"] = json!([format!("native.cgroupdriver={}", engine.cgroups.manager())]);
    // With systemd it would have to be a slice, and be left as runc leaves one.
    if engine.cgroups == Cgroups::Plain {
        all["cgroup-parent"] = json!(format!("/ns-{}", engine.mark()));
    }
    if with_shim {
        all["runtimes"]["kata"]["options"] = json!({ "ConfigPath": file("configuration.toml") });
    }
    all["default-runtime"] = json!(match Runtime::under_test() {
        Runtime::Kata => "kata",
        Runtime::Runc => "runc",
    });
    Ok(all)
}

pub(super) fn command(engine: &Engine) -> Command {
    let mut command = engine.network().command("docker");
    command.arg("--host").arg(address(engine));
    // Its settings are this machine's user's, which must not matter.
    command.env("DOCKER_CONFIG", engine.file("client"));
    command
}

fn address(engine: &Engine) -> String {
    format!("unix://{}", engine.file("docker.sock").display())
}
