//! Making a container and its init, which then waits to be started; starting it; and taking away
//! what is left of it.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use oci_spec::runtime::{Mount, Spec};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};

use crate::cgroup::CgroupError;
use crate::fork::{self, Child, ForkError};
use crate::process::Spawned;
use crate::report::FirstError;
use crate::spec::Plan;
use crate::stdio::{ProcessEnds, Stdio};
use crate::{console, copy_up, cwd, links};

/// Where bundles are: `<this>/<id>/config.json`.
pub const BUNDLES: &str = "/run/kata-containers";

/// Where libcontainer keeps its state: `<this>/<id>/`.
const STATES: &str = "/run/libcontainer";

/// libcontainer's socket on which an init waits for its start, in its state directory.
const NOTIFY_SOCKET: &str = "notify.sock";

/// Longest error text that a maker sends.
const MAX_TEXT: usize = 4096;

/// Why a container could not be made or started.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The bundle cannot be written.
    #[error("cannot write the container's bundle {path}")]
    Bundle {
        /// Its directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The container's limits cannot be set.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The standard streams cannot be made.
    #[error("cannot make the container's standard streams")]
    Stdio(#[source] io::Error),
    /// A network setting was refused.
    #[error("cannot set {name} to {value:?}")]
    Sysctl {
        /// File below `/proc/sys`.
        name: String,
        /// Value.
        value: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// No process could be made, or it died.
    #[error(transparent)]
    Fork(#[from] ForkError),
    /// The container could not be made; the text says why, for a command in runc's words.
    #[error("{0}")]
    Failed(String),
    /// Init does not wait for its start any more.
    #[error("cannot start the container")]
    Start(#[source] io::Error),
}

/// How long what there is of a container that could not be made may take to die: less than the host
/// waits for the answer, which says why.
const DYING: Duration = Duration::from_secs(10);

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// An error that libcontainer has logged.
    Logged(String),
    /// Init's pid, with its pidfd.
    Created(i32),
    Failed(String),
}

/// Makes the container of `plan`, whose init waits for [`start`]. `ended` is called with the pid of
/// the process that does the work, and must yield a future that completes when it has ended;
/// `pipe_size` is for [`Stdio::pipes`].
///
/// The caller must not let go of exit statuses meanwhile: init may have ended before its pid is
/// known. On an error nothing of the container is left, but for processes that do not die within
/// ten seconds, and their cgroup.
///
/// # Errors
///
/// Says what is wrong with the bundle, the command, or the guest.
pub async fn create<E: Future>(
    id: &str,
    plan: &Plan,
    pipe_size: Option<u32>,
    ended: impl FnOnce(i32) -> E,
) -> Result<Spawned, CreateError> {
    let created = create_parts(id, plan, pipe_size, ended).await;
    if created.is_err() {
        // Whatever there is of it must not run on; the first error is the one to tell.
        let _ = plan.cgroup.kill();
        let _ = tokio::time::timeout(DYING, plan.cgroup.emptied()).await;
        remove(id, plan);
    }
    created
}

async fn create_parts<E: Future>(
    id: &str,
    plan: &Plan,
    pipe_size: Option<u32>,
    ended: impl FnOnce(i32) -> E,
) -> Result<Spawned, CreateError> {
    let bundle = write_bundle(id, plan)?;
    set_network(plan)?;
    plan.cgroup.create()?;
    plan.device_filter.enforce(&plan.cgroup, &plan.device_rules)?;
    if let Some(resources) = &plan.resources {
        plan.cgroup.apply(resources)?;
    }
    tracing::debug!(container = id, "bundle and cgroup are made");
    if plan.terminal {
        let socket = bundle.join("console.sock");
        let listener = UnixListener::bind(&socket).map_err(CreateError::Stdio)?;
        let maker = Maker { id, plan, bundle: &bundle, streams: Streams::Console(&socket) };
        let child = maker.fork()?;
        let (pid, pidfd) = answer(&child, ended(child.pid)).await?;
        let master = console::receive(&listener).map_err(CreateError::Stdio)?;
        if let Some(process) = plan.spec.process() {
            console::set_size(&master, process).map_err(CreateError::Stdio)?;
        }
        let stdio = Stdio::terminal(master, plan.uid).map_err(CreateError::Stdio)?;
        Ok(Spawned { pid, pidfd, stdio })
    } else {
        let (stdio, ends) = Stdio::pipes(plan.uid, pipe_size).map_err(CreateError::Stdio)?;
        let maker = Maker { id, plan, bundle: &bundle, streams: Streams::Pipes(&ends) };
        let child = maker.fork()?;
        tracing::debug!(container = id, maker = child.pid, "forked");
        // The process's ends must be its alone, or the streams would never end.
        drop(ends);
        let (pid, pidfd) = answer(&child, ended(child.pid)).await?;
        Ok(Spawned { pid, pidfd, stdio })
    }
}

fn write_bundle(id: &str, plan: &Plan) -> Result<PathBuf, CreateError> {
    let path = Path::new(BUNDLES).join(id);
    let write = || -> io::Result<()> {
        fs::create_dir_all(&path)?;
        fs::create_dir_all(STATES)?;
        write_config(&path, &plan.spec)
    };
    write().map_err(|source| CreateError::Bundle { path: path.clone(), source })?;
    Ok(path)
}

fn write_config(bundle: &Path, spec: &Spec) -> io::Result<()> {
    fs::write(bundle.join("config.json"), serde_json::to_vec(spec)?)
}

fn set_network(plan: &Plan) -> Result<(), CreateError> {
    for (name, value) in &plan.network_sysctls {
        fs::write(Path::new("/proc/sys").join(name), value).map_err(|source| {
            CreateError::Sysctl { name: name.clone(), value: value.clone(), source }
        })?;
    }
    Ok(())
}

enum Streams<'a> {
    Console(&'a Path),
    Pipes(&'a ProcessEnds),
}

/// What the forked child needs to know.
struct Maker<'a> {
    id: &'a str,
    plan: &'a Plan,
    bundle: &'a Path,
    streams: Streams<'a>,
}

impl Maker<'_> {
    fn fork(&self) -> Result<Child, ForkError> {
        use std::os::fd::AsFd;

        let keep: Vec<BorrowedFd<'_>> = match &self.streams {
            Streams::Console(_) => Vec::new(),
            Streams::Pipes(ends) => {
                vec![ends.stdin.as_fd(), ends.stdout.as_fd(), ends.stderr.as_fd()]
            }
        };
        fork::fork(&keep, |answers| {
            let Ok(log) = answers.try_clone() else { return };
            let subscriber =
                FirstError::new(move |text| log.send(&Answer::Logged(shortened(text)), &[]));
            let made = tracing::subscriber::with_default(subscriber, || self.make());
            match made {
                Ok((pid, pidfd)) => answers.send(&Answer::Created(pid), &[pidfd.as_fd()]),
                Err(text) => answers.send(&Answer::Failed(shortened(text)), &[]),
            }
        })
    }

    /// In the child.
    fn make(&self) -> Result<(i32, OwnedFd), String> {
        // The agent's own groups are not the container's; libcontainer only ever adds.
        nix::unistd::setgroups(&[])
            .map_err(|errno| format!("cannot leave the agent's groups: {errno}"))?;
        if !self.plan.rootfs.is_dir() {
            let rootfs = self.plan.rootfs.display();
            return Err(format!("the container's root file system {rootfs} is not in the guest"));
        }
        let process = self.plan.spec.process().as_ref();
        let process = process.ok_or("the container's specification has no process")?;
        let changed = self.copy_up(process.cwd());
        let changed =
            changed.map_err(|error| format!("cannot fill a tmpfs from the image: {error}"))?;
        let mounts = self.plan.spec.mounts().as_deref().unwrap_or_default();
        let mounts = changed.as_deref().unwrap_or(mounts);
        cwd::prepare(&self.plan.rootfs, mounts, process.cwd()).map_err(|error| {
            format!("cannot make working directory {}: {error}", process.cwd().display())
        })?;
        links::prepare(&self.plan.rootfs, mounts)
            .map_err(|error| format!("cannot make a mount point: {error}"))?;
        let container = self.build().map_err(|error| innermost(&error))?;
        // Init is this process's child, so it cannot have been reaped yet.
        let pid = container.pid().map_or(0, |pid| pid.as_raw());
        let pidfd = Pid::from_raw(pid)
            .ok_or("libcontainer tells no pid of the container's init".to_owned())
            .and_then(|pid| {
                rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| {
                    format!("cannot open a descriptor of the container's init: {errno}")
                })
            })?;
        Ok((pid, pidfd))
    }

    /// In the child, whose mounts may differ from the agent's afterwards; how, if they do.
    fn copy_up(&self, cwd: &Path) -> io::Result<Option<Vec<Mount>>> {
        let mounts = self.plan.spec.mounts().as_deref().unwrap_or_default();
        let changed = copy_up::carry_out(&self.plan.rootfs, mounts, cwd)?;
        if let Some(changed) = &changed {
            let mut spec = self.plan.spec.clone();
            spec.set_mounts(Some(changed.clone()));
            write_config(self.bundle, &spec)?;
        }
        Ok(changed)
    }

    fn build(&self) -> Result<libcontainer::container::Container, LibcontainerError> {
        let mut builder = ContainerBuilder::new(self.id.to_owned(), SyscallType::Linux)
            .with_root_path(STATES)?
            .with_executor(self.plan.executor.clone());
        match &self.streams {
            Streams::Console(socket) => builder = builder.with_console_socket(Some(socket)),
            Streams::Pipes(ends) => {
                let copy = |fd: &OwnedFd| fd.try_clone().map_err(LibcontainerError::OtherIO);
                builder = builder
                    .with_stdin(copy(&ends.stdin)?)
                    .with_stdout(copy(&ends.stdout)?)
                    .with_stderr(copy(&ends.stderr)?);
            }
        }
        builder.as_init(self.bundle).with_systemd(false).with_detach(true).build()
    }
}

/// Waits for what the maker has to say; if it ends without a word, that is the answer.
async fn answer(child: &Child, ended: impl Future) -> Result<(i32, OwnedFd), CreateError> {
    let mut ended = std::pin::pin!(ended);
    let mut has_ended = false;
    let mut cause = None;
    loop {
        let message = if has_ended {
            child.next_now::<Answer>()?
        } else {
            tokio::select! {
                biased;
                message = child.next::<Answer>() => message?,
                _ = &mut ended => {
                    // Its end may be known before its last words are: one signal tells of many.
                    has_ended = true;
                    continue;
                }
            }
        };
        match message {
            Some((Answer::Logged(text), _)) => drop(cause.get_or_insert(text)),
            Some((Answer::Created(pid), fds)) => {
                tracing::debug!(init = pid, "init is made");
                let pidfd = fds.into_iter().next().ok_or(ForkError::Died)?;
                return Ok((pid, pidfd));
            }
            Some((Answer::Failed(text), _)) => {
                return Err(CreateError::Failed(explain(text, cause)));
            }
            None => return Err(died(cause)),
        }
    }
}

fn died(cause: Option<String>) -> CreateError {
    cause.map_or(CreateError::Fork(ForkError::Died), CreateError::Failed)
}

/// What libcontainer puts before the text of an error of init.
const INIT_ERROR: &str = "error in executing process : ";

/// Makes one sentence of the error that was returned and the one that was logged first. What our
/// own part of init says ("exec: ...") is complete in itself.
fn explain(failed: String, cause: Option<String>) -> String {
    let text = match failed.split_once(INIT_ERROR) {
        Some((_, text)) => text.to_owned(),
        None => failed,
    };
    match cause {
        Some(cause) if !text.starts_with("exec: ") && !cause.contains(&text) => {
            format!("{text}: {cause}")
        }
        Some(cause) if !text.starts_with("exec: ") => cause,
        _ => text,
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

fn shortened(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        let end = (0..=MAX_TEXT).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

/// Lets the init of container `id` run its command.
///
/// # Errors
///
/// Fails when it does not wait (any more).
pub fn start(id: &str) -> Result<(), CreateError> {
    let connect = || -> io::Result<()> {
        // A socket's path is limited to 107 bytes; through the directory's descriptor it is short.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(CWD, Path::new(STATES).join(id), flags, Mode::empty())?;
        let socket = format!("/proc/self/fd/{}/{NOTIFY_SOCKET}", directory.as_raw_fd());
        UnixStream::connect(socket)?.write_all(b"start container")
    };
    connect().map_err(CreateError::Start)
}

/// Takes away what is left of container `id` after its last process has ended: its group, its state
/// and its bundle, but for what is mounted in there. What is gone already is no error, and what
/// cannot be removed is logged.
pub fn remove(id: &str, plan: &Plan) {
    if let Err(error) = plan.cgroup.remove() {
        tracing::warn!(
            container = id,
            error = &error as &dyn std::error::Error,
            "a cgroup is left"
        );
    }
    let state = Path::new(STATES).join(id);
    tell_if_left(id, &state, fs::remove_dir_all(&state));
    let bundle = Path::new(BUNDLES).join(id);
    for file in ["config.json", "console.sock"].map(|name| bundle.join(name)) {
        tell_if_left(id, &file, fs::remove_file(&file));
    }
    // Not the whole tree: a storage may be mounted in there.
    match fs::remove_dir(&bundle) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
        removed => tell_if_left(id, &bundle, removed),
    }
}

/// Logs what is left though it was to be removed.
fn tell_if_left(id: &str, path: &Path, removed: io::Result<()>) {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(container = id, path = %path.display(), %error, "it is left");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explain_command_error_is_runcs_words_alone() {
        let failed = "exec process failed with error error in executing process : exec: \"foo\": \
                      executable file not found in $PATH";
        let cause = Some("failed to initialize container process: exec: ...".to_owned());
        assert_eq!(
            explain(failed.to_owned(), cause),
            "exec: \"foo\": executable file not found in $PATH"
        );
    }

    #[test]
    fn explain_other_error_names_its_cause() {
        let failed = format!("exec process failed with error {INIT_ERROR}failed to prepare rootfs");
        assert_eq!(
            explain(failed, Some("failed to mount x".to_owned())),
            "failed to prepare rootfs: failed to mount x"
        );
        assert_eq!(explain("plain".to_owned(), None), "plain");
    }

    #[tokio::test]
    async fn last_words_of_a_maker_are_heard_though_its_end_is_known_first() {
        // As in `fork`'s tests: this child only sends and leaves.
        let child = fork::fork(&[], |answers| {
            answers.send(&Answer::Logged("the cause".to_owned()), &[]);
            answers.send(&Answer::Failed("it failed".to_owned()), &[]);
        })
        .unwrap();
        nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child.pid), None).unwrap();
        let error = answer(&child, std::future::ready(())).await.unwrap_err();
        assert_eq!(error.to_string(), "it failed: the cause");
    }

    #[tokio::test]
    async fn maker_that_says_nothing_has_died() {
        let child = fork::fork(&[], |_| ()).unwrap();
        nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child.pid), None).unwrap();
        let error = answer(&child, std::future::ready(())).await.unwrap_err();
        assert!(matches!(error, CreateError::Fork(ForkError::Died)), "{error}");
    }

    #[test]
    fn shortened_cuts_between_characters() {
        let text = shortened("é".repeat(MAX_TEXT));
        assert!(text.len() <= MAX_TEXT && text.ends_with('é'));
    }
}
