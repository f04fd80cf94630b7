//! Where built kernels are kept, by the hash of what they were made from.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// The variable that names the cache.
const VARIABLE: &str = "KATA_CACHE_DIR";
const ROOTS_CACHE: &str = "/var/cache/kata-containers";

/// The names in an entry.
const VMLINUX: &str = "vmlinux.container";
const VMLINUZ: &str = "vmlinuz.container";
const CONFIG: &str = "config";

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

/// Where a kernel may be that was built before: the cache of [`cache_directory`], and root's, which
/// all can read, unless `$KATA_CACHE_DIR` names one.
///
/// # Errors
/// As for [`cache_directory`].
pub fn cache_directories() -> Result<Vec<PathBuf>, CacheError> {
    let own = cache_directory()?;
    let mut all = vec![own];
    if env::var_os(VARIABLE).is_none() && !is_root() {
        all.push(ROOTS_CACHE.into());
    }
    Ok(all)
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

/// Where a cache has its kernels, each in a directory that is called by its hash.
pub(crate) fn kernels(cache: &Path) -> PathBuf {
    cache.join("kernel")
}

/// A built kernel, in a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// The hash of what it was made from.
    pub key: String,
    /// The uncompressed kernel (ELF with a PVH entry), without symbols.
    pub vmlinux: PathBuf,
    /// The bzImage.
    pub vmlinuz: PathBuf,
    /// Its whole configuration.
    pub config: PathBuf,
}

impl Kernel {
    /// The kernel with this hash, whether the cache has it or not.
    pub(crate) fn of(cache: &Path, key: &str) -> Self {
        let entry = kernels(cache).join(key);
        Self {
            key: key.to_owned(),
            vmlinux: entry.join(VMLINUX),
            vmlinuz: entry.join(VMLINUZ),
            config: entry.join(CONFIG),
        }
    }

    /// The version of the kernel's source, as its configuration has it in its head (`6.12.43`).
    ///
    /// # Errors
    /// When the configuration cannot be read, or has no such head.
    pub fn version(&self) -> Result<String, CacheError> {
        let failed = |source| CacheError::Use { path: self.config.clone(), source };
        let config = fs::read_to_string(&self.config).map_err(failed)?;
        let version = version_in(&config).map(str::to_owned);
        version.ok_or_else(|| failed(io::Error::other("it does not tell the kernel's version")))
    }

    /// Puts it into the cache, whole or not at all.
    pub(crate) fn store(
        &self,
        vmlinux: &Path,
        vmlinuz: &Path,
        config: &Path,
    ) -> Result<(), CacheError> {
        let entry = self.vmlinux.parent().expect("a kernel lies in its entry");
        store(entry, &[(VMLINUX, vmlinux), (VMLINUZ, vmlinuz), (CONFIG, config)])
    }
}

/// Kconfig writes `# Linux/x86 6.12.43 Kernel Configuration` above everything.
fn version_in(config: &str) -> Option<&str> {
    let mut comments = config.lines().take_while(|line| line.starts_with('#'));
    comments.find_map(|line| line.strip_suffix(" Kernel Configuration")?.split(' ').next_back())
}

/// Puts `files` (name and content's file) into the cache as `directory`, whole or not at all.
fn store(directory: &Path, files: &[(&str, &Path)]) -> Result<(), CacheError> {
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
    fn version_stands_in_the_head_of_the_configuration() {
        let config = "#\n# Automatically generated file; DO NOT EDIT.\n\
                      # Linux/x86 6.12.43 Kernel Configuration\n#\nCONFIG_X=y\n";
        assert_eq!(version_in(config), Some("6.12.43"));
        assert_eq!(version_in("CONFIG_X=y\n# Linux/x86 6.12.43 Kernel Configuration\n"), None);
        assert_eq!(version_in(""), None);
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
