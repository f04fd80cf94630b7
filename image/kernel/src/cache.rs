//! Where built kernels are kept, by the hash of what they were made from.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// The variable that names the cache.
const VARIABLE: &str = "KATA_CACHE_DIR";
const ROOTS_CACHE: &str = "/var/cache/kata-containers";

/// Why the cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Nothing says where it is.
    #[error(
        "neither KATA_CACHE_DIR, XDG_CACHE_HOME nor HOME says where built kernels are kept; set one to an absolute path"
    )]
    Nowhere,
    /// It cannot be written or read.
    #[error("cannot use the cache {}", path.display())]
    Use {
        /// The directory or file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// The cache's directory: `$KATA_CACHE_DIR`, else `/var/cache/kata-containers` for root, else
/// `$XDG_CACHE_HOME/kata-containers` or `~/.cache/kata-containers`. It need not exist.
///
/// # Errors
/// When none of the variables is set to an absolute path.
pub fn cache_directory() -> Result<PathBuf, CacheError> {
    let variable = |name: &str| env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    if let Some(own) = variable(VARIABLE) {
        return Ok(own);
    }
    if is_root() {
        return Ok(ROOTS_CACHE.into());
    }
    let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    cache.map(|cache| cache.join("kata-containers")).ok_or(CacheError::Nowhere)
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// The hash of everything that a kernel is made from, in hexadecimal. Each part is hashed with its
/// length, so that no two lists of parts look alike.
pub(crate) fn key(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Puts `files` (name and content's file) into the cache as `directory`, whole or not at all.
pub(crate) fn store(directory: &Path, files: &[(&str, &Path)]) -> Result<(), CacheError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| CacheError::Use { path, source }
    };
    let parent = directory.parent().expect("an entry lies in the cache");
    fs::create_dir_all(parent).map_err(failed(parent))?;
    let new = tempfile::tempdir_in(parent).map_err(failed(parent))?;
    for (name, file) in files {
        fs::copy(file, new.path().join(name)).map_err(failed(file))?;
    }
    match fs::rename(new.path(), directory) {
        // Somebody else has built the same meanwhile: the same input gives the same bytes.
        Err(_) if directory.exists() => Ok(()),
        Err(source) => Err(failed(directory)(source)),
        Ok(()) => {
            let _ = new.keep();
            make_readable(directory).map_err(failed(directory))
        }
    }
}

/// A temporary directory is its maker's alone; a kernel is for everybody.
fn make_readable(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_tells_parts_apart() {
        assert_eq!(key(&["a", "b"]), key(&["a", "b"]));
        assert_ne!(key(&["ab", ""]), key(&["a", "b"]));
        assert_eq!(key(&[]).len(), 64);
    }

    #[test]
    fn store_is_whole_and_may_come_second() {
        let cache = tempfile::tempdir().unwrap();
        let file = cache.path().join("file");
        fs::write(&file, "content").unwrap();
        let entry = cache.path().join("kernel/key");
        for _ in 0..2 {
            store(&entry, &[("vmlinux", &file)]).unwrap();
            assert_eq!(fs::read(entry.join("vmlinux")).unwrap(), b"content");
        }
        assert_eq!(fs::read_dir(cache.path().join("kernel")).unwrap().count(), 1);
    }
}
