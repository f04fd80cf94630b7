//! The process that serves a share to the VM.

use std::ffi::OsString;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Instant;

use kata_linux::jail::{Jail, Resource};
use kata_linux::process::{Child, Exit, Spawn};

use crate::StorageError;

/// How to run a file server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileServerSpec {
    /// Our `kata-virtiofsd`, or another one: that of QEMU up to 7, or the one written in Rust that
    /// took its place.
    pub program: PathBuf,
    /// Whether it is another one: it then puts up its walls by itself, all of them.
    pub external: bool,
    /// Further arguments from the administrator; they come last, and win.
    pub extra_args: Vec<String>,
    /// What the guest may cache: `auto`, `always`, `never` or `metadata`.
    pub cache: String,
    /// The directory to serve ([`crate::Share::path`]).
    pub shared_dir: PathBuf,
    /// Where the VMM connects; at most 107 bytes, must not exist. Removed with the server.
    pub socket: PathBuf,
    /// Log every request. Only the last lines are kept.
    pub debug: bool,
}

/// A running file server. It serves one VMM, and ends when that disconnects, when the thread that
/// started it ends, or when this value is dropped.
#[derive(Debug)]
pub struct FileServer {
    child: Child,
    socket: PathBuf,
}

impl FileServer {
    /// Starts the server. On return its socket accepts connections, whether the program is through
    /// with its set-up or not.
    ///
    /// The server sees what is mounted below the directory in the calling thread's mount namespace,
    /// now and later.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(spec: &FileServerSpec) -> Result<Self, StorageError> {
        let listener = UnixListener::bind(&spec.socket).map_err(|source| StorageError::Io {
            action: "listen for the VM on",
            path: spec.socket.clone(),
            source,
        })?;
        let mut spawn = Spawn::new(&spec.program);
        let fd = spawn.pass_fd(listener);
        // The namespace of its processes is the one wall that it cannot put up without a second
        // process.
        let jail =
            Jail { own_pids: !spec.external, limits: vec![(Resource::Core, 0)], ..Jail::default() };
        let child = spawn.args(arguments(spec, fd)).jail(jail).spawn().inspect_err(|_| {
            // Nobody will ever listen there.
            let _ = std::fs::remove_file(&spec.socket);
        })?;
        Ok(Self { child, socket: spec.socket.clone() })
    }

    /// The server's process id on the host.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// When its program had been executed.
    #[must_use]
    pub fn executed(&self) -> Instant {
        self.child.executed()
    }

    /// Resolves when the server has ended, with how; at once if it already has.
    pub async fn exited(&self) -> Exit {
        self.child.exited().await
    }

    /// Ends the server and returns when it is gone. May be repeated.
    pub async fn stop(&self) {
        self.child.end().await;
        self.remove_socket();
    }

    /// The last lines that the server has logged, oldest first.
    #[must_use]
    pub fn stderr(&self) -> Vec<String> {
        self.child.stderr()
    }

    fn remove_socket(&self) {
        // It may be gone with the sandbox's directory.
        let _ = std::fs::remove_file(&self.socket);
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        self.remove_socket();
    }
}

fn arguments(spec: &FileServerSpec, fd: i32) -> Vec<OsString> {
    let mut arguments = if spec.external { others(spec, fd) } else { ours(spec, fd) };
    arguments.extend(spec.extra_args.iter().map(OsString::from));
    arguments
}

/// QEMU's own server knows no others than these, and its successor still takes them.
fn others(spec: &FileServerSpec, fd: i32) -> Vec<OsString> {
    let mut source = OsString::from("source=");
    source.push(&spec.shared_dir);
    let cache = if spec.cache == "never" { "none" } else { &spec.cache };
    let mut arguments = vec![format!("--fd={fd}").into()];
    for option in [source, format!("cache={cache}").into(), "xattr".into()] {
        arguments.extend(["-o".into(), option]);
    }
    if spec.debug {
        arguments.push("-d".into());
    }
    arguments
}

/// What only a host's root may set, which the server is not, is kept under another name: an overlay
/// that the guest makes on shared files (Docker in a container) has its marks in such attributes.
/// By that name nobody in the guest reaches them, who might not be its root (virtiofsd's `map`).
const ATTRIBUTES: &str = ":map:trusted.:user.virtiofs.:";

fn ours(spec: &FileServerSpec, fd: i32) -> Vec<OsString> {
    let mut shared_dir = OsString::from("--shared-dir=");
    shared_dir.push(&spec.shared_dir);
    vec![
        format!("--fd={fd}").into(),
        shared_dir,
        format!("--cache={}", spec.cache).into(),
        // Images carry file capabilities in attributes.
        format!("--xattrmap={ATTRIBUTES}").into(),
        format!("--log-level={}", if spec.debug { "debug" } else { "warn" }).into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(external: bool, cache: &str) -> FileServerSpec {
        FileServerSpec {
            program: "virtiofsd".into(),
            external,
            extra_args: vec!["--thread-pool-size=1".to_owned()],
            cache: cache.to_owned(),
            shared_dir: "/run/x/shared".into(),
            socket: "/run/x/fs.sock".into(),
            debug: false,
        }
    }

    #[test]
    fn administrators_arguments_come_last() {
        let arguments = arguments(&spec(false, "auto"), 3);
        assert_eq!(arguments[..2], ["--fd=3", "--shared-dir=/run/x/shared"]);
        assert_eq!(arguments.last().unwrap(), "--thread-pool-size=1");
    }

    #[test]
    fn other_servers_are_told_in_their_words() {
        let arguments = arguments(&spec(true, "never"), 3);
        let expected = ["--fd=3", "-o", "source=/run/x/shared", "-o", "cache=none", "-o", "xattr"];
        assert_eq!(arguments[..7], expected);
        assert_eq!(arguments.last().unwrap(), "--thread-pool-size=1");
    }
}
