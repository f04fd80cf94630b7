//! A sandbox as the command line sees it: a socket to ask, and a proxy that is to be gone when its
//! last container is.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use kata_linux::identity::ProcessIdentity;
use kata_shim_api::blocking::{CallError, TaskSocket};
use kata_shim_api::protobuf::Message;
use kata_shim_api::stand_in::{self, SOCKET};
use kata_shim_api::ttrpc::Code;
use kata_shim_api::{api, metadata};

use crate::handover;
use crate::registry::{Container, Locked, Registry, Status, write_whole};

/// Who the proxy is.
const PROXY: &str = "proxy.json";

/// Where it logs.
pub(crate) const LOG: &str = "proxy.log";

/// How long a proxy that has nothing left to do may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// As much of the proxy's log as an error quotes.
const QUOTED: i64 = 1024;

/// A container to be made, whose hooks this program runs.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) request: api::CreateTaskRequest,
    /// The namespace that was made for it; `None` where its spec names one.
    pub(crate) network_namespace: Option<String>,
    /// The sandbox is its own, whatever its annotations name.
    pub(crate) alone: bool,
}

/// A sandbox's directory, which exists.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) id: String,
    pub(crate) dir: PathBuf,
    socket: TaskSocket,
}

impl Sandbox {
    /// Makes the directory of a new sandbox, and its socket, which only this user can reach. A dead
    /// sandbox of the same id is removed first; what has ended in it can be deleted all the same.
    pub(crate) fn make(registry: &Registry, id: &str) -> Result<(Self, UnixListener)> {
        let dir = registry.sandbox_dir(id)?;
        if has(registry, id, |one| one.status() != Status::Stopped)? {
            bail!("the sandbox {id} still has containers that run; end them first");
        }
        if let Some(_lock) = registry.lock_sandbox(id)? {
            clear(id, &dir)?;
        }
        let failed = || format!("cannot create {}", dir.display());
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).with_context(failed)?;
        let socket = TaskSocket::at(&dir, SOCKET).with_context(failed)?;
        let listener = UnixListener::bind(socket.short_path()).with_context(failed)?;
        fs::set_permissions(dir.join(SOCKET), std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .with_context(failed)?;
        Ok((Self { id: id.to_owned(), dir, socket }, listener))
    }

    /// A sandbox that others are in. `container` is who wants to join, for the error.
    pub(crate) fn join(registry: &Registry, id: &str, container: &str) -> Result<Self> {
        let gone =
            || format!("the sandbox {id} that container {container} belongs to is not running");
        let sandbox = Self::open(registry, id).with_context(gone)?;
        UnixStream::connect(sandbox.socket.short_path()).with_context(gone)?;
        Ok(sandbox)
    }

    /// A sandbox that is known, whether it lives or not.
    pub(crate) fn open(registry: &Registry, id: &str) -> Result<Self> {
        let dir = registry.sandbox_dir(id)?;
        let socket = TaskSocket::at(&dir, SOCKET)
            .with_context(|| format!("there is no sandbox at {}", dir.display()))?;
        Ok(Self { id: id.to_owned(), dir, socket })
    }

    /// Writes down who the proxy is.
    pub(crate) fn record_proxy(&self, pid: u32) -> Result<()> {
        let identity = ProcessIdentity::of(pid).context("the sandbox's proxy has ended at once")?;
        write_whole(&self.dir.join(PROXY), &serde_json::to_vec(&identity)?)
    }

    /// Lets the proxy see a directory of one more container's, which lies at `path` for this
    /// process.
    pub(crate) fn show(&self, path: &Path) -> Result<()> {
        let namespace = proxy_of(&self.dir)
            .and_then(|proxy| mount_namespace(&proxy))
            .with_context(|| format!("the proxy of sandbox {} has ended", self.id))?;
        handover::mount(path, namespace.as_fd())
    }

    /// Asks the task service.
    pub(crate) fn call<A: Message>(
        &self,
        method: &str,
        request: &impl Message,
    ) -> Result<A, CallError> {
        self.call_along(method, request, &[])
    }

    /// The same with something along ([`metadata`]).
    pub(crate) fn call_along<A: Message>(
        &self,
        method: &str,
        request: &impl Message,
        along: &[(&str, &str)],
    ) -> Result<A, CallError> {
        self.socket.call(method, request, along)
    }

    /// Has a container made, and for the first one the VM. Returns whether its files are hidden
    /// ([`stand_in::is_hidden`]).
    pub(crate) fn create(&self, asked: &Asked) -> Result<bool> {
        Ok(stand_in::is_hidden(&self.call_create(asked, None)?))
    }

    /// Whether [`Sandbox::create`] would refuse the container before it makes anything.
    pub(crate) fn check(&self, asked: &Asked) -> Result<()> {
        self.call_create(asked, Some((metadata::CHECK_ONLY, ""))).map(drop)
    }

    /// Removes a process that nobody stands for ([`TaskSocket::remove`]).
    pub(crate) fn take_back(&self, container: &str, exec: &str) {
        self.socket.remove(container, exec);
    }

    fn call_create(
        &self,
        asked: &Asked,
        more: Option<(&'static str, &str)>,
    ) -> Result<api::CreateTaskResponse> {
        let mut along = vec![(metadata::HOOKS_ARE_RUN, "")];
        let netns = asked.network_namespace.as_deref();
        along.extend(netns.map(|path| (metadata::NETWORK_NAMESPACE, path)));
        along.extend(asked.alone.then_some((metadata::ALONE, "")));
        along.extend(more);
        let answer = self.socket.call::<api::CreateTaskResponse>("Create", &asked.request, &along);
        match answer {
            Ok(answer) => Ok(answer),
            Err(error @ CallError::Lost(_)) => Err(anyhow!("{error}; {}", self.last_words())),
            Err(error) => Err(plain(error)),
        }
    }

    /// The end of the proxy's log.
    fn last_words(&self) -> String {
        let mut text = Vec::new();
        let read = fs::File::open(self.dir.join(LOG)).and_then(|mut log| {
            // Shorter than that is fine.
            let _ = log.seek(SeekFrom::End(-QUOTED));
            log.read_to_end(&mut text)
        });
        match read {
            Ok(_) if !text.is_empty() => {
                let text = String::from_utf8_lossy(&text);
                format!("its log ends with: {}", text.trim().replace('\n', " | "))
            }
            _ => "its log is empty".to_owned(),
        }
    }
}

/// A call's error for people: what the server said is all of it.
pub(crate) fn plain(error: CallError) -> anyhow::Error {
    match error {
        // Docker and containerd put it before whatever we say.
        CallError::Refused { message, .. } => {
            anyhow!("{}", message.strip_prefix("OCI runtime create failed: ").unwrap_or(&message))
        }
        error => error.into(),
    }
}

/// Whether a call failed since what it was about has ended.
pub(crate) fn has_ended(error: &CallError) -> bool {
    match error {
        CallError::Connect(_) | CallError::Lost(_) => true,
        // The sandbox may have gone with it in the midst of the call.
        CallError::Refused { code, .. } => matches!(code, Code::NOT_FOUND | Code::ABORTED),
        CallError::Malformed(_) => false,
    }
}

/// Whether the guest has not answered in time, so that nobody knows what it has done.
pub(crate) fn is_late(error: &CallError) -> bool {
    matches!(error, CallError::Refused { code: Code::DEADLINE_EXCEEDED, .. })
}

/// Whether what it was about is in a state in which this cannot be done.
pub(crate) fn is_refused(error: &CallError) -> bool {
    matches!(error, CallError::Refused { code: Code::FAILED_PRECONDITION, .. })
}

/// Removes a sandbox whose containers are all gone. One that still has containers is left alone,
/// also one whose first is being made or removed by another than `holder`, which has that id taken,
/// and so is one that is not there.
pub(crate) fn remove(registry: &Registry, id: &str, holder: Option<&Locked>) -> Result<()> {
    let dir = registry.sandbox_dir(id)?;
    let first = registry.dir(id)?;
    let is_taken = || first.exists() && holder.is_none_or(|holder| holder.dir() != first);
    let Some(_lock) = registry.lock_sandbox(id)? else { return Ok(()) };
    if is_taken() || has(registry, id, |_| true)? {
        return Ok(());
    }
    clear(id, &dir)
}

/// Whether there are such containers in a sandbox.
fn has(registry: &Registry, id: &str, such: impl Fn(&Container) -> bool) -> Result<bool> {
    Ok(registry.list()?.containers.iter().any(|one| one.sandbox == id && such(one)))
}

/// Waits for the proxy of a sandbox without containers to end, and takes away what a killed one has
/// left.
fn clear(id: &str, dir: &Path) -> Result<()> {
    if let Some(proxy) = proxy_of(dir) {
        if !proxy.wait(PATIENCE) && !proxy.kill_and_wait(PATIENCE) {
            bail!(
                "the proxy of sandbox {id} (pid {}) does not end, although it was killed",
                proxy.pid
            );
        }
        kata_sandbox::sweep_of(&kata_host_runtime::run_dir_of(id)?, proxy)
            .with_context(|| format!("cannot remove what is left of sandbox {id}"))?;
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// A process's mount namespace; `None` if it has ended. It is looked at after the file was opened:
/// another process with its id would have started by then, so what is open would be seen to be that
/// one's.
fn mount_namespace(process: &ProcessIdentity) -> Option<fs::File> {
    let namespace = fs::File::open(format!("/proc/{}/ns/mnt", process.pid)).ok()?;
    process.is_alive().then_some(namespace)
}

fn proxy_of(dir: &Path) -> Option<ProcessIdentity> {
    serde_json::from_slice(&fs::read(dir.join(PROXY)).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unknown_or_has_gone_with_its_sandbox_has_ended() {
        let refused = |code| CallError::Refused { code, message: String::new() };
        assert!(has_ended(&refused(Code::NOT_FOUND)) && has_ended(&refused(Code::ABORTED)));
        assert!(!has_ended(&refused(Code::FAILED_PRECONDITION)));
        let lost = CallError::Lost(io::ErrorKind::UnexpectedEof.into());
        assert!(has_ended(&lost));
    }

    #[test]
    fn mount_namespace_is_that_of_the_process_and_not_of_another_with_its_id() {
        let own = ProcessIdentity::of(std::process::id()).unwrap();
        assert!(mount_namespace(&own).is_some());
        let earlier = ProcessIdentity { start_time: own.start_time - 1, ..own };
        assert!(mount_namespace(&earlier).is_none());
    }

    #[test]
    fn a_sandbox_goes_when_its_first_container_is_gone_and_nothing_outside_ever_does() {
        let root = tempfile::tempdir().unwrap();
        let registry = Registry::new(&root.path().join("root")).unwrap();
        let outside = root.path().join("outside");
        fs::create_dir(&outside).unwrap();
        assert!(remove(&registry, outside.to_str().unwrap(), None).is_err());
        assert!(remove(&registry, "../../outside", None).is_err());
        assert!(outside.exists());

        let first = registry.reserve("p1").unwrap();
        let (sandbox, _listener) = Sandbox::make(&registry, "p1").unwrap();
        remove(&registry, "p1", None).unwrap();
        let member = registry.reserve("c1").unwrap();
        remove(&registry, "p1", Some(&member)).unwrap();
        assert!(sandbox.dir.exists(), "its first container is being made");
        remove(&registry, "p1", Some(&first)).unwrap();
        assert!(!sandbox.dir.exists(), "it goes before the first container's id is free");

        let (sandbox, _listener) = Sandbox::make(&registry, "p1").unwrap();
        first.remove().unwrap();
        remove(&registry, "p1", None).unwrap();
        assert!(!sandbox.dir.exists());
    }
}
