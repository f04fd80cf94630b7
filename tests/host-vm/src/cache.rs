//! Where things are kept that take long to make, across checkouts.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};

/// Our directory in the cache of this user: `$XDG_CACHE_HOME/kata-containers`, else
/// `/var/cache/kata-containers` for root and `~/.cache/kata-containers` for others.
pub(crate) fn directory() -> PathBuf {
    directory_of(
        rustix::process::geteuid().is_root(),
        std::env::var_os("XDG_CACHE_HOME"),
        std::env::var_os("HOME"),
    )
}

fn directory_of(root: bool, cache: Option<OsString>, home: Option<OsString>) -> PathBuf {
    // A relative one is to be ignored (XDG Base Directory Specification).
    let named = cache.map(PathBuf::from).filter(|path| path.is_absolute());
    let place = match (named, root) {
        (Some(named), _) => named,
        (None, true) => "/var/cache".into(),
        (None, false) => Path::new(&home.unwrap_or_else(|| "/tmp".into())).join(".cache"),
    };
    place.join("kata-containers")
}

/// The directory `name` in the cache, which `make` fills unless it is there already. It is whole or
/// not there at all; whoever comes while another process makes it waits for that. Others named
/// `kind-…` go: they were made of something that has changed since.
pub(crate) fn whole_directory(
    kind: &str,
    digest: &str,
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let cache = directory();
    let shown = cache.display();
    fs::create_dir_all(&cache).with_context(|| format!("cannot make {shown}"))?;
    let place = cache.join(format!("{kind}-{digest}"));
    let lock = File::create(cache.join(format!("{kind}.lock")));
    let lock = lock.with_context(|| format!("cannot make a lock in {shown}"))?;
    flock(&lock, FlockOperation::LockExclusive).context("cannot lock the cache")?;
    if place.exists() {
        return Ok(place);
    }
    for entry in fs::read_dir(&cache).with_context(|| format!("cannot list {shown}"))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(&format!("{kind}-")) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let new = tempfile::Builder::new().prefix(&format!("{kind}-new-")).tempdir_in(&cache);
    let new = new.with_context(|| format!("cannot make a directory in {shown}"))?;
    make(new.path())?;
    fs::rename(new.path(), &place).with_context(|| format!("cannot make {}", place.display()))?;
    Ok(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_is_the_users_own() {
        let of = |root, cache: Option<&str>| {
            directory_of(root, cache.map(OsString::from), Some("/home/me".into()))
        };
        assert_eq!(of(true, None), Path::new("/var/cache/kata-containers"));
        assert_eq!(of(false, None), Path::new("/home/me/.cache/kata-containers"));
        assert_eq!(of(true, Some("/big")), Path::new("/big/kata-containers"));
        assert_eq!(of(true, Some("relative")), Path::new("/var/cache/kata-containers"));
    }
}
