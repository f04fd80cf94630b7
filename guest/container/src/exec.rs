//! Making a further process in a running container.
//!
//! A child of the agent, born into the container's cgroup and pid namespace, joins its other
//! namespaces through the descriptor of its init, takes the steps that its credentials must not be
//! able to take back, and executes the command. Its errors come back on the socket, whose end says
//! that the command runs.
//!
//! The container can see the child before it has become the container's own; the agent has made
//! itself, and with that its children, invisible to debuggers ([`fork::hide`]).

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use libcontainer::capabilities;
use libcontainer::seccomp::initialize_seccomp;
use libcontainer::syscall::Syscall;
use libcontainer::syscall::syscall::create_syscall;
use oci_spec::runtime::{LinuxCapabilities, Process};
use rustix::thread::{Gid, ThreadNameSpaceType, Uid};
use serde::{Deserialize, Serialize};

use crate::cgroup::{Cgroup, ROOT as CGROUP_ROOT};
use crate::executor::Command;
use crate::fork::{self, Answers, Birthplace, Child, ForkError};
use crate::process::{self, Spawned};
use crate::spec::{Inherited, SpecError, check_process, complete};
use crate::stdio::{ProcessEnds, Stdio};
use crate::{command, console};

/// Why a process could not be made in a container.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The request is malformed.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The standard streams cannot be made.
    #[error("cannot make the process's standard streams")]
    Stdio(#[source] io::Error),
    /// No process could be made, or it died.
    #[error(transparent)]
    Fork(#[from] ForkError),
    /// The process could not be made; the text says why, for a command in runc's words.
    #[error("{0}")]
    Failed(String),
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// With the terminal's master.
    Terminal,
    Failed(String),
}

/// The container that is joined.
#[derive(Debug)]
pub struct Target<'a> {
    /// Its init, which must be running.
    pub init: &'a process::Process,
    /// Its group.
    pub cgroup: &'a Cgroup,
    /// What its processes have in common.
    pub inherited: &'a Inherited,
}

/// Runs `process` in the container; `pipe_size` is for [`Stdio::pipes`]. The caller must not let go
/// of exit statuses meanwhile: the process may have ended before its pid is known.
///
/// # Errors
///
/// Says what is wrong with the request, the command or the container. No process is left then.
pub async fn exec(
    target: &Target<'_>,
    process: &Process,
    pipe_size: Option<u32>,
) -> Result<Spawned, ExecError> {
    let environment = check_process(process)?;
    let args = process.args().clone().unwrap_or_default();
    let uid = process.user().uid();
    let joiner = Joiner {
        target,
        process,
        capabilities: complete(Some(
            process.capabilities().as_ref().unwrap_or(&target.inherited.capabilities),
        )),
        command: Command::new(args, environment, uid),
    };
    if process.terminal().unwrap_or(false) {
        let (child, pidfd) = joiner.fork(None)?;
        let master = collect(&child).await?.ok_or(ForkError::Died)?;
        let stdio = Stdio::terminal(master, uid).map_err(ExecError::Stdio)?;
        Ok(Spawned { pid: child.pid, pidfd, stdio })
    } else {
        let (stdio, ends) = Stdio::pipes(uid, pipe_size).map_err(ExecError::Stdio)?;
        let (child, pidfd) = joiner.fork(Some(&ends))?;
        tracing::debug!(pid = child.pid, "forked");
        // The process's ends must be its alone, or the streams would never end.
        drop(ends);
        collect(&child).await?;
        tracing::debug!(pid = child.pid, "the command runs");
        Ok(Spawned { pid: child.pid, pidfd, stdio })
    }
}

/// Listens until the socket ends, which it does when the command runs, or when all is over. Yields
/// the terminal's master, if there is one.
async fn collect(child: &Child) -> Result<Option<OwnedFd>, ExecError> {
    let mut master = None;
    while let Some((answer, fds)) = child.next::<Answer>().await? {
        match answer {
            Answer::Terminal => master = fds.into_iter().next(),
            Answer::Failed(text) => return Err(ExecError::Failed(text)),
        }
    }
    Ok(master)
}

/// What the child needs to know.
struct Joiner<'a> {
    target: &'a Target<'a>,
    process: &'a Process,
    capabilities: LinuxCapabilities,
    command: Command,
}

impl Joiner<'_> {
    fn fork(&self, ends: Option<&ProcessEnds>) -> Result<(Child, OwnedFd), ForkError> {
        let init = self.target.init.pidfd();
        let mut keep: Vec<BorrowedFd<'_>> = vec![init];
        if let Some(ends) = ends {
            keep.extend([ends.stdin.as_fd(), ends.stdout.as_fd(), ends.stderr.as_fd()]);
        }
        let shares_pids =
            self.target.inherited.namespaces.contains(ThreadNameSpaceType::PROCESS_ID);
        let work = |answers: &Answers| {
            let error = self.become_process(ends, answers).err().unwrap_or_default();
            answers.send(&Answer::Failed(error), &[]);
        };
        let fork_into = |group: fs::File| {
            let place =
                Birthplace { cgroup: group.as_fd(), pid_namespace: shares_pids.then_some(init) };
            fork::fork_into(&place, &keep, work)
        };
        let group = fs::File::open(self.target.cgroup.directory()).map_err(ForkError::Fork)?;
        match fork_into(group) {
            Err(ForkError::Fork(error)) if error.raw_os_error() == Some(libc::EBUSY) => {
                fork_into(self.group_of_init().map_err(ForkError::Fork)?)
            }
            result => result,
        }
    }

    /// A container that has divided its group has moved its processes into groups below it; the
    /// group itself takes none then.
    fn group_of_init(&self) -> io::Result<fs::File> {
        let groups = fs::read_to_string(format!("/proc/{}/cgroup", self.target.init.pid()))?;
        let own = groups.lines().find_map(|line| line.strip_prefix("0::/"));
        fs::File::open(Path::new(CGROUP_ROOT).join(own.unwrap_or_default()))
    }

    /// In the child. Returns only to say what failed.
    fn become_process(&self, ends: Option<&ProcessEnds>, answers: &Answers) -> Result<(), String> {
        let score = self.process.oom_score_adj().unwrap_or(0);
        fs::write("/proc/self/oom_score_adj", score.to_string())
            .map_err(|error| format!("cannot set oom_score_adj: {error}"))?;
        let syscall = create_syscall();
        for limit in self.process.rlimits().iter().flatten() {
            syscall.set_rlimit(limit).map_err(|error| format!("cannot set rlimit: {error}"))?;
        }
        let namespaces = self.target.inherited.namespaces - ThreadNameSpaceType::PROCESS_ID;
        if namespaces != ThreadNameSpaceType::empty() {
            rustix::thread::move_into_thread_name_spaces(self.target.init.pidfd(), namespaces)
                .map_err(|errno| format!("cannot join the container's namespaces: {errno}"))?;
        }
        self.become_contained(ends, answers, syscall.as_ref())
    }

    /// In the child, inside of the container. Returns only to say what failed.
    fn become_contained(
        &self,
        ends: Option<&ProcessEnds>,
        answers: &Answers,
        syscall: &dyn Syscall,
    ) -> Result<(), String> {
        nix::unistd::setsid().map_err(|errno| format!("cannot make a session: {errno}"))?;
        match ends {
            Some(ends) => attach(&ends.stdin, &ends.stdout, &ends.stderr),
            None => attach_terminal(self.process, answers),
        }
        .map_err(|error| format!("cannot attach the standard streams: {error}"))?;
        syscall.close_range(0).map_err(|error| format!("cannot close descriptors: {error}"))?;

        let mask = self.process.user().umask().unwrap_or(0o022);
        rustix::process::umask(rustix::fs::Mode::from_bits_truncate(mask));
        let no_new_privileges = self.process.no_new_privileges().unwrap_or(false);
        if no_new_privileges {
            rustix::thread::set_no_new_privs(true)
                .map_err(|errno| format!("cannot give up new privileges: {errno}"))?;
        } else {
            // Without that promise a filter takes a capability that is about to be dropped.
            self.install_seccomp()?;
        }
        let moved = self.change_directory()?;
        self.drop_privileges(syscall).map_err(|error| format!("cannot change user: {error}"))?;
        if !moved {
            rustix::process::chdir(self.process.cwd()).map_err(|errno| self.cwd_error(errno))?;
        }
        check_inside_root()?;
        self.command.resolve().map_err(|error| error.to_string())?;
        if no_new_privileges {
            self.install_seccomp()?;
        }
        let error = self.command.execute();
        Err(format!("exec {}: {}", self.command.file(), command::in_words(&error)))
    }

    fn install_seccomp(&self) -> Result<(), String> {
        let Some(profile) = &self.target.inherited.seccomp else { return Ok(()) };
        initialize_seccomp(profile)
            .map(drop)
            .map_err(|error| format!("cannot install the container's seccomp profile: {error}"))
    }

    /// As root first: its user may be allowed to be where it could not go.
    fn change_directory(&self) -> Result<bool, String> {
        match rustix::process::chdir(self.process.cwd()) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => Ok(false),
            Err(errno) => Err(self.cwd_error(errno)),
        }
    }

    fn cwd_error(&self, errno: rustix::io::Errno) -> String {
        let reason = command::in_words(&errno.into());
        format!("chdir to cwd ({:?}) set in config.json failed: {reason}", self.process.cwd())
    }

    fn drop_privileges(&self, syscall: &dyn Syscall) -> Result<(), String> {
        let user = self.process.user();
        let groups = user.additional_gids().as_deref().unwrap_or_default();
        let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
        let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
        set_ids(uid, gid, &groups).map_err(|errno| errno.to_string())?;
        // Another user's ids have cleared the effective set, which dropping the others needs.
        capabilities::reset_effective(syscall).map_err(|error| error.to_string())?;
        capabilities::drop_privileges(&self.capabilities, syscall)
            .map_err(|error| error.to_string())
    }
}

fn set_ids(uid: Uid, gid: Gid, groups: &[Gid]) -> rustix::io::Result<()> {
    rustix::thread::set_keep_capabilities(true)?;
    rustix::thread::set_thread_groups(groups)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    rustix::thread::set_keep_capabilities(false)
}

fn attach(stdin: &OwnedFd, stdout: &OwnedFd, stderr: &OwnedFd) -> io::Result<()> {
    nix::unistd::dup2_stdin(stdin)?;
    nix::unistd::dup2_stdout(stdout)?;
    nix::unistd::dup2_stderr(stderr)?;
    Ok(())
}

fn attach_terminal(process: &Process, answers: &Answers) -> io::Result<()> {
    let (master, slave) = console::make()?;
    console::set_size(&slave, process)?;
    rustix::process::ioctl_tiocsctty(&slave)?;
    attach(&slave, &slave, &slave)?;
    answers.send(&Answer::Terminal, &[master.as_fd()]);
    Ok(())
}

/// A path that a container has prepared may lead out of it; the kernel then does not call the
/// working directory absolute (getcwd(2)).
fn check_inside_root() -> Result<(), String> {
    let inside =
        rustix::process::getcwd(Vec::new()).is_ok_and(|cwd| cwd.to_bytes().first() == Some(&b'/'));
    if inside {
        Ok(())
    } else {
        Err("current working directory is outside of container mount namespace root".to_owned())
    }
}
