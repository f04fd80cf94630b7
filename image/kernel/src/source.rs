//! The kernel's source: a Debian package, found, downloaded and unpacked without root.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use kata_initrd::{
    FetchError, Progress, decompressed, fetch_packages, package_contents, package_record,
};

/// The newest long-term kernel that both Debian 12 and 13 have; the fragments were made for it.
const PREFERRED: &str = "linux-source-6.12";

/// The package that depends on a release's own source.
const META: &str = "linux-source";

/// Why the source cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// apt does not know it, or cannot download it.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// apt's record of the package lacks a field.
    #[error("apt's record of {package} has no {field}")]
    Record {
        /// The package.
        package: String,
        /// The field.
        field: &'static str,
    },
    /// The package is not what its name says.
    #[error("{} holds no archive of the kernel's source (linux-source-*.tar.xz)", path.display())]
    NoSource {
        /// The package's file.
        path: PathBuf,
    },
    /// The package cannot be read or unpacked.
    #[error("cannot unpack {}", path.display())]
    Unpack {
        /// The package's file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// A source package that apt knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The package's name.
    pub package: String,
    /// Its version in Debian.
    pub version: String,
}

impl Source {
    /// The package of this name; without a name `linux-source-6.12`, or where apt does not know it
    /// what `linux-source` depends on.
    ///
    /// # Errors
    /// When apt is missing or knows no such package.
    pub fn find(package: Option<&str>) -> Result<Self, SourceError> {
        if let Some(package) = package {
            return Self::of(package);
        }
        match Self::of(PREFERRED) {
            Err(SourceError::Fetch(FetchError::Unknown { .. })) => {
                let record = package_record(META)?;
                let depends = field(&record, META, "Depends")?;
                let own = depends.split([',', ' ']).find(|name| name.starts_with("linux-source-"));
                Self::of(own.ok_or(SourceError::Record { package: META.into(), field: "Depends" })?)
            }
            found => found,
        }
    }

    fn of(package: &str) -> Result<Self, SourceError> {
        let record = package_record(package)?;
        let version = field(&record, package, "Version")?.to_owned();
        Ok(Self { package: package.to_owned(), version })
    }

    /// Downloads the package into `directory` and gives its file.
    pub(crate) fn fetch(
        &self,
        directory: &Path,
        progress: &dyn Progress,
    ) -> Result<PathBuf, SourceError> {
        let names = [format!("{}={}", self.package, self.version)];
        let files = fetch_packages(names, directory, progress)?;
        let missing = || SourceError::NoSource { path: directory.to_owned() };
        files.into_iter().next().ok_or_else(missing)
    }
}

fn field<'a>(record: &'a str, package: &str, name: &'static str) -> Result<&'a str, SourceError> {
    let value = record.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    value.ok_or_else(|| SourceError::Record { package: package.to_owned(), field: name })
}

/// Unpacks the source in `package` into `tree`, without the archive's own top directory. Gives the
/// time at which the package was made, in seconds since 1970: the only time that a build may show.
pub(crate) fn unpack(
    package: &Path,
    tree: &Path,
    progress: &dyn Progress,
) -> Result<u64, SourceError> {
    let failed = |source| SourceError::Unpack { path: package.to_owned(), source };
    let deb = fs::read(package).map_err(failed)?;
    let (archive, time) = source_archive(&deb)
        .map_err(failed)?
        .ok_or_else(|| SourceError::NoSource { path: package.to_owned() })?;
    let mut archive = tar::Archive::new(decompressed(&archive).map_err(failed)?);
    archive.set_preserve_mtime(false);
    for entry in archive.entries().map_err(failed)? {
        let mut entry = entry.map_err(failed)?;
        let path = entry.path().map_err(failed)?;
        let mut parts = path.components();
        parts.next();
        let target = tree.join(parts.as_path());
        if target == tree {
            continue;
        }
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        entry.unpack(&target).map_err(failed)?;
        progress.step(&target.strip_prefix(tree).unwrap_or(&target).to_string_lossy());
    }
    Ok(time)
}

/// The compressed source in a package, and when it was put there.
fn source_archive(deb: &[u8]) -> io::Result<Option<(Vec<u8>, u64)>> {
    let mut files = tar::Archive::new(package_contents(deb)?);
    for entry in files.entries()? {
        let mut entry = entry?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if path.contains("/usr/src/linux-source-") && path.ends_with(".tar.xz") {
            let mut archive = Vec::new();
            io::Read::read_to_end(&mut entry, &mut archive)?;
            return Ok(Some((archive, entry.header().mtime()?)));
        }
    }
    Ok(None)
}
