//! Carries the guest's console from QEMU into the ring.

use kata_hypervisor::Console;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::watch;

/// Spawns the task that does it. It ends when QEMU does, and closes what it returned.
pub(crate) fn collect(mut from: UnixStream, into: Console) -> watch::Receiver<()> {
    let (end, ended) = watch::channel(());
    tokio::spawn(async move {
        let _end = end;
        let mut chunk = vec![0; 4096];
        // An error is as good as the end: the socket pair has no other failure than the loss of its peer.
        while let Ok(length @ 1..) = from.read(&mut chunk).await {
            into.push(&chunk[..length]);
        }
    });
    ended
}
