//! Copies that follow what Kubernetes updates: ConfigMaps, Secrets, tokens, the downward API.
//! Also where a directory is shared: the guest would see the updates, but nobody would be told.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use kata_storage::{Copied, CopyBudget, Followed, HostBind, StorageError};

use super::Shared;
use crate::SandboxError;

/// After how long an update is tried again that the guest did not take.
const AGAIN: Duration = Duration::from_secs(10);

/// A mount, and what the guest has of it.
#[derive(Debug)]
pub(super) struct Mirror {
    pub(super) bind: HostBind,
    /// Where the guest has the copies.
    pub(super) place: String,
    pub(super) copied: Copied,
}

/// Copies every update of a mount's source, until the sandbox is gone or there is no source.
pub(super) async fn follow(shared: Arc<Shared>, mut followed: Followed, mut mirror: Mirror) {
    loop {
        let changed = tokio::select! {
            biased;
            () = shared.until_gone() => return,
            changed = followed.changed() => changed,
        };
        let at = mirror.bind.source.display();
        match changed {
            Ok(true) => {}
            Ok(false) => return tracing::debug!("{at} is gone, and its copies stay as they are"),
            // Such as that this process has too many files open.
            Err(error) => {
                tracing::warn!("{at} cannot be looked at: {error}");
                if is_gone_before(&shared, AGAIN).await {
                    return;
                }
                continue;
            }
        }
        while let Err(error) = update(&shared, &mut mirror).await {
            let to = mirror.bind.destination.display();
            tracing::warn!("sandbox {}: an update of {to} has not arrived: {error}", shared.id);
            match error {
                SandboxError::Gone { .. } => return,
                // The guest keeps what it has until there is something that it can have.
                SandboxError::Storage(StorageError::Unsupported { .. }) => break,
                // Something has gone, or all, which is seen next.
                SandboxError::Storage(StorageError::Io { source, .. })
                    if source.kind() == ErrorKind::NotFound =>
                {
                    break;
                }
                _ if is_gone_before(&shared, AGAIN).await => return,
                _ => {}
            }
        }
    }
}

/// Waits. Whether the sandbox has gone meanwhile.
async fn is_gone_before(shared: &Shared, pause: Duration) -> bool {
    tokio::time::timeout(pause, shared.until_gone()).await.is_ok()
}

/// Makes the guest's copies what the mount's source is.
async fn update(shared: &Shared, mirror: &mut Mirror) -> Result<(), SandboxError> {
    let Mirror { bind, place, copied } = mirror;
    let files = CopyBudget::default().read(bind)?;
    // Another change is on its way.
    let Some(update) = copied.update(&files) else { return Ok(()) };
    for file in &update.copies {
        if let Err(error) = shared.copy(place, file).await {
            // What came by half would be in the way of the next try, if it is memory that is short.
            for path in copied.beside_the_version_before(&update) {
                if shared.remove_copy(place, &path).await.is_ok() {
                    copied.remove(&path);
                }
            }
            return Err(error);
        }
        copied.add(file);
    }
    for path in &update.gone {
        match shared.remove_copy(place, path).await {
            Ok(()) => copied.remove(path),
            // It is tried again with the next update.
            Err(error) => {
                tracing::warn!("sandbox {}: {path} stays in the guest: {error}", shared.id);
            }
        }
    }
    Ok(())
}
