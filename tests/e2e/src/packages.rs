//! Programs of other releases of Debian, unpacked into a directory of their own.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::client::run;
use crate::containerd::Daemon;
use crate::runtime::checkout;

/// The keys with which Debian signs its archive.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A release of Debian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// Debian 13.
    Trixie,
    /// The one that is always in development.
    Sid,
}

impl Suite {
    /// The one with this code name, if it is known.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Trixie, Self::Sid].into_iter().find(|suite| suite.name() == name)
    }

    /// Its code name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Trixie => "trixie",
            Self::Sid => "sid",
        }
    }

    /// Its line in a list of sources: the archive from which this machine has its own packages.
    pub fn source_line(self) -> Result<String> {
        let mut apt = Command::new("apt-get");
        apt.args(["indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)"]);
        let targets = run(apt)?.success()?;
        let archive = targets.lines().find_map(|line| line.strip_prefix("Debian|Debian|"));
        let archive = archive.context("apt knows no archive of Debian; run apt-get update")?;
        // Where the package debian-archive-keyring has the keys of all suites; else those count
        // that the machine trusts.
        let keys = Path::new(KEYS);
        let options = if keys.exists() { format!("[signed-by={KEYS}] ") } else { String::new() };
        Ok(format!("deb {options}{archive} {} main\n", self.name()))
    }
}

/// A directory with packages and all that they depend on, as if they were installed there. It is
/// kept in `build/` for the next time.
#[derive(Debug)]
pub struct PackageRoot {
    root: PathBuf,
}

impl PackageRoot {
    /// Fetches packages of `suite` from the archive from which this machine has its own, unless
    /// they are there already.
    pub fn fetch(suite: Suite, packages: &[&str]) -> Result<Self> {
        let place = checkout().join("build/packages").join(suite.name());
        let root = place.join("root");
        if !root.exists() {
            let apt = Apt::new(&place, suite)?;
            apt.run(&["update"])?;
            let mut install =
                vec!["install", "--download-only", "--yes", "--no-install-recommends"];
            install.extend(packages);
            apt.run(&install)?;
            // Complete or not there at all: another test may be fetching the same.
            let new = tempfile::tempdir_in(&place).context("cannot make a directory")?;
            unpack(&place.join("archives"), new.path())?;
            let _ = fs::rename(new.keep(), &root);
            for spent in ["archives", "lists"] {
                let _ = fs::remove_dir_all(place.join(spent));
            }
        }
        Ok(Self { root })
    }

    /// Its containerd, run with its own libraries.
    #[must_use]
    pub fn daemon(&self) -> Daemon {
        Daemon { containerd: self.program("containerd"), ctr: self.program("ctr"), bin: None }
    }

    /// A command line that runs one of its programs with its own loader and libraries, since the
    /// machine's may be too old.
    fn program(&self, name: &str) -> Vec<OsString> {
        let triplet = format!("{}-linux-gnu", std::env::consts::ARCH);
        let libraries = self.root.join("usr/lib").join(triplet);
        let loader = match std::env::consts::ARCH {
            "aarch64" => "ld-linux-aarch64.so.1",
            _ => "ld-linux-x86-64.so.2",
        };
        vec![
            libraries.join(loader).into(),
            "--library-path".into(),
            libraries.into(),
            self.root.join("usr/bin").join(name).into(),
        ]
    }
}

/// An apt that knows one suite, has nothing installed, and touches nothing outside of its
/// directory.
struct Apt {
    place: PathBuf,
}

impl Apt {
    fn new(place: &Path, suite: Suite) -> Result<Self> {
        for directory in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(place.join(directory)).context("cannot make apt's directories")?;
        }
        fs::write(place.join("status"), "").context("cannot write apt's status")?;
        fs::write(place.join("sources.list"), suite.source_line()?)
            .context("cannot write the list of sources")?;
        Ok(Self { place: place.to_owned() })
    }

    fn run(&self, args: &[&str]) -> Result<()> {
        let mut apt = Command::new("apt-get");
        let place = self.place.display();
        for (option, value) in [
            ("Dir::Etc::SourceList", format!("{place}/sources.list")),
            ("Dir::Etc::SourceParts", "-".to_owned()),
            ("Dir::State::Lists", format!("{place}/lists")),
            ("Dir::State::Status", format!("{place}/status")),
            ("Dir::Cache::Archives", format!("{place}/archives")),
            ("Dir::Cache::PkgCache", String::new()),
            ("Dir::Cache::SrcPkgCache", String::new()),
            ("APT::Sandbox::User", "root".to_owned()),
            ("APT::Get::List-Cleanup", "false".to_owned()),
        ] {
            apt.arg("-o").arg(format!("{option}={value}"));
        }
        run({
            apt.args(["--quiet=2"]).args(args).env("DEBIAN_FRONTEND", "noninteractive");
            apt
        })?
        .success()
        .map(drop)
        .with_context(|| format!("apt-get {}", args.join(" ")))
    }
}

fn unpack(archives: &Path, root: &Path) -> Result<()> {
    let entries = fs::read_dir(archives).context("cannot list the packages")?;
    let paths = entries.flatten().map(|entry| entry.path());
    let packages: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|e| e == "deb")).collect();
    ensure!(!packages.is_empty(), "apt has fetched nothing into {}", archives.display());
    for package in packages {
        let mut dpkg = Command::new("dpkg-deb");
        dpkg.arg("--extract").arg(&package).arg(root);
        run(dpkg)?.success().with_context(|| format!("cannot unpack {}", package.display()))?;
    }
    Ok(())
}
