//! What can go wrong, in sentences that reach the engine's user.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why a sandbox's network cannot be read or joined.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// There is no such namespace.
    #[error("cannot open the network namespace {path}")]
    Open {
        /// Its path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The namespace is the host's.
    #[error(
        "the network namespace {0} is the host's own, which cannot be shared with a VM; \
         run without host networking, or under another runtime"
    )]
    Host(PathBuf),
    /// The namespace cannot be entered, or none be made.
    #[error("cannot {action}")]
    Namespace {
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// An interface cannot be joined to a VM.
    #[error(
        "the network interface {interface} {reason}; remove it, or set `internetworking_model` to \"none\""
    )]
    Interface {
        /// Its name.
        interface: String,
        /// What stands in the way.
        reason: String,
    },
    /// The kernel refused a request about the network.
    #[error("cannot {action}")]
    Kernel {
        /// The request, as it would follow "to".
        action: String,
        /// What the kernel said.
        #[source]
        source: rtnetlink::Error,
    },
    /// A tap could not be opened.
    #[error("cannot {action}")]
    Device {
        /// What was tried.
        action: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Turns the kernel's refusal of `action` into an error.
pub(crate) fn kernel(action: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    let action = action.into();
    move |source| NetworkError::Kernel { action, source }
}
