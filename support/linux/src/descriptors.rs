//! Descriptors that this process was started with, and the runtime's events of others.

#![expect(
    unsafe_code,
    reason = "close_range(2) has no safe wrapper here, and a number becomes a descriptor only by an unsafe call"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::fcntl_getfd;
use tokio::io::unix::AsyncFd;

/// Has tokio tell when a descriptor can be read or written. It must be non-blocking, and of a kind
/// that epoll(7) takes.
///
/// # Panics
/// Outside of a tokio runtime with I/O.
pub fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open, and stays the same descriptor for as long as it lives.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}

/// Marks every descriptor from `first` on to be closed at the next execve(2): whatever the caller
/// left open by mistake or on purpose goes no further than this process. Those that are opened
/// later are not meant.
pub fn close_at_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: the call changes a flag of descriptors and touches no memory; nothing relies on a
    // descriptor outliving an exec.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The descriptor with this number, 3 to 63, that the caller has passed on purpose. To be called
/// once for each number, before this process opens anything itself. An error (EBADF) if there is
/// none.
pub fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    static TAKEN: AtomicU64 = AtomicU64::new(0);
    if !(3..64).contains(&number) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: borrowed only to ask whether it is open; nothing of this process can close it
    // meanwhile, since nothing owns it.
    fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) })?;
    let bit = 1 << number;
    if TAKEN.fetch_or(bit, Ordering::Relaxed) & bit != 0 {
        return Err(io::Error::from(io::ErrorKind::AlreadyExists));
    }
    // SAFETY: it is open, and the mask above makes sure that it gets one owner only.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// What standard input is, which becomes /dev/null instead: the one descriptor that needs no
/// agreement on numbers, as with inetd.
pub fn take_stdin() -> io::Result<OwnedFd> {
    let taken = io::stdin().as_fd().try_clone_to_owned()?;
    nix::unistd::dup2_stdin(File::open("/dev/null")?)?;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};

    use super::*;

    #[test]
    fn a_descriptor_that_would_be_inherited_is_not() {
        let file = fcntl_dupfd_cloexec(File::open("/dev/null").unwrap(), 1000).unwrap();
        fcntl_setfd(&file, FdFlags::empty()).unwrap();
        close_at_exec_from(u32::try_from(file.as_raw_fd()).unwrap()).unwrap();
        assert_eq!(fcntl_getfd(&file).unwrap(), FdFlags::CLOEXEC);
    }

    #[test]
    fn a_number_is_taken_once_and_only_if_it_is_open() {
        assert_eq!(take_inherited(62).unwrap_err().raw_os_error(), Some(libc::EBADF));
        let passed = fcntl_dupfd_cloexec(File::open("/dev/null").unwrap(), 63).unwrap();
        if passed.as_raw_fd() != 63 {
            return;
        }
        std::mem::forget(passed);
        let _taken = take_inherited(63).unwrap();
        assert!(take_inherited(63).is_err());
        assert!(take_inherited(1).is_err());
    }
}
