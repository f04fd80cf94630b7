//! The one place where the agent forks.
//!
//! Everything that changes a process for good (namespaces, ids, capabilities, seccomp) runs in a
//! child, whose code is ordinary Rust. That is sound only because the agent has a single thread:
//! then the child's copy of the allocator, of locks and of the runtime is consistent.
//!
//! The child answers on a socket, in messages of JSON that may carry file descriptors. It never
//! returns into the agent's code, holds none of the agent's other descriptors (an init that waits
//! for its start would keep other containers' pipes open), and logs nothing: its standard output
//! may be the container's.
#![expect(unsafe_code, reason = "fork and clone3 are the subject of this module")]

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::AssertUnwindSafe;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::process::DumpableBehavior;
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::descriptor::Descriptor;

/// Longest message, which an error's text is cut to fit.
const MAX_MESSAGE: usize = 16 << 10;
/// Most descriptors in one message.
const MAX_FDS: usize = 4;

/// Why a child could not be made, or what became of it.
#[derive(Debug, thiserror::Error)]
pub enum ForkError {
    /// No child could be made.
    #[error("cannot make a process")]
    Fork(#[source] io::Error),
    /// The way to the child broke.
    #[error("cannot talk to the process that sets the container up")]
    Talk(#[source] io::Error),
    /// The child sent something else than was expected.
    #[error("the process that sets the container up answered something unexpected")]
    Answer(#[source] serde_json::Error),
    /// The child ended without an answer.
    #[error("the process that sets the container up died")]
    Died,
}

/// A forked child that works for the agent and answers.
#[derive(Debug)]
pub struct Child {
    /// Its process id; the caller reaps it.
    pub pid: i32,
    socket: Descriptor,
}

/// The child's side of the conversation.
#[derive(Debug)]
pub struct Answers {
    socket: OwnedFd,
}

/// Where a child is born.
#[derive(Debug)]
pub struct Birthplace<'a> {
    /// Directory of its cgroup. Born into it, it need not be moved, for which the kernel would stop
    /// all others.
    pub cgroup: BorrowedFd<'a>,
    /// A process whose pid namespace it is to be in; `None` for the agent's.
    pub pid_namespace: Option<BorrowedFd<'a>>,
}

/// Forks a child that runs `work` and exits, with its standard streams and the descriptors in
/// `keep` (under the same numbers), and no others. It begins with default signal dispositions and
/// no signal blocked.
///
/// # Errors
///
/// Fails when processes, memory or descriptors have run out.
pub fn fork(keep: &[BorrowedFd<'_>], work: impl FnOnce(&Answers)) -> Result<Child, ForkError> {
    let (socket, theirs) = conversation()?;
    // SAFETY: the agent has one thread, so the child's memory is consistent, and it leaves through
    // `run`, which never returns.
    match unsafe { libc::fork() } {
        -1 => Err(ForkError::Fork(io::Error::last_os_error())),
        0 => run(keep, theirs, work),
        pid => Ok(Child { pid, socket }),
    }
}

/// As [`fork`], but the child is born into `place`. Also yields a descriptor of it, which is its
/// own even if its pid is given away before the caller looks.
///
/// # Errors
///
/// As [`fork`], when the pid namespace's init has ended, and with EBUSY when the group has been
/// divided into others.
pub fn fork_into(
    place: &Birthplace<'_>,
    keep: &[BorrowedFd<'_>],
    work: impl FnOnce(&Answers),
) -> Result<(Child, OwnedFd), ForkError> {
    let (socket, theirs) = conversation()?;
    let born = match place.pid_namespace {
        Some(process) => with_children_in(process, || clone_into(place.cgroup)),
        None => clone_into(place.cgroup),
    };
    match born.map_err(ForkError::Fork)? {
        None => run(keep, theirs, work),
        Some((pid, pidfd)) => Ok((Child { pid, socket }, pidfd)),
    }
}

fn conversation() -> Result<(Descriptor, OwnedFd), ForkError> {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(|errno| ForkError::Fork(errno.into()))?;
    Ok((Descriptor::new(ours).map_err(ForkError::Fork)?, theirs))
}

/// In the child.
fn run(keep: &[BorrowedFd<'_>], socket: OwnedFd, work: impl FnOnce(&Answers)) -> ! {
    let mut kept: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    kept.push(socket.as_raw_fd());
    reset_signals();
    close_others(kept);
    let answers = Answers { socket };
    let silence = tracing::Dispatch::none();
    let work = AssertUnwindSafe(|| work(&answers));
    let outcome = tracing::dispatcher::with_default(&silence, || {
        std::panic::catch_unwind(work).map_or(1, |()| 0)
    });
    exit(outcome)
}

/// Runs `fork` while new children of this process are born into the pid namespace of `process`.
/// Entering a pid namespace changes nothing for oneself, so it can be taken back (setns(2)).
fn with_children_in(
    process: BorrowedFd<'_>,
    fork: impl FnOnce() -> io::Result<Born>,
) -> io::Result<Born> {
    let own = std::fs::File::open("/proc/self/ns/pid")?;
    rustix::thread::move_into_thread_name_spaces(process, ThreadNameSpaceType::PROCESS_ID)?;
    let born = fork();
    // Not in the child, whose own children belong where it was born.
    if !matches!(born, Ok(None)) {
        rustix::thread::move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::ProcessID))
            .expect("a process may always return to its own pid namespace");
    }
    born
}

/// Makes this process, and every child that it forks, invisible to debuggers and the like until it
/// executes something else. To be called once, before the first container is made: a process that
/// joins a container is still made of the agent for a while, and its memory and descriptors must
/// not be for the container to look at.
///
/// # Errors
///
/// No known kernel refuses.
pub fn hide() -> io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Ends this process at once, running nothing of what the agent has registered for its own end.
pub fn exit(code: i32) -> ! {
    // SAFETY: `_exit` is always safe to call.
    unsafe { libc::_exit(code) }
}

/// Layout of `struct clone_args` of linux/sched.h, in its third version (Linux 5.7).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// What a call that returns twice returns: `None` in the child; in the parent, who it is.
type Born = Option<(i32, OwnedFd)>;

/// Forks into `cgroup`.
fn clone_into(cgroup: BorrowedFd<'_>) -> io::Result<Born> {
    /// `CLONE_INTO_CGROUP` of linux/sched.h.
    const INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut pidfd: RawFd = -1;
    let mut arguments = CloneArgs {
        flags: u64::from(libc::CLONE_PIDFD.unsigned_abs()) | INTO_CGROUP,
        pidfd: &raw mut pidfd as u64,
        exit_signal: libc::SIGCHLD.unsigned_abs().into(),
        cgroup: cgroup.as_raw_fd().unsigned_abs().into(),
        ..CloneArgs::default()
    };
    // SAFETY: without CLONE_VM and with no stack given this is a fork, to which the reasoning of
    // `fork` applies; the struct has the size that is given, and its one pointer is valid.
    let pid =
        unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<CloneArgs>()) };
    match i32::try_from(pid) {
        Ok(0) => Ok(None),
        // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
        Ok(pid @ 1..) => Ok(Some((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Rust programs ignore SIGPIPE and the runtime handles SIGCHLD; neither is for a container.
fn reset_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: the default disposition is valid for every signal; those that cannot be changed
        // (SIGKILL, SIGSTOP, two of the C library's own) fail harmlessly.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: the set is initialised by sigemptyset before it is used.
    unsafe {
        let mut none = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
    }
}

/// Closes every descriptor but the standard streams and `kept`.
fn close_others(mut kept: Vec<RawFd>) {
    kept.sort_unstable();
    kept.dedup();
    let mut first = 3;
    for fd in kept.into_iter().filter(|fd| *fd >= 3) {
        if first < fd {
            close_range(first, fd - 1);
        }
        first = fd + 1;
    }
    close_range(first, RawFd::MAX);
}

fn close_range(first: RawFd, last: RawFd) {
    // SAFETY: the values that own these descriptors belong to the agent's code, to which this
    // process never returns.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
}

impl Answers {
    /// A second handle on the same conversation.
    ///
    /// # Errors
    ///
    /// Fails when descriptors have run out.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { socket: self.socket.try_clone()? })
    }

    /// Sends one message. Errors are not reported: they mean that the agent is gone.
    pub fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) {
        let Ok(text) = serde_json::to_vec(message) else { return };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        let bytes = &text[..text.len().min(MAX_MESSAGE)];
        let parts = [IoSlice::new(bytes)];
        let _ = rustix::net::sendmsg(&self.socket, &parts, &mut control, SendFlags::NOSIGNAL);
    }
}

impl AsFd for Answers {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Child {
    /// The next message with its descriptors; `None` when every process that could send one has
    /// ended or executed something else.
    ///
    /// # Errors
    ///
    /// Fails when the message is not a `T`.
    pub async fn next<T: DeserializeOwned>(&self) -> Result<Option<(T, Vec<OwnedFd>)>, ForkError> {
        let received = self.socket.read_with(receive).await.map_err(ForkError::Talk)?;
        parse(received)
    }

    /// The next message if it is there already, else `None`: for a child that has ended, whose last
    /// words the runtime may not have heard of yet.
    ///
    /// # Errors
    ///
    /// Fails when the message is not a `T`.
    pub fn next_now<T: DeserializeOwned>(&self) -> Result<Option<(T, Vec<OwnedFd>)>, ForkError> {
        match receive(self.socket.as_fd()) {
            Ok(received) => parse(received),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(ForkError::Talk(error)),
        }
    }
}

fn parse<T: DeserializeOwned>(
    (bytes, fds): (Vec<u8>, Vec<OwnedFd>),
) -> Result<Option<(T, Vec<OwnedFd>)>, ForkError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let message = serde_json::from_slice(&bytes).map_err(ForkError::Answer)?;
    Ok(Some((message, fds)))
}

fn receive(socket: BorrowedFd<'_>) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let received = rustix::net::recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    bytes.truncate(received.bytes);
    Ok((bytes, fds))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    // The test harness has other threads, which `fork` must not be used beside: these children
    // only send constants and leave, and take no lock that another thread could hold.

    #[tokio::test]
    async fn fork_child_answers_and_closes() {
        let child = fork(&[], |answers| answers.send(&7u32, &[])).unwrap();
        let (answer, fds) = child.next::<u32>().await.unwrap().unwrap();
        assert_eq!((answer, fds.len()), (7, 0));
        assert!(child.next::<u32>().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn fork_child_passes_descriptor() {
        let child = fork(&[], |answers| {
            let (reader, writer) = rustix::pipe::pipe().unwrap();
            rustix::io::write(&writer, b"x").unwrap();
            answers.send(&(), &[reader.as_fd()]);
        })
        .unwrap();
        let ((), fds) = child.next().await.unwrap().unwrap();
        let mut byte = [0];
        assert_eq!(rustix::io::read(&fds[0], &mut byte).unwrap(), 1);
        assert_eq!(&byte, b"x");
    }
}
