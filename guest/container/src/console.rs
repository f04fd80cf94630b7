//! Terminals of containers: they are made inside of the container, on its own devpts, so that the
//! names of `/dev/pts` mean the same to everybody in there; only the master comes to the agent.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;

use oci_spec::runtime::Process;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// `DEVPTS_SUPER_MAGIC` of linux/magic.h.
const DEVPTS_MAGIC: i64 = 0x1cd1;

/// Takes the master that a container's init has sent to its console socket, as the OCI runtimes'
/// `--console-socket` defines it: one message with one descriptor. It must have been sent already.
pub(crate) fn receive(listener: &UnixListener) -> io::Result<OwnedFd> {
    listener.set_nonblocking(true)?;
    let (stream, _) = listener.accept()?;
    let mut name = [0; 128];
    let mut parts = [IoSliceMut::new(&mut name)];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    rustix::net::recvmsg(&stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    control
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
}

/// In a process that has joined a container: makes a terminal there. Yields master and slave.
pub(crate) fn make() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = rustix::fs::openat(CWD, "/dev/pts/ptmx", flags, Mode::empty())?;
    // The path is the container's to forge, what lies behind it is not.
    if rustix::fs::fstatfs(&master)?.f_type != DEVPTS_MAGIC {
        return Err(io::Error::other("/dev/pts of the container is no devpts file system"));
    }
    unlockpt(&master)?;
    let slave =
        ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    Ok((master, slave))
}

/// Gives the terminal of `process`, by either of its ends, the size that the specification asks
/// for, if it asks for one. To be done before the command runs, which may look at it at once.
pub(crate) fn set_size(terminal: impl AsFd, process: &Process) -> io::Result<()> {
    let Some(size) = process.console_size() else { return Ok(()) };
    let cells = |count| u16::try_from(count).unwrap_or(u16::MAX);
    let (rows, columns) = (cells(size.height()), cells(size.width()));
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(terminal, size)?)
}

#[cfg(test)]
mod tests {
    use rustix::pty::openpt;
    use rustix::termios::tcgetwinsize;
    use serde_json::json;

    use super::*;

    #[test]
    fn terminal_has_the_size_that_is_asked_for() {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        let size_after = |size: serde_json::Value| {
            let mut process = Process::default();
            process.set_console_size(serde_json::from_value(size).unwrap());
            set_size(&master, &process).unwrap();
            let size = tcgetwinsize(&master).unwrap();
            (size.ws_row, size.ws_col)
        };
        assert_eq!(size_after(json!({"height": 30, "width": 100})), (30, 100));
        assert_eq!(size_after(json!(null)), (30, 100));
        assert_eq!(size_after(json!({"height": 1, "width": 70_000})), (1, u16::MAX));
    }
}
