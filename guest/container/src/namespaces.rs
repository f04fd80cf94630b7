//! The namespaces that all containers of a sandbox share, kept alive without a process.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;
use serde::{Deserialize, Serialize};

use crate::fork::{self, ForkError};
use crate::process::Process;

/// Where they are pinned.
const DIRECTORY: &str = "/run/sandbox-ns";

/// Paths of the shared namespaces; `None` means that each container has its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SharedNamespaces {
    /// System V IPC and POSIX message queues.
    pub ipc: Option<PathBuf>,
    /// Host name.
    pub uts: Option<PathBuf>,
    /// Process ids: those of the sandbox's first container, or of another one
    /// ([`PidNamespace::path`]).
    pub pid: Option<PathBuf>,
}

/// Why namespaces could not be shared.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// No process could be made.
    #[error(transparent)]
    Fork(#[from] ForkError),
    /// The kernel refused.
    #[error("cannot make the sandbox's namespaces: {0}")]
    Make(String),
    /// The namespace cannot be kept.
    #[error("cannot pin namespace {path}")]
    Pin {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The process whose namespace was to be shared has ended.
    #[error("the process whose pid namespace is to be shared has ended")]
    Ended,
}

#[derive(Debug, Serialize, Deserialize)]
enum Made {
    /// With two descriptors: ipc and uts.
    Namespaces,
    Failed(String),
}

impl SharedNamespaces {
    /// Makes an ipc and a uts namespace, the latter with this host name (none if empty).
    ///
    /// # Errors
    ///
    /// Fails when the kernel refuses, or when processes have run out.
    pub async fn make(hostname: &str) -> Result<Self, NamespaceError> {
        let child = fork::fork(&[], |answers| match enter_new(hostname) {
            Ok([ipc, uts]) => answers.send(&Made::Namespaces, &[ipc.as_fd(), uts.as_fd()]),
            Err(error) => answers.send(&Made::Failed(error.to_string()), &[]),
        })?;
        match child.next().await? {
            Some((Made::Namespaces, fds)) if fds.len() == 2 => Ok(Self {
                ipc: Some(pin(&fds[0], "ipc")?),
                uts: Some(pin(&fds[1], "uts")?),
                pid: None,
            }),
            Some((Made::Failed(reason), _)) => Err(NamespaceError::Make(reason)),
            _ => Err(NamespaceError::Fork(ForkError::Died)),
        }
    }

    /// Keeps the pid namespace of `process` for containers that are to share it.
    ///
    /// # Errors
    ///
    /// Fails when the process has ended.
    pub fn share_pid(&mut self, process: &Process) -> Result<(), NamespaceError> {
        self.pid = Some(pin(&PidNamespace::of(process)?.0, "pid")?);
        Ok(())
    }

    /// Lets the namespaces go. Those that are in use live on.
    pub fn unpin(&self) {
        for path in [&self.ipc, &self.uts, &self.pid].into_iter().flatten() {
            let _ = rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH);
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The pid namespace of a process, which lives at least as long as this.
#[derive(Debug)]
pub struct PidNamespace(OwnedFd);

impl PidNamespace {
    /// That of `process`.
    ///
    /// # Errors
    ///
    /// Fails when the process has ended.
    pub fn of(process: &Process) -> Result<Self, NamespaceError> {
        let link = format!("/proc/{}/ns/pid", process.pid());
        let namespace = std::fs::File::open(link).map_err(|_| NamespaceError::Ended)?;
        // Only if the process is still there was the id its own when the link was opened.
        process.signal(0).map_err(|_| NamespaceError::Ended)?;
        Ok(Self(namespace.into()))
    }

    /// Where this process and its children find it, until it is dropped.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }
}

fn enter_new(hostname: &str) -> io::Result<[OwnedFd; 2]> {
    nix::sched::unshare(CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)?;
    if !hostname.is_empty() {
        rustix::system::sethostname(hostname.as_bytes())?;
    }
    let open = |name| std::fs::File::open(Path::new("/proc/self/ns").join(name)).map(OwnedFd::from);
    Ok([open("ipc")?, open("uts")?])
}

/// A namespace lives for as long as its file is mounted somewhere.
fn pin(namespace: &OwnedFd, name: &str) -> Result<PathBuf, NamespaceError> {
    let path = Path::new(DIRECTORY).join(name);
    let link = format!("/proc/self/fd/{}", namespace.as_raw_fd());
    let mount = || -> io::Result<()> {
        std::fs::create_dir_all(DIRECTORY)?;
        std::fs::File::create(&path)?;
        Ok(rustix::mount::mount_bind(link, &path)?)
    };
    mount().map_err(|source| NamespaceError::Pin { path: path.clone(), source })?;
    Ok(path)
}
