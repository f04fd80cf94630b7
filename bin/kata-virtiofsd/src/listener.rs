//! The socket on which the VMM is awaited.

#![expect(unsafe_code, reason = "a descriptor that was inherited is known by its number only")]

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use anyhow::{Context, bail};
use rustix::fs::Mode;
use rustix::net::AddressFamily;
use rustix::net::sockopt::{socket_acceptconn, socket_domain};

use crate::options::{Endpoint, Options};

/// Takes over the inherited listening socket, or listens at a path of its own that only root can
/// connect to.
pub(crate) fn open(options: &Options) -> anyhow::Result<UnixListener> {
    match options.endpoint() {
        Endpoint::Inherited(number) => inherited(number),
        Endpoint::Path(path) => {
            rustix::process::umask(Mode::RWXG | Mode::RWXO);
            UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))
        }
    }
}

fn inherited(number: RawFd) -> anyhow::Result<UnixListener> {
    if number <= 2 {
        bail!(
            "--fd={number} is one of the standard three; pass the listening socket as another one"
        );
    }
    // SAFETY: used only to ask the kernel what the descriptor is; a number that is not open gives
    // EBADF.
    let socket = unsafe { BorrowedFd::borrow_raw(number) };
    let listens = socket_domain(socket).is_ok_and(|domain| domain == AddressFamily::UNIX)
        && socket_acceptconn(socket).unwrap_or(false);
    if !listens {
        bail!("--fd={number} is not a listening unix socket");
    }
    // SAFETY: it is open, and nothing in this process has claimed it: the program has only just
    // started.
    Ok(unsafe { OwnedFd::from_raw_fd(number) }.into())
}
