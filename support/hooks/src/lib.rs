//! OCI hooks: programs that an engine wants run at points of a container's life (runtime-spec,
//! "POSIX-platform Hooks").
//!
//! ```text
//!  host   namespaces made ─ prestart, createRuntime ─▶ created ─ start … ─▶ running ─ poststart ─▶ … deleted ─ poststop
//!  guest                                               init waits ─ startContainer ─▶ its program
//! ```
//!
//! Each gets the container's state on standard input and exactly the environment that the spec
//! gives it, and no signal is blocked for it. On the host it runs in the bundle, or where that is
//! gone in the root directory; in the container, where the container's process will.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use kata_linux::{open_files, signal_mask};
use oci_spec::runtime::{Hook, Spec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Serialize;
use thiserror::Error;

/// As much of what a failed hook has printed as its error quotes.
const QUOTED: u64 = 2048;

/// Why a hook has failed.
#[derive(Debug, Error)]
pub enum HookError {
    /// It could not be started or followed.
    #[error("error running {kind} hook #{index} {}", path.display())]
    Io {
        /// Which list it is in.
        kind: &'static str,
        /// Its place there.
        index: usize,
        /// The program.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It said so itself.
    #[error("error running {kind} hook #{index} {}: {status}, output: {output}", path.display())]
    Failed {
        /// Which list it is in.
        kind: &'static str,
        /// Its place there.
        index: usize,
        /// The program.
        path: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// The beginning of what it printed.
        output: String,
    },
    /// It has not ended in the time that the spec gives it, and was killed.
    #[error("error running {kind} hook #{index} {}: Hook timeout: it took more than {seconds} s", path.display())]
    Timeout {
        /// Which list it is in.
        kind: &'static str,
        /// Its place there.
        index: usize,
        /// The program.
        path: PathBuf,
        /// What it was given.
        seconds: u64,
    },
}

/// The hooks of a container that are the host's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostHooks {
    /// Run when the namespaces exist and the container does not; the old name of `create_runtime`,
    /// and run before it.
    pub prestart: Vec<Hook>,
    /// Run when the namespaces exist and the container does not.
    pub create_runtime: Vec<Hook>,
    /// Run when the container's process has been started.
    pub poststart: Vec<Hook>,
    /// Run when the container has been deleted.
    pub poststop: Vec<Hook>,
}

impl HostHooks {
    /// Those of a spec.
    #[must_use]
    pub fn of(spec: &Spec) -> Self {
        let Some(hooks) = spec.hooks() else { return Self::default() };
        Self {
            prestart: hooks.prestart().clone().unwrap_or_default(),
            create_runtime: hooks.create_runtime().clone().unwrap_or_default(),
            poststart: hooks.poststart().clone().unwrap_or_default(),
            poststop: hooks.poststop().clone().unwrap_or_default(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self { prestart, create_runtime, poststart, poststop } = self;
        [prestart, create_runtime, poststart, poststop].iter().all(|list| list.is_empty())
    }

    /// Whether any is run by [`HostHooks::run_before`].
    #[must_use]
    pub fn has_any_before(&self) -> bool {
        !self.prestart.is_empty() || !self.create_runtime.is_empty()
    }

    /// Runs what has to be done before the container is made, in the order of the spec. The first
    /// that fails ends it.
    pub fn run_before(&self, state: &HookState<'_>) -> Result<(), HookError> {
        run("prestart", &self.prestart, state)?;
        run("createRuntime", &self.create_runtime, state)
    }
}

/// A container's state as hooks and users of the command line see it (runtime-spec, "State").
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HookState<'a> {
    /// The version of the runtime specification that the container was written for.
    pub oci_version: &'a str,
    /// The container's id.
    pub id: &'a str,
    /// `creating`, `created`, `running` or `stopped`.
    pub status: &'a str,
    /// To hooks of the host, a process of the host in the container's network namespace; to hooks
    /// in the container, its init, as it sees itself. 0 when there is none any more.
    pub pid: u32,
    /// The bundle, absolute.
    pub bundle: &'a Path,
    /// The spec's annotations.
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub annotations: std::collections::BTreeMap<&'a str, &'a str>,
}

/// Runs a list of the host's hooks in its order. The first that fails ends it. `kind` is the list's
/// name in the spec.
pub fn run(kind: &'static str, hooks: &[Hook], state: &HookState<'_>) -> Result<(), HookError> {
    let mut each = hooks.iter().enumerate();
    each.try_for_each(|(index, hook)| run_one(kind, index, hook, state, Some(in_bundle(state))))
}

/// Runs the startContainer hooks, in their order and in the caller's directory, which is the init
/// of the container and may have lost the right to enter it. The first that fails ends it.
pub fn run_in_container(hooks: &[Hook], state: &HookState<'_>) -> Result<(), HookError> {
    let mut each = hooks.iter().enumerate();
    each.try_for_each(|(index, hook)| run_one("startContainer", index, hook, state, None))
}

/// Runs a list of hooks in its order, all of them, and returns the errors of those that failed:
/// after the end of a container a hook's failure changes nothing any more, but is to be told.
#[must_use]
pub fn run_all(kind: &'static str, hooks: &[Hook], state: &HookState<'_>) -> Vec<HookError> {
    let each = hooks.iter().enumerate();
    let run = |(index, hook)| run_one(kind, index, hook, state, Some(in_bundle(state))).err();
    each.filter_map(run).collect()
}

fn in_bundle<'a>(state: &HookState<'a>) -> &'a Path {
    if state.bundle.is_dir() { state.bundle } else { Path::new("/") }
}

fn run_one(
    kind: &'static str,
    index: usize,
    hook: &Hook,
    state: &HookState<'_>,
    directory: Option<&Path>,
) -> Result<(), HookError> {
    let path = hook.path();
    let failed = |source| HookError::Io { kind, index, path: path.clone(), source };
    // Files in memory and not pipes: a daemon that a hook leaves behind may keep them open without
    // anybody waiting for it.
    let mut output = memory_file("hook-output").map_err(failed)?;
    let mut child = spawn(hook, state, directory, &output).map_err(failed)?;
    let Some(status) = wait(&mut child, hook.timeout()).map_err(failed)? else {
        let seconds = seconds(hook.timeout()).unwrap_or_default();
        return Err(HookError::Timeout { kind, index, path: path.clone(), seconds });
    };
    if status.success() {
        return Ok(());
    }
    let mut text = Vec::new();
    let read = output.rewind().and_then(|()| output.take(QUOTED).read_to_end(&mut text));
    read.map_err(failed)?;
    let output = String::from_utf8_lossy(&text).trim().replace('\n', " | ");
    Err(HookError::Failed { kind, index, path: path.clone(), status, output })
}

fn spawn(
    hook: &Hook,
    state: &HookState<'_>,
    directory: Option<&Path>,
    output: &File,
) -> io::Result<Child> {
    let mut input = memory_file("hook-state")?;
    input.write_all(&serde_json::to_vec(state)?)?;
    input.rewind()?;
    let mut command = Command::new(hook.path());
    let mut args = hook.args().iter().flatten();
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    command
        .args(args)
        .env_clear()
        .stdin(input)
        .stdout(output.try_clone()?)
        .stderr(Stdio::from(output.try_clone()?));
    if let Some(directory) = directory {
        command.current_dir(directory);
    }
    for variable in hook.env().iter().flatten() {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        command.env(name, value);
    }
    open_files::give_back_limit(&mut command);
    signal_mask::clear_in(&mut command);
    command.spawn()
}

/// Waits for the hook's end, if need be by killing it when its time is over: `None` then.
fn wait(child: &mut Child, timeout: Option<i64>) -> io::Result<Option<ExitStatus>> {
    if let Some(seconds) = seconds(timeout) {
        let pid = Pid::from_child(child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        let patience = Timespec::try_from(Duration::from_secs(seconds)).ok();
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        if rustix::io::retry_on_intr(|| poll(&mut fds, patience.as_ref()))? == 0 {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
    }
    child.wait().map(Some)
}

/// A hook's time; `None` for any. The spec has no meaning for less than a second.
fn seconds(timeout: Option<i64>) -> Option<u64> {
    timeout.and_then(|seconds| u64::try_from(seconds).ok()).filter(|seconds| *seconds > 0)
}

fn memory_file(name: &str) -> io::Result<File> {
    Ok(File::from(memfd_create(name, MemfdFlags::CLOEXEC)?))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use oci_spec::runtime::HookBuilder;

    use super::*;

    fn shell(script: &str, timeout: i64) -> Hook {
        HookBuilder::default()
            .path("/bin/sh")
            .args(["shell", "-c", script].map(str::to_owned))
            .env(["GIVEN=yes".to_owned()])
            .timeout(timeout)
            .build()
            .unwrap()
    }

    fn state(bundle: &Path) -> HookState<'_> {
        HookState {
            oci_version: "1.0.2",
            id: "c1",
            status: "creating",
            pid: 7,
            bundle,
            annotations: [("a", "b")].into(),
        }
    }

    #[test]
    fn a_hook_gets_state_arguments_and_nothing_but_its_environment() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let script = format!("cat >{0}; echo >>{0}; echo $0 >>{0}; env >>{0}", out.display());
        run("prestart", &[shell(&script, 0)], &state(Path::new("/b"))).unwrap();
        let text = fs::read_to_string(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            r#"{"ociVersion":"1.0.2","id":"c1","status":"creating","pid":7,"bundle":"/b","annotations":{"a":"b"}}"#
        );
        assert_eq!(lines[1], "shell");
        assert!(lines[2..].contains(&"GIVEN=yes"));
        assert!(!lines[2..].iter().any(|line| line.starts_with("HOME=")), "{text}");
    }

    #[test]
    fn a_hook_runs_in_the_bundle_as_long_as_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let (out, bundle) = (dir.path().join("out"), dir.path().join("bundle"));
        fs::create_dir(&bundle).unwrap();
        let hooks = [shell(&format!("pwd >>{}", out.display()), 0)];
        run("poststop", &hooks, &state(&bundle)).unwrap();
        fs::remove_dir(&bundle).unwrap();
        run("poststop", &hooks, &state(&bundle)).unwrap();
        let expected = format!("{}\n/\n", bundle.display());
        assert_eq!(fs::read_to_string(out).unwrap(), expected);
    }

    #[test]
    fn a_hook_of_the_container_runs_where_the_caller_is() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let hooks = [shell(&format!("pwd >{}", out.display()), 0)];
        run_in_container(&hooks, &state(dir.path())).unwrap();
        let expected = format!("{}\n", std::env::current_dir().unwrap().display());
        assert_eq!(fs::read_to_string(out).unwrap(), expected);
        let error = run_in_container(&[shell("exit 3", 0)], &state(dir.path())).unwrap_err();
        assert!(error.to_string().contains("startContainer hook #0"), "{error}");
    }

    #[test]
    fn a_failed_hook_is_quoted_and_ends_the_list() {
        let hooks = [shell("echo why; exit 3", 0), shell("echo not reached; exit 4", 0)];
        let error = run("createRuntime", &hooks, &state(Path::new("/b"))).unwrap_err();
        assert_eq!(
            error.to_string(),
            "error running createRuntime hook #0 /bin/sh: exit status: 3, output: why"
        );
        assert_eq!(run_all("poststop", &hooks, &state(Path::new("/b"))).len(), 2);
    }

    #[test]
    fn a_hook_that_takes_too_long_is_killed() {
        let error = run("prestart", &[shell("sleep 60", 1)], &state(Path::new("/b"))).unwrap_err();
        assert!(matches!(error, HookError::Timeout { seconds: 1, .. }), "{error}");
    }

    #[test]
    fn a_daemon_that_a_hook_leaves_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        // It ends when the directory's fifo has been opened, which is after the hook.
        let script = format!("mkfifo {0}; (read x <{0}) & exit 0", fifo.display());
        run("prestart", &[shell(&script, 30)], &state(Path::new("/b"))).unwrap();
        File::options().write(true).open(&fifo).unwrap();
    }

    #[test]
    fn a_hook_that_is_not_there_is_named() {
        let hook = HookBuilder::default().path("/no/such/hook").build().unwrap();
        let error = run("prestart", &[hook], &state(Path::new("/b"))).unwrap_err();
        assert!(error.to_string().contains("/no/such/hook"));
    }
}
