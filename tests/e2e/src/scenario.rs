//! A test from its containerd to its leak check.

use std::ffi::OsString;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::Signal;

use crate::configuration;
use crate::containerd::{Containerd, Daemon, log_tail};
use crate::deadline::Deadline;
use crate::leaks::{self, Traces};
use crate::mark::Mark;
use crate::process::marked;
use crate::runtime::{Installation, Runtime};

/// Runs `test` with a containerd of its own, and checks that nothing is left. What the test left on
/// purpose is an error, too.
pub fn scenario(test: impl FnOnce(&Containerd) -> Result<()>) -> Result<()> {
    Scenario::new().run(test)
}

/// The surroundings of a test that wants more than the defaults.
#[derive(Debug)]
#[must_use = "it does nothing until run is called"]
pub struct Scenario {
    daemon: Daemon,
    environment: Vec<(String, OsString)>,
    plugins: String,
    kubernetes: bool,
}

impl Default for Scenario {
    fn default() -> Self {
        Self::new()
    }
}

impl Scenario {
    /// The machine's containerd, and the configuration that `KATA_E2E_CONFIG` names, else the
    /// installed one.
    pub fn new() -> Self {
        match configuration::file_under_test() {
            Some(file) => Self::unconfigured().configuration(&file),
            None => Self::unconfigured(),
        }
    }

    /// The machine's containerd, and the configuration that the runtime finds by itself.
    pub fn unconfigured() -> Self {
        Self {
            daemon: Daemon::of_this_machine(),
            environment: Vec::new(),
            plugins: String::new(),
            kubernetes: false,
        }
    }

    /// Another release of containerd.
    pub fn daemon(mut self, daemon: Daemon) -> Self {
        self.daemon = daemon;
        self
    }

    /// The configuration file of the runtime under test.
    pub fn configuration(self, file: &Path) -> Self {
        self.environment("KATA_CONF_FILE", file)
    }

    /// One more variable in the daemon's environment, and so in the shims'.
    pub fn environment(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// Tables of the daemon's configuration, for plugins that are off otherwise. `{directory}` in
    /// them is the daemon's own directory.
    pub fn plugins(mut self, tables: &str) -> Self {
        self.plugins.push_str(tables);
        self
    }

    /// A daemon as the kubelet finds it on a node, in a network namespace of its own: its
    /// containers are those of the namespace `k8s.io`, and `{directory}/cni` has a configuration of
    /// CNI. The plugins that speak CRI have to be named in [`plugins`](Self::plugins).
    pub fn for_kubernetes(mut self) -> Self {
        self.kubernetes = true;
        self
    }

    /// Runs the test.
    pub fn run(self, test: impl FnOnce(&Containerd) -> Result<()>) -> Result<()> {
        if Runtime::under_test() == Runtime::Kata {
            Installation::under_test().check()?;
        }
        let before = Traces::before()?;
        let containerd =
            Containerd::start(self.daemon, self.environment, &self.plugins, self.kubernetes)?;
        let traces = before.of(&containerd);
        // An assertion that fails shall not leave its containers to the next test.
        let result = panic::catch_unwind(AssertUnwindSafe(|| test(&containerd)));
        let result = result
            .unwrap_or_else(|_| bail!("an assertion failed; it is printed above"))
            .and_then(|()| nothing_is_known(&containerd))
            .and_then(|()| traces.vanish());
        let result = result.with_context(|| format!("containerd says:\n{}", log_tail(&containerd)));
        let stopped = containerd.stop();
        let result = result.and(stopped).and_then(|()| traces.vanish_with_daemon());
        for mark in containerd.marks() {
            sweep(&mark);
        }
        leaks::remove_files(&containerd);
        result
    }
}

/// Fails when the engine still knows a container or task.
fn nothing_is_known(containerd: &Containerd) -> Result<()> {
    for what in ["task", "container"] {
        let known = containerd.ctr([what, "ls", "-q"])?.success()?;
        if !known.is_empty() {
            bail!("containerd still knows the {what} {}", known.trim());
        }
    }
    Ok(())
}

/// Removes what a failed test has left, as far as that goes: the failure was told already, and the
/// next test shall not suffer.
pub(crate) fn sweep(mark: &Mark) {
    let processes = marked(mark).unwrap_or_default();
    for process in &processes {
        eprintln!("killing what was left: {}", process.describe());
        let _ = process.signal(Signal::KILL);
    }
    // A cgroup goes only after the last process in it.
    let deadline = Deadline::after(Duration::from_secs(10));
    for process in &processes {
        let _ = process.ends(deadline);
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for line in mounts.lines().rev().filter(|line| mark.is_in(line.as_bytes())) {
        if let Some(point) = line.split(' ').nth(4) {
            let _ = unmount(point, UnmountFlags::DETACH);
        }
    }
    leaks::remove_cgroups(mark);
}
