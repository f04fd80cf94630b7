//! Why something could not be mounted, shared or served.

use std::io;
use std::path::PathBuf;

use kata_linux::identifier::IdentifierError;
use kata_linux::mount::MountError;
use kata_linux::process::SpawnError;
use thiserror::Error;

/// Why something could not be mounted, shared or served.
#[derive(Debug, Error)]
pub enum StorageError {
    /// A file and a directory meet at a mount point.
    #[error(
        "cannot mount {source_path} at {destination}: not a directory: a directory cannot be mounted onto a file, nor a file onto a directory"
    )]
    Kinds {
        /// What was to be mounted.
        source_path: PathBuf,
        /// Where.
        destination: PathBuf,
    },
    /// A bind mount's source is not there or not accessible. Worded as runc words it, since engines
    /// match on that.
    #[error("error mounting \"{origin}\" to rootfs at \"{destination}\": stat {origin}: {reason}")]
    NoSource {
        /// The source as the spec has it.
        origin: PathBuf,
        /// Where it should appear in the container.
        destination: PathBuf,
        /// The system's words, in lower case.
        reason: String,
    },
    /// A mount that would not mean in the VM what it means on the host.
    #[error("mount at {destination} cannot be made in a VM: {reason}")]
    Unsupported {
        /// Where it should appear in the container.
        destination: PathBuf,
        /// Why not, and what to do instead.
        reason: String,
    },
    /// An id that is no safe file name.
    #[error(transparent)]
    Id(#[from] IdentifierError),
    /// The name of a directory of the sandbox's, beside which the guest has those of containers.
    #[error(
        "no container can have the id `{0}`, which is a directory of the sandbox's; choose another"
    )]
    TakenId(String),
    /// containerd asked for a root file system that cannot be made.
    #[error("root file system: {0}")]
    Rootfs(String),
    /// A mount operation failed.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// A file operation failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file server did not start.
    #[error("cannot start the file server; check `virtio_fs_daemon` in the configuration")]
    Server(#[from] SpawnError),
}
