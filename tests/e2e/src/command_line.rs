//! The OCI command line by hand: a bundle, a root of its own, and a runtime that is called as a
//! shell would call it.

use std::fs::{self, File};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::client::{self, Client, Input, Output};
use crate::configuration::file_under_test;
use crate::deadline::Deadline;
use crate::image::Image;
use crate::leaks::{Before, Traces};
use crate::mark::Mark;
use crate::process::{Part, Process, await_part, marked};
use crate::pty;
use crate::runtime::{Installation, Runtime};
use crate::spec::Spec;
use crate::watch::{Watch, until};

/// Starts crun where its cgroups are of one kind: it refuses a host that has both, and takes one
/// where the second kind is not mounted.
const CRUN: [&str; 5] =
    ["--mount", "sh", "-c", "umount /sys/fs/cgroup/unified 2> /dev/null; exec crun \"$@\"", "crun"];

/// Whose command line it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    Runtime(Runtime),
    /// Another reference, which differs from runc here and there.
    Crun,
}

/// A script that says that it is up, and does nothing from then on.
pub const IDLE: &str = "echo up; exec sleep 1000";

/// A script that does what it reads, without a prompt and without line editing.
pub const READS_COMMANDS: &str =
    "stty -echo; echo ready; while :; do read -r line && eval \"$line\"; done";

/// A script that says `up`, and at SIGTERM `bye`, and ends then with code 3.
pub const SERVER: &str = "trap 'echo bye; exit 3' TERM; echo up; sleep 1000 & wait";

/// One runtime with a directory of its own for bundles and state. What carries its mark must be
/// gone in the end.
#[derive(Debug)]
pub struct CommandLine {
    caller: Caller,
    mark: Mark,
    directory: TempDir,
    /// The runtime's own configuration; `None` for what it finds.
    configuration: Option<PathBuf>,
}

/// Sweeps when a test has failed, also where it has panicked.
struct Broom<'a> {
    host: &'a CommandLine,
    is_clean: bool,
}

impl Drop for Broom<'_> {
    fn drop(&mut self) {
        if !self.is_clean {
            self.host.sweep();
        }
    }
}

impl CommandLine {
    /// Runs `test` with the configuration that `KATA_E2E_CONFIG` names, else the installed one, and
    /// checks that no process, mount, cgroup or state is left.
    pub fn scenario(runtime: Runtime, test: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        Self::run(Caller::Runtime(runtime), file_under_test().as_deref(), test)
    }

    /// The same with Kata, which reads this configuration file.
    pub fn configured(file: &Path, test: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        Self::run(Caller::Runtime(Runtime::Kata), Some(file), test)
    }

    /// The same with crun.
    pub fn of_crun(test: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        Self::run(Caller::Crun, None, test)
    }

    fn run(
        caller: Caller,
        configuration: Option<&Path>,
        test: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<()> {
        if caller == Caller::Runtime(Runtime::Kata) {
            Installation::under_test().check()?;
        }
        let before = Traces::before()?;
        let mark = Mark::unique();
        let directory = tempfile::Builder::new()
            .prefix(&format!("kata-{mark}-"))
            .tempdir()
            .context("cannot make a directory")?;
        Image::unpack(&directory.path().join("rootfs"))?;
        let configuration = configuration.map(Path::to_owned);
        let host = Self { caller, mark, directory, configuration };
        let mut broom = Broom { host: &host, is_clean: false };
        test(&host)?;
        host.nothing_is_left(&before)?;
        broom.is_clean = true;
        Ok(())
    }

    /// An id that carries the mark.
    #[must_use]
    pub fn id(&self, name: &str) -> String {
        format!("{name}-{}", self.mark)
    }

    /// Makes a bundle whose container runs a shell with `script`.
    pub fn bundle(
        &self,
        name: &str,
        script: &str,
        change: impl FnOnce(Spec) -> Spec,
    ) -> Result<PathBuf> {
        let bundle = self.directory.path().join(format!("bundle-{name}"));
        fs::create_dir_all(&bundle).context("cannot make a bundle")?;
        let spec = Spec::new(&self.directory.path().join("rootfs"), &["sh", "-c", script]);
        change(spec).write(
            &bundle.join("config.json"),
            &format!("ns-{}", self.mark),
            &self.id(name),
        )?;
        Ok(bundle)
    }

    /// A path for a file of the test.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The runtime with these arguments, its root before them.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = match self.caller {
            Caller::Runtime(Runtime::Kata) => {
                Command::new(Installation::under_test().bin().join("kata-runtime"))
            }
            Caller::Runtime(Runtime::Runc) => Command::new("runc"),
            Caller::Crun => {
                let mut command = Command::new("unshare");
                command.args(CRUN);
                command
            }
        };
        command.arg("--root").arg(self.file("state")).args(args);
        if let Some(file) = &self.configuration {
            command.env("KATA_CONF_FILE", file);
        }
        command
    }

    /// Runs it to its end.
    pub fn call(&self, args: &[&str]) -> Result<Output> {
        client::run(self.command(args))
    }

    /// Runs it to its end, which must be a good one.
    pub fn succeed(&self, args: &[&str]) -> Result<String> {
        self.call(args)?.success().with_context(|| args.join(" "))
    }

    /// Creates a container from a bundle. Its output goes to the file `<name>.out`; the pid file is
    /// `<name>.pid`.
    pub fn create(&self, name: &str, bundle: &Path) -> Result<()> {
        self.create_with(name, bundle, &[])
    }

    /// Has a container run that does nothing ([`IDLE`]).
    pub fn run_idle(&self, name: &str) -> Result<()> {
        self.run_idle_with(name, |spec| spec)
    }

    /// The same with another specification.
    pub fn run_idle_with(&self, name: &str, change: impl FnOnce(Spec) -> Spec) -> Result<()> {
        let bundle = self.bundle(name, IDLE, change)?;
        self.create(name, &bundle)?;
        self.succeed(&["start", &self.id(name)]).map(drop)
    }

    /// Has a pod run, whose first container has the name `pod`, does nothing, and is alone in it.
    pub fn run_pod(&self) -> Result<()> {
        let annotations = json!({ "io.kubernetes.cri.container-type": "sandbox" });
        self.run_idle_with("pod", |spec| spec.set("/annotations", annotations))
    }

    /// Has a further member of that pod run.
    pub fn run_member(&self, name: &str, change: impl FnOnce(Spec) -> Spec) -> Result<()> {
        let annotations = json!({
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.sandbox-id": self.id("pod"),
        });
        self.run_idle_with(name, |spec| change(spec.set("/annotations", annotations)))
    }

    /// As [`CommandLine::create`] with flags before the command.
    pub fn create_with(&self, name: &str, bundle: &Path, flags: &[&str]) -> Result<()> {
        let out = File::create(self.file(&format!("{name}.out"))).context("cannot make a file")?;
        let pid_file = self.file(&format!("{name}.pid"));
        let mut command = self.command(flags);
        command.args(["create", "--bundle"]);
        command.arg(bundle).arg("--pid-file").arg(pid_file).arg(self.id(name));
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let status = command.status().context("cannot run the runtime")?;
        let said = self.output_of(name);
        ensure!(status.success(), "create has failed: {said}");
        Ok(())
    }

    /// Creates a container from a bundle whose process wants a terminal. Returns the end of it that
    /// an engine gets.
    pub fn create_in_terminal(&self, name: &str, bundle: &Path) -> Result<File> {
        let socket = self.file(&format!("{name}.sock"));
        let listener = UnixListener::bind(&socket).context("cannot make a console socket")?;
        let mut command = self.command(&["create", "--bundle"]);
        command.arg(bundle).arg("--console-socket").arg(&socket);
        command.arg("--pid-file").arg(self.file(&format!("{name}.pid"))).arg(self.id(name));
        // Whoever calls like this accepts only when the runtime has ended.
        client::run(command)?.success()?;
        let (connection, _) = listener.accept().context("no terminal was sent")?;
        pty::receive(&connection)
    }

    /// Creates a container from a bundle, and receives the descriptor of its process that the
    /// runtime sends.
    pub fn create_with_pidfd(&self, name: &str, bundle: &Path) -> Result<File> {
        let socket = self.file(&format!("{name}.pidfd"));
        let listener = UnixListener::bind(&socket).context("cannot make a socket")?;
        let mut command = self.command(&["create", "--bundle"]);
        command.arg(bundle).arg("--pidfd-socket").arg(&socket);
        command.arg("--pid-file").arg(self.file(&format!("{name}.pid"))).arg(self.id(name));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        ensure!(command.status().context("cannot run the runtime")?.success(), "create has failed");
        let (connection, _) = listener.accept().context("no descriptor was sent")?;
        pty::receive_descriptor(&connection)
    }

    /// Starts one more process in a container, and returns its pid.
    pub fn exec_detached(&self, name: &str, process: &[&str]) -> Result<u32> {
        let file = self.file("exec.pid");
        let mut exec = self.command(&["exec", "--detach", "--pid-file"]);
        exec.arg(&file).arg(self.id(name)).args(process);
        exec.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        ensure!(exec.status().context("cannot run the runtime")?.success(), "exec has failed");
        // Read as callers in Go do, who take nothing beside the number.
        fs::read_to_string(&file)?.parse().context("the pid file")
    }

    /// What the container has written so far.
    #[must_use]
    pub fn output_of(&self, name: &str) -> String {
        fs::read_to_string(self.file(&format!("{name}.out"))).unwrap_or_default()
    }

    /// Waits until the container has written `text`.
    pub fn says(&self, name: &str, text: &str) -> Result<()> {
        holds(&self.file(&format!("{name}.out")), text, 1)
    }

    /// Waits until the proxy of the container's own sandbox has logged `text`.
    pub fn logs(&self, name: &str, text: &str) -> Result<()> {
        self.logs_times(name, text, 1)
    }

    /// The same, until it has done so `times`.
    pub fn logs_times(&self, name: &str, text: &str, times: usize) -> Result<()> {
        let log = self.file(&format!("state/.sandboxes/{}/proxy.log", self.id(name)));
        holds(&log, text, times)
    }

    /// Waits until the process in the pid file has ended.
    pub fn ends(&self, name: &str) -> Result<()> {
        Self::ends_pid(self.pid(name)?).with_context(|| name.to_owned())
    }

    /// Waits until the process has ended.
    pub fn ends_pid(pid: u32) -> Result<()> {
        let pid = Pid::from_raw(pid.cast_signed()).context("a pid is positive")?;
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            opened => opened.context("cannot watch the container's process")?,
        };
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        let timeout = Deadline::for_command().timespec();
        ensure!(poll(&mut fds, Some(&timeout)).context("cannot poll")? > 0, "it does not end");
        Ok(())
    }

    /// Waits until something is so, and looks again and again.
    pub fn until(mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
        let deadline = Deadline::for_command();
        while !is_so()? {
            ensure!(!deadline.remaining().is_zero(), "it does not come true");
        }
        Ok(())
    }

    /// What `state` says; an error is the word `gone`.
    pub fn status(&self, name: &str) -> Result<String> {
        let output = self.call(&["state", &self.id(name)])?;
        if output.code != 0 {
            return Ok("gone".to_owned());
        }
        let state: Value = serde_json::from_str(&output.text()).context("the state is no JSON")?;
        Ok(state["status"].as_str().unwrap_or_default().to_owned())
    }

    /// The pid in the pid file, which must hold nothing else.
    pub fn pid(&self, name: &str) -> Result<u32> {
        let text = fs::read_to_string(self.file(&format!("{name}.pid")))?;
        text.parse().with_context(|| format!("the pid file holds {text:?}"))
    }

    /// Starts it with its streams in the test's hands.
    pub fn attach(&self, args: &[&str], input: Input) -> Result<Client> {
        Client::spawn(self.command(args), input)
    }

    /// Waits for the first process of one part of any of its sandboxes, which may still be on its
    /// way.
    pub fn await_part(&self, part: Part) -> Result<Process> {
        await_part(&self.mark, part, Deadline::for_command())
    }

    /// The processes of its sandboxes.
    pub fn processes(&self) -> Result<Vec<Process>> {
        marked(&self.mark)
    }

    fn nothing_is_left(&self, before: &Before) -> Result<()> {
        let known = self.succeed(&["list", "-q"])?;
        ensure!(known.is_empty(), "still known: {known}");
        let sandboxes = self.file("state/.sandboxes");
        before.vanish_by_hand(&self.mark, self.directory.path(), &sandboxes)?;
        crate::leaks::remove_cgroups(&self.mark);
        Ok(())
    }

    /// After a failure: takes away what there is, so that no other test stumbles over it.
    fn sweep(&self) {
        // What does not go is what the failure is about.
        for id in self.succeed(&["list", "-q"]).unwrap_or_default().lines() {
            let _ = self.call(&["delete", "--force", id]);
        }
        for process in self.processes().unwrap_or_default() {
            let _ = process.signal(Signal::KILL);
            let _ = process.ends(Deadline::for_command());
        }
        crate::leaks::remove_by_hand(&self.mark, self.directory.path());
        crate::leaks::remove_cgroups(&self.mark);
    }
}

/// Waits until the file, which exists, holds `text` that many times.
fn holds(file: &Path, text: &str, times: usize) -> Result<()> {
    let watch = Watch::new()?;
    watch.writes_to(file)?;
    let read = || fs::read_to_string(file).unwrap_or_default();
    let found = || Ok((read().matches(text).count() >= times).then_some(()));
    let found = until(&watch, Deadline::for_command(), found)?;
    found.with_context(|| format!("{} does not say {text:?}: {}", file.display(), read()))
}
