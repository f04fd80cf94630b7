//! A network namespace (network_namespaces(7)): opened, made, and entered by threads that end
//! there.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use rtnetlink::Handle;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::NetworkError;

/// The calling thread's own namespace.
const OF_THIS_THREAD: &str = "/proc/thread-self/ns/net";

/// Which namespace it is, for as long as it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceId {
    device: u64,
    inode: u64,
}

impl NamespaceId {
    /// The identity of whatever is at `path`.
    fn at(path: &str) -> io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        Ok(Self { device: metadata.dev(), inode: metadata.ino() })
    }
}

/// An open network namespace. It exists at least as long as this does. Clones are the same one.
#[derive(Clone)]
pub struct Namespace {
    path: PathBuf,
    file: Arc<OwnedFd>,
    id: NamespaceId,
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Namespace").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Namespace {
    /// Opens the namespace at `path`, as bound by ip-netns(8) or in some process's
    /// `/proc/PID/ns/net`. The host's is refused with [`NetworkError::Host`], and so is that of the
    /// calling process.
    pub fn open(path: &Path) -> Result<Self, NetworkError> {
        let namespace = Self::reopen(path)?;
        let hosts = ["/proc/self/ns/net", "/proc/1/ns/net"];
        // The first process may be somebody else's to look at; then one's own has to do.
        if hosts.iter().any(|host| NamespaceId::at(host).is_ok_and(|id| id == namespace.id)) {
            return Err(NetworkError::Host(path.to_owned()));
        }
        Ok(namespace)
    }

    /// Like [`Namespace::open`], whosever it is: to take away what one has put there.
    pub fn reopen(path: &Path) -> Result<Self, NetworkError> {
        let failed = |source| NetworkError::Open { path: path.to_owned(), source };
        // Whatever the path leads to, opening it must not wait.
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file = file.map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let id = NamespaceId { device: metadata.dev(), inode: metadata.ino() };
        Ok(Self { path: path.to_owned(), file: Arc::new(file.into()), id })
    }

    /// Makes a new namespace, in which there is nothing but a loopback interface that is down. It
    /// goes with the last that uses it.
    pub fn fresh() -> Result<Self, NetworkError> {
        let failed =
            |source| NetworkError::Namespace { action: "make a network namespace", source };
        let maker = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open(OF_THIS_THREAD)
        });
        let file = join_thread(maker).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let id = NamespaceId { device: metadata.dev(), inode: metadata.ino() };
        let path = PathBuf::from(format!("of this sandbox (net:[{}])", id.inode));
        Ok(Self { path, file: Arc::new(file.into()), id })
    }

    /// Which one it is.
    #[must_use]
    pub fn id(&self) -> NamespaceId {
        self.id
    }

    /// The path by which it was opened; of a fresh one, words for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open descriptor, shared: for a child that is to live in the namespace.
    #[must_use]
    pub fn descriptor(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.file)
    }

    /// Runs `work` in the namespace, on a thread of its own with a connection to the namespace's
    /// netlink.
    pub(crate) async fn enter<T, F>(
        &self,
        work: impl FnOnce(Handle) -> F + Send + 'static,
    ) -> Result<T, NetworkError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, NetworkError>>,
    {
        let (done, result) = oneshot::channel();
        let namespace = self.clone();
        thread::spawn(move || {
            // Whoever asked may have lost interest.
            let _ = done.send(namespace.work_on_this_thread(work));
        });
        result.await.unwrap_or_else(|_| Err(entering(died())))
    }

    /// Like [`Namespace::enter`], for callers outside of any runtime.
    pub(crate) fn enter_blocking<T, F>(
        &self,
        work: impl FnOnce(Handle) -> F + Send + 'static,
    ) -> Result<T, NetworkError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, NetworkError>>,
    {
        let namespace = self.clone();
        let worker = thread::spawn(move || namespace.work_on_this_thread(work));
        worker.join().unwrap_or_else(|_| Err(entering(died())))
    }

    /// The thread stays in the namespace: it must not be used for anything else.
    fn work_on_this_thread<T, F>(self, work: impl FnOnce(Handle) -> F) -> Result<T, NetworkError>
    where
        F: Future<Output = Result<T, NetworkError>>,
    {
        move_into_link_name_space(self.as_fd(), Some(LinkNameSpaceType::Network)).map_err(
            |source| NetworkError::Open { path: self.path.clone(), source: source.into() },
        )?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
        runtime.map_err(entering)?.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().map_err(entering)?;
            tokio::spawn(connection);
            work(handle).await
        })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn entering(source: io::Error) -> NetworkError {
    NetworkError::Namespace { action: "work in the network namespace", source }
}

fn died() -> io::Error {
    io::Error::other("the thread that was in it panicked")
}

fn join_thread<T>(thread: thread::JoinHandle<io::Result<T>>) -> io::Result<T> {
    thread.join().unwrap_or_else(|_| Err(died()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_namespace_is_refused() {
        for path in ["/proc/self/ns/net", "/proc/thread-self/ns/net"] {
            let error = Namespace::open(Path::new(path)).unwrap_err();
            assert!(matches!(error, NetworkError::Host(_)), "{error}");
        }
    }

    #[test]
    fn missing_namespace_is_named() {
        let error = Namespace::open(Path::new("/run/netns/no-such")).unwrap_err();
        assert!(error.to_string().contains("/run/netns/no-such"), "{error}");
    }

    #[tokio::test]
    async fn file_that_is_no_namespace_is_an_error() {
        let namespace = Namespace::open(Path::new("/dev/null")).unwrap();
        let error = namespace.enter(|_| async { Ok(()) }).await.unwrap_err();
        assert!(matches!(error, NetworkError::Open { .. }), "{error}");
    }
}
