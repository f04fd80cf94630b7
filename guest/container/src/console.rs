//! Terminals of containers: they are made inside of the container, on its own devpts, so that the
//! names of `/dev/pts` mean the same to everybody in there; only the master comes to the agent.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};

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
