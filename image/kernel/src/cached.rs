//! Kernels that were built before: today's, or one that does as well.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::Configuration;
use crate::cache::{self, CacheError, Kernel};
use crate::compile::BuildError;
use crate::inputs::Inputs;

/// A kernel that was built before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedKernel {
    /// The kernel.
    pub kernel: Kernel,
    /// Why it is not the one that would be built now; `None` if it is.
    pub outdated: Option<String>,
}

/// The kernel that would be built now, if a cache has it; else the newest one in the first cache
/// that has any with everything that the fragments want. `None` if there is none. A newer source, a
/// newer compiler, or an apt that knows no source does not make a kernel worse.
///
/// # Errors
/// When a cache cannot be read, or the fragments contradict each other.
pub fn cached_kernel(
    source: Option<&str>,
    caches: &[PathBuf],
) -> Result<Option<CachedKernel>, BuildError> {
    let configuration = Configuration::merged()?;
    let inputs = Inputs::find(source, &configuration);
    if let Ok(inputs) = &inputs {
        let key = inputs.key();
        let mut kernels = caches.iter().map(|cache| Kernel::of(cache, &key));
        if let Some(kernel) = kernels.find(|kernel| kernel.vmlinux.exists()) {
            return Ok(Some(CachedKernel { kernel, outdated: None }));
        }
    }
    let why = match inputs {
        Ok(Inputs { source, compiler, .. }) => format!(
            "it was not built from {} {} by {compiler}, as it would be now",
            source.package, source.version
        ),
        Err(error) => format!("what it would be built from now cannot be told: {}", chain(&error)),
    };
    for cache in caches {
        if let Some(kernel) = newest(cache, &configuration)? {
            return Ok(Some(CachedKernel { kernel, outdated: Some(why) }));
        }
    }
    Ok(None)
}

/// The newest kernel of a cache that has all symbols as they are wanted.
fn newest(cache: &Path, configuration: &Configuration) -> Result<Option<Kernel>, CacheError> {
    let place = cache::kernels(cache);
    let failed = |source| CacheError::Use { path: place.clone(), source };
    let entries = match fs::read_dir(&place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        let kernel = Kernel::of(cache, &name.to_string_lossy());
        // What is no kernel's directory, or one that is being made or removed, is passed over.
        let Ok(config) = fs::read_to_string(&kernel.config) else { continue };
        let built = fs::metadata(&kernel.vmlinux).and_then(|metadata| metadata.modified());
        let Ok(built) = built else { continue };
        if configuration.check(&config).is_ok() {
            found.push((built, kernel));
        }
    }
    Ok(found.into_iter().max_by_key(|(built, _)| *built).map(|(_, kernel)| kernel))
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        words = format!("{words}: {cause}");
        source = cause.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    /// Puts a kernel into a cache that was built so many seconds after the first one.
    fn built(cache: &Path, key: &str, config: &str, seconds: u64) {
        let kernel = Kernel::of(cache, key);
        fs::create_dir_all(kernel.config.parent().unwrap()).unwrap();
        fs::write(&kernel.config, config).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds);
        fs::File::create(&kernel.vmlinux).unwrap().set_modified(time).unwrap();
    }

    #[test]
    fn newest_kernel_with_all_that_is_wanted_is_found() {
        let cache = tempfile::tempdir().unwrap();
        let configuration = Configuration::merged().unwrap();
        assert_eq!(newest(cache.path(), &configuration).unwrap(), None);
        let fits = configuration.to_kconfig();
        built(cache.path(), "older", &fits, 0);
        built(cache.path(), "newer", &fits, 1);
        // As another version of this software wanted it, whose fragments had less.
        built(cache.path(), "other", &fits.replace("CONFIG_PVH=y\n", ""), 2);
        fs::create_dir_all(cache.path().join("kernel/no-kernel")).unwrap();
        let found = newest(cache.path(), &configuration).unwrap().unwrap();
        assert_eq!(found.key, "newer");
    }

    #[test]
    fn kernel_is_found_where_its_source_is_unknown() {
        let (own, roots) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let caches = [own.path().to_owned(), roots.path().to_owned()];
        let unknown = Some("linux-source-0.0-that-nobody-has");
        assert_eq!(cached_kernel(unknown, &caches).unwrap(), None);
        built(roots.path(), "key", &Configuration::merged().unwrap().to_kconfig(), 0);
        let found = cached_kernel(unknown, &caches).unwrap().unwrap();
        assert_eq!(found.kernel, Kernel::of(roots.path(), "key"));
        let why = found.outdated.unwrap();
        assert!(why.contains("cannot be told") && !why.contains('\n'), "{why}");
    }
}
