//! From the proxy's fifo to the stream that the engine has given.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::sync::mpsc::SyncSender;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::Errno;

/// As much as is copied at once: what a fifo holds by default.
const CHUNK: usize = 64 << 10;

/// Copies everything until the proxy closes the fifo. What nobody takes is read all the same, so
/// that the process is not held up; `refused` is called once if its reader has gone. Each piece is
/// told to `delivered`, unless the last one was not looked at yet.
pub(crate) fn copy(
    mut fifo: File,
    target: &impl AsFd,
    delivered: &SyncSender<()>,
    refused: impl Fn(),
) {
    // Nobody may have opened the other end yet, and to read would be to see the end. Poll knows the
    // difference (pipe(7)).
    await_readiness(&fifo, PollFlags::IN);
    let _ = fcntl_setfl(&fifo, OFlags::empty());
    let mut chunk = vec![0; CHUNK];
    let mut is_taken = true;
    loop {
        match fifo.read(&mut chunk) {
            Ok(0) => return,
            Ok(length) if is_taken => {
                let written = write_all(target, &chunk[..length]);
                // A full disk or a terminal that was hung up is no pipe that nobody reads.
                if written == Err(Errno::PIPE) {
                    refused();
                }
                is_taken = written.is_ok();
                let _ = delivered.try_send(());
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

fn write_all(target: &impl AsFd, mut rest: &[u8]) -> rustix::io::Result<()> {
    while !rest.is_empty() {
        match rustix::io::write(target, rest) {
            Ok(0) => return Err(Errno::IO),
            Ok(length) => rest = &rest[length..],
            // The engine may have made its end non-blocking, which then holds for this one too.
            Err(Errno::AGAIN) => await_readiness(target, PollFlags::OUT),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Waits until there is something to do with a descriptor, or it is broken.
pub(crate) fn await_readiness(fd: &impl AsFd, flags: PollFlags) {
    let mut fds = [PollFd::new(fd, flags)];
    // Any error here is met again by the read or write that follows.
    let _ = rustix::io::retry_on_intr(|| poll(&mut fds, None));
}
