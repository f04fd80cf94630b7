//! Packages of a Debian release with all that they depend on, downloaded by an apt that has nothing
//! installed, needs no root and touches nothing outside of its directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use kata_initrd::{Progress, download_with};

/// The keys with which Debian signs its archive.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Why packages cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PackagesError {
    /// A suite is one word.
    #[error("{0:?} is no suite of Debian; name one like trixie or stable")]
    Suite(String),
    /// apt cannot be started.
    #[error("cannot run apt-get, with which packages are fetched")]
    Apt(#[source] io::Error),
    /// This machine has no packages of Debian's own archive.
    #[error("apt knows no archive of Debian on this machine; run 'apt-get update' as root")]
    NoArchive,
    /// apt failed.
    #[error("apt-get {what} failed: {reason}")]
    Failed {
        /// What it was to do.
        what: &'static str,
        /// Its own words.
        reason: String,
    },
    /// The directory cannot be used.
    #[error("cannot use the directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// A release of Debian, by its code name or its state (`trixie`, `stable`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suite(String);

impl Suite {
    /// The release of this name.
    ///
    /// # Errors
    /// When it cannot be a suite's name.
    pub fn new(name: &str) -> Result<Self, PackagesError> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if name.is_empty() || !name.bytes().all(plain) {
            return Err(PackagesError::Suite(name.to_owned()));
        }
        Ok(Self(name.to_owned()))
    }
}

/// Downloads packages and what they depend on into a new directory below `directory`; gives their
/// files, sorted by name.
///
/// # Errors
/// When apt is missing, reaches no archive, or knows no such package.
pub fn fetch_with_dependencies(
    suite: &Suite,
    packages: &[String],
    directory: &Path,
    progress: &dyn Progress,
) -> Result<Vec<PathBuf>, PackagesError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| PackagesError::Directory { path, source }
    };
    for sub in ["lists/partial", "archives/partial"] {
        let sub = directory.join(sub);
        fs::create_dir_all(&sub).map_err(failed(&sub))?;
    }
    // Nothing is installed, so that everything is fetched.
    let files = [("status", String::new()), ("sources.list", source_line(suite)?)];
    for (name, content) in files {
        let path = directory.join(name);
        fs::write(&path, content).map_err(failed(&path))?;
    }
    let output = apt(directory, &["update"]).output().map_err(PackagesError::Apt)?;
    if !output.status.success() {
        return Err(failure("update", &String::from_utf8_lossy(&output.stderr)));
    }
    let install = ["install", "--download-only", "--yes", "--no-install-recommends"];
    let errors = download_with(&mut apt(directory, &install), packages, progress);
    if let Some(errors) = errors.map_err(PackagesError::Apt)? {
        return Err(failure("install --download-only", &errors));
    }
    let archives = directory.join("archives");
    let entries = fs::read_dir(&archives).map_err(failed(&archives))?;
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect();
    found.sort();
    Ok(found)
}

/// An apt-get with lists and a cache of its own.
fn apt(directory: &Path, args: &[&str]) -> Command {
    let mut apt = Command::new("apt-get");
    let place = directory.display();
    for (option, value) in [
        ("Dir::Etc::SourceList", format!("{place}/sources.list")),
        ("Dir::Etc::SourceParts", "-".to_owned()),
        ("Dir::State::Lists", format!("{place}/lists")),
        ("Dir::State::Status", format!("{place}/status")),
        ("Dir::Cache::Archives", format!("{place}/archives")),
        ("Dir::Cache::PkgCache", String::new()),
        ("Dir::Cache::SrcPkgCache", String::new()),
        ("APT::Sandbox::User", "root".to_owned()),
    ] {
        apt.arg("-o").arg(format!("{option}={value}"));
    }
    apt.arg("--quiet=2").args(args).env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
    apt
}

fn failure(what: &'static str, words: &str) -> PackagesError {
    let first = words.lines().find(|line| line.starts_with("E:")).or(words.lines().next());
    let reason = first.unwrap_or("no reason given").trim_start_matches("E: ").to_owned();
    PackagesError::Failed { what, reason }
}

/// The line for a suite in a list of sources: the archive from which this machine has its own
/// packages.
fn source_line(suite: &Suite) -> Result<String, PackagesError> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)"])
        .output()
        .map_err(PackagesError::Apt)?;
    let targets = String::from_utf8_lossy(&output.stdout);
    let archive = targets.lines().find_map(|line| line.strip_prefix("Debian|Debian|"));
    let archive = archive.ok_or(PackagesError::NoArchive)?;
    // Where the package debian-archive-keyring has the keys of all suites; else those count that
    // the machine trusts.
    let keys =
        if Path::new(KEYS).exists() { format!("[signed-by={KEYS}] ") } else { String::new() };
    Ok(format!("deb {keys}{archive} {} main\n", suite.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suite_is_one_plain_word() {
        assert!(Suite::new("trixie").is_ok() && Suite::new("bookworm-backports").is_ok());
        for name in ["", "trixie main", "a\nb", "../x", "[trusted=yes]"] {
            assert!(Suite::new(name).is_err(), "{name:?}");
        }
    }
}
