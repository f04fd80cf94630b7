//! Turns at booting, on a host that emulates.
//!
//! The boot of an emulated guest keeps one of the host's processors busy from its beginning to its
//! end. When more of them run at a time than there are processors, each only waits for the others,
//! and all together take a third longer. So each takes one of as many slots as there are
//! processors, and keeps it until its agent answers (docs/adr/0019).
//!
//! ```text
//!   open all slots' files ──▶ lock one ──▶ BootSlot ── dropped, or its process is dead ──▶ free
//!                               ▲   └─ all are locked: a moment later, once more
//!                               └──────────────┘
//! ```
//!
//! It is a matter of speed alone: who gets none boots without one.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

/// The processors that the host has switched on, as a list like `0-3,6`
/// (Documentation/admin-guide/cputopology.rst of Linux).
const ONLINE: &str = "/sys/devices/system/cpu/online";

/// The time between two tries. No event tells of one of several locks; that a file was closed is
/// told before its lock is free.
const AGAIN: Duration = Duration::from_millis(20);

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
                let seconds = patience.as_secs();
                tracing::warn!(
                    "other guests have been booting for {seconds} s: this one boots, too"
                );
                None
            }
        }
    }
}

/// How many slots there are: one for each of the host's processors, whatever share of them the
/// cgroup of this process has, so that all agree. One where that cannot be told.
pub(crate) fn count() -> usize {
    fs::read_to_string(ONLINE).ok().and_then(|list| length(&list)).unwrap_or(1)
}

/// How many numbers are in a list like `0-3,6`; `None` if it is none.
fn length(list: &str) -> Option<usize> {
    let lengths = list.trim_end().split(',').map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        Some(last.checked_sub(first)? + 1)
    });
    lengths.sum()
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
    tracing::info!("waits until fewer than {count} other guests boot, one for each processor");
    loop {
        tokio::time::sleep(AGAIN).await;
        if let Some(slot) = first_free(&mut files)? {
            return Ok(slot);
        }
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
        assert!(BootSlot::take(&place, 2, Duration::from_millis(100)).await.is_none());
        let mut waiting = std::pin::pin!(BootSlot::take(&place, 2, LONG));
        tokio::select! {
            biased;
            _ = waiting.as_mut() => panic!("there were two"),
            () = std::future::ready(()) => {}
        }
        drop(first);
        let third = waiting.await.unwrap();
        drop((second, third));
        assert!(BootSlot::take(&place, 1, LONG).await.is_some());
    }

    /// By threads with a runtime each, as processes have one.
    #[test]
    fn all_get_their_turn() {
        let directory = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| {
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_time()
                        .build()
                        .unwrap();
                    let slot = runtime.block_on(BootSlot::take(directory.path(), 2, LONG));
                    assert!(slot.is_some());
                });
            }
        });
    }

    #[tokio::test]
    async fn where_no_file_can_be_made_there_are_no_slots() {
        let none = Path::new("/proc/no-such-directory");
        assert!(BootSlot::take(none, 2, LONG).await.is_none());
    }

    #[test]
    fn processors_are_counted() {
        for (list, expected) in [
            ("0\n", Some(1)),
            ("0-3\n", Some(4)),
            ("0-1,4,6-7", Some(5)),
            ("", None),
            ("3-1", None),
        ] {
            assert_eq!(length(list), expected, "{list}");
        }
        assert!(count() >= 1);
    }
}
