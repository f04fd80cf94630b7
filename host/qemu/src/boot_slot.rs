//! Turns at booting, on a host that emulates.
//!
//! The boot of an emulated guest keeps one of the host's processors busy from its beginning to its
//! end. When more of them run at a time than there are processors, each only waits for the others,
//! and all together take a third longer. So each takes one of as many slots as there are
//! processors, and keeps it until its agent answers.
//!
//! ```text
//!   open all slots' files ──▶ lock one ──▶ BootSlot ── dropped, or its process is dead ──▶ free
//!                               ▲   └─ all are locked: until one is closed (DirectoryWatch) ─┐
//!                               └──────────────────────────────────────────────────────┘
//! ```
//!
//! It is a matter of speed alone: who gets none boots without one.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use kata_linux::directory::DirectoryWatch;

/// A turn at booting, until it is dropped.
#[derive(Debug)]
pub(crate) struct BootSlot {
    /// It is locked as long as it is open.
    _file: File,
}

impl BootSlot {
    /// Waits for one of `count` slots, for at most `patience`. The slots are files in `directory`,
    /// which is made if it is not there. `None`, which the log explains, where there is none to be
    /// had.
    pub(crate) async fn take(directory: &Path, count: usize, patience: Duration) -> Option<Self> {
        match tokio::time::timeout(patience, wait(directory, count)).await {
            Ok(Ok(slot)) => Some(slot),
            Ok(Err(error)) => {
                let directory = directory.display();
                tracing::warn!("boots do not take turns, for {directory} is not usable: {error}");
                None
            }
            Err(_) => {
                tracing::warn!(
                    "others have been booting for {} s: this one boots out of turn",
                    patience.as_secs()
                );
                None
            }
        }
    }
}

async fn wait(directory: &Path, count: usize) -> io::Result<BootSlot> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let open = |number: usize| {
        let path = directory.join(number.to_string());
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)
    };
    let mut files = (0..count).map(open).collect::<io::Result<Vec<File>>>()?;
    if let Some(slot) = first_free(&mut files)? {
        return Ok(slot);
    }
    let closings = DirectoryWatch::of_closings(directory)?;
    loop {
        // After the watch was set: what was closed before that tells nobody.
        if let Some(slot) = first_free(&mut files)? {
            return Ok(slot);
        }
        closings.next().await?;
    }
}

/// Locks the first of the files that is free, and takes it out.
fn first_free(files: &mut Vec<File>) -> io::Result<Option<BootSlot>> {
    for index in 0..files.len() {
        match files[index].try_lock() {
            Ok(()) => return Ok(Some(BootSlot { _file: files.swap_remove(index) })),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn slot_is_had_when_another_is_given_back() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("boots");
        let first = BootSlot::take(&place, 2, LONG).await.unwrap();
        let second = BootSlot::take(&place, 2, LONG).await.unwrap();
        assert!(BootSlot::take(&place, 2, Duration::from_millis(20)).await.is_none());
        let mut waiting = std::pin::pin!(BootSlot::take(&place, 2, LONG));
        // It is seen to wait before one is given back.
        let poll = polled_once(waiting.as_mut()).await;
        assert!(poll.is_none());
        drop(first);
        let third = waiting.await.unwrap();
        drop((second, third));
        assert!(BootSlot::take(&place, 1, LONG).await.is_some());
    }

    #[tokio::test]
    async fn all_get_their_turn() {
        let directory = tempfile::tempdir().unwrap();
        let turns: Vec<_> = (0..20)
            .map(|_| {
                let place = directory.path().to_owned();
                tokio::spawn(async move {
                    let slot = BootSlot::take(&place, 2, LONG).await.unwrap();
                    tokio::task::yield_now().await;
                    drop(slot);
                })
            })
            .collect();
        for turn in turns {
            turn.await.unwrap();
        }
    }

    #[tokio::test]
    async fn where_no_file_can_be_made_there_are_no_slots() {
        let none = Path::new("/proc/no-such-directory");
        assert!(BootSlot::take(none, 2, LONG).await.is_none());
    }

    /// What a future says when it is polled once.
    async fn polled_once<F: Future>(future: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            output = future => Some(output),
            () = std::future::ready(()) => None,
        }
    }
}
