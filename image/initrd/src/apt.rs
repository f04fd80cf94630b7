//! Fetching a kernel's packages through apt: whatever sources the machine has, checked by apt's
//! signatures, downloaded without installing anything and without root.

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Progress;

/// What the names of a kernel's own packages begin with. From Debian 14 on one kernel is several
/// packages; before, one.
const PARTS: &[&str] = &["linux-image-", "linux-binary-", "linux-modules-", "linux-base-"];

/// Why a kernel's packages cannot be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The directory to download to cannot be prepared.
    #[error("cannot prepare the directory {} for kernel packages", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// apt cannot be started.
    #[error("cannot run {program}; kernel packages are fetched with apt")]
    Apt {
        /// The program of apt.
        program: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// apt doesn't know the package.
    #[error("apt knows no package {package}; run 'apt-get update' as root, or name another")]
    Unknown {
        /// The package.
        package: String,
    },
    /// The download failed.
    #[error("apt cannot download {packages}: {reason}")]
    Download {
        /// The packages, separated by spaces.
        packages: String,
        /// apt's own words.
        reason: String,
    },
}

/// Downloads a kernel's packages into `directory` and gives their files, sorted. `package` may be
/// a meta package, such as `linux-image-cloud-amd64`, that depends on the newest kernel's.
///
/// `directory` is made if needed; packages of earlier calls are removed from it, so that it holds
/// those of one kernel.
///
/// # Errors
/// When apt is missing, does not know the package or cannot download it.
pub fn fetch_kernel_package(
    package: &str,
    directory: &Path,
    progress: &dyn Progress,
) -> Result<Vec<PathBuf>, FetchError> {
    fetch_packages(kernel_packages(package)?, directory, progress)
}

/// Downloads packages (names, or `NAME=VERSION`) into `directory` and gives their files, sorted.
///
/// `directory` is made if needed; packages of earlier calls are removed from it.
///
/// # Errors
/// When apt is missing, does not know a package or cannot download it.
pub fn fetch_packages(
    names: impl IntoIterator<Item = String>,
    directory: &Path,
    progress: &dyn Progress,
) -> Result<Vec<PathBuf>, FetchError> {
    let failed = |source| FetchError::Directory { path: directory.to_owned(), source };
    let names = Vec::from_iter(names);
    std::fs::create_dir_all(directory).map_err(failed)?;
    // A download that is broken off must not leave half a kernel behind.
    let download = tempfile::tempdir_in(directory).map_err(failed)?;
    let mut apt = Command::new("apt-get");
    apt.args(["download", "--quiet=2", "--option=APT::Sandbox::User=root"])
        .current_dir(download.path());
    let errors = download_with(&mut apt, &names, progress)
        .map_err(|source| FetchError::Apt { program: "apt-get", source })?;
    if let Some(errors) = errors {
        let reason = errors.lines().next().unwrap_or("no reason given").to_owned();
        let packages = names.join(" ");
        return Err(FetchError::Download { packages, reason });
    }
    for old in packages_in(directory).map_err(failed)? {
        std::fs::remove_file(old).map_err(failed)?;
    }
    for new in packages_in(download.path()).map_err(failed)? {
        let name = new.file_name().expect("a file found in a directory has a name");
        std::fs::rename(&new, directory.join(name)).map_err(failed)?;
    }
    packages_in(directory).map_err(failed)
}

/// Runs an apt-get, of which only the `packages` are missing, that downloads these, and tells how
/// far it is, in percent of the bytes. Gives what it said on standard error if it failed.
///
/// # Errors
/// When it cannot be run.
pub fn download_with(
    apt: &mut Command,
    packages: &[String],
    progress: &dyn Progress,
) -> io::Result<Option<String>> {
    let mut errors = tempfile::tempfile()?;
    apt.args(["--option=APT::Status-Fd=1", "--"]).args(packages).env("LC_ALL", "C");
    let mut child = apt.stdout(Stdio::piped()).stderr(errors.try_clone()?).spawn()?;
    progress.total(100);
    let stdout = child.stdout.take().expect("it is piped");
    for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
        if let Some(percent) = percent(&String::from_utf8_lossy(&line)) {
            progress.reached(percent);
        }
    }
    if child.wait()?.success() {
        return Ok(None);
    }
    let mut said = Vec::new();
    errors.rewind()?;
    errors.read_to_end(&mut said)?;
    Ok(Some(String::from_utf8_lossy(&said).into_owned()))
}

/// `dlstatus:2:29.1019:Retrieving file 2 of 3` (apt, doc/progress-reporting.md).
fn percent(line: &str) -> Option<u64> {
    let (_, rest) = line.strip_prefix("dlstatus:")?.split_once(':')?;
    let whole = rest.split(['.', ':']).next()?;
    whole.parse().ok().filter(|percent| *percent <= 100)
}

/// The package and those of its dependencies, at any depth, that are parts of a kernel.
fn kernel_packages(package: &str) -> Result<BTreeSet<String>, FetchError> {
    let mut found = BTreeSet::new();
    let mut queue = VecDeque::from([package.to_owned()]);
    while let Some(package) = queue.pop_front() {
        let record = package_record(&package)?;
        let dependencies = kernel_dependencies(&record);
        queue.extend(dependencies.filter(|name| !found.contains(*name)).map(str::to_owned));
        found.insert(package);
    }
    Ok(found)
}

/// What apt's lists say about a package: lines `Field: value` of the version that would be
/// installed.
///
/// # Errors
/// When apt is missing or does not know the package.
pub fn package_record(package: &str) -> Result<String, FetchError> {
    let output = Command::new("apt-cache")
        .args(["show", "--no-all-versions", package])
        .output()
        .map_err(|source| FetchError::Apt { program: "apt-cache", source })?;
    let record = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() || record.is_empty() {
        return Err(FetchError::Unknown { package: package.to_owned() });
    }
    Ok(record)
}

/// The parts of a kernel that a package's record in apt's list depends on.
fn kernel_dependencies(record: &str) -> impl Iterator<Item = &str> {
    let depends = record.lines().find_map(|line| line.strip_prefix("Depends:"));
    let names = depends.into_iter().flat_map(|list| list.split(',')).map(|dependency| {
        dependency.trim_start().split([' ', '(', '|', ':']).next().unwrap_or_default()
    });
    names.filter(|name| PARTS.iter().any(|part| name.starts_with(part)))
}

fn packages_in(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut packages = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            packages.push(path);
        }
    }
    packages.sort();
    Ok(packages)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dependencies(record: &str) -> Vec<&str> {
        kernel_dependencies(record).collect()
    }

    #[test]
    fn progress_of_a_download_is_read_from_apt() {
        assert_eq!(percent("dlstatus:2:29.1019:Retrieving file 2 of 3"), Some(29));
        assert_eq!(percent("dlstatus:1:100.0000:"), Some(100));
        assert_eq!(percent("dlstatus:1:100"), Some(100));
        for line in ["", "Get:1 http://x y", "dlstatus:1", "dlstatus:1:x:y", "dlstatus:1:999.0:y"] {
            assert_eq!(percent(line), None, "{line}");
        }
    }

    #[test]
    fn dependencies_of_a_meta_package() {
        let record = "Package: linux-image-cloud-amd64\nVersion: 6.1.1\n\
                      Depends: linux-image-6.1.0-9-cloud-amd64 (= 6.1.1-1)\nSize: 1\n";
        assert_eq!(dependencies(record), ["linux-image-6.1.0-9-cloud-amd64"]);
    }

    #[test]
    fn dependencies_of_a_kernel_in_parts() {
        let record = "Package: linux-image-7.2-amd64\n\
            Depends: dracut | initramfs-tools (>= 0.120), linux-base-7.2-amd64 (= 7.2), \
            linux-binary-7.2-amd64 (= 7.2), linux-modules-7.2-amd64 (= 7.2)\n\
            Pre-Depends: linux-base (>= 4.17~)\n";
        assert_eq!(
            dependencies(record),
            ["linux-base-7.2-amd64", "linux-binary-7.2-amd64", "linux-modules-7.2-amd64"]
        );
    }

    #[test]
    fn dependencies_of_an_ordinary_kernel_package() {
        let record = "Depends: kmod, initramfs-tools (>= 0.120+deb8u2) | linux-initramfs-tool\n";
        assert_eq!(dependencies(record), Vec::<&str>::new());
    }
}
