//! The names of what the host had in the share.
//!
//! The guest's kernel keeps a name that it has asked for, and with it the host's file server the
//! directory that it stood for, and so the host's kernel a whole file system: until the guest is
//! short of memory, or somebody asks for the name again. Nobody would, since the host gives no name
//! twice. The host takes a mount away after the guest is through with it, so the agent asks a
//! little later, and less and less often.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, mkdir};
use rustix::io::Errno;

/// How long it waits before each look. The host takes next to no time for it; two minutes later it
/// will not come to that any more, or not before the sandbox ends.
const LOOKS: [Duration; 7] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(16),
    Duration::from_secs(32),
    Duration::from_secs(64),
];

/// Has the kernel forget the name of something that the host is about to take away. To be called
/// within the agent's runtime.
pub(super) fn forget(path: PathBuf) {
    tokio::spawn(async move {
        for wait in LOOKS {
            tokio::time::sleep(wait).await;
            match ask(&path) {
                Ok(false) => return,
                Ok(true) => {}
                Err(error) => {
                    tracing::debug!(path = %path.display(), %error, "cannot look whether the host has taken it away");
                }
            }
        }
    });
}

/// Whether the name still stands for something, by asking the host. A mere look would do only
/// when the kernel does not trust anymore what it has heard before; who wants to make something is
/// told the truth in any case. The host lets nobody make anything there.
fn ask(path: &Path) -> io::Result<bool> {
    match mkdir(path, Mode::RWXU) {
        Err(Errno::EXIST) => Ok(true),
        Err(Errno::ROFS | Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
        Ok(()) => {
            // A host of another kind.
            rustix::fs::rmdir(path)?;
            Ok(false)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_is_asked_for_and_nothing_is_left() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("1");
        assert!(!ask(&path).unwrap());
        assert!(!path.exists());
        std::fs::write(&path, "").unwrap();
        assert!(ask(&path).unwrap());
        assert!(path.is_file());
        assert!(ask(&path.join("below")).is_err());
    }
}
