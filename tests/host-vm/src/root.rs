//! The engines of another release of Debian on this machine: their root file system, with this
//! machine's kernel, processes and /run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use kata_e2e::Suite;

use crate::cache;
use crate::image::install_packages;
use crate::recipe;

/// What a shell does with the directory, a command and paths to get the command to run there.
const ENTER: &str = include_str!("../files/enter");

/// An installed root file system in the cache, which nobody writes to.
#[derive(Debug, Clone)]
pub struct EngineRoot {
    place: PathBuf,
}

impl EngineRoot {
    /// The one of this source tree with packages of `suite`; installs it if it is not in the cache,
    /// which takes a minute and needs root, mmdebstrap and the network. The packages' versions are
    /// those of that day.
    pub fn ready(suite: Suite) -> Result<Self> {
        let kind = format!("engines-{}", suite.name());
        let place = cache::whole_directory(&kind, &recipe::digest_of_root(), |place| {
            ensure!(
                rustix::process::geteuid().is_root(),
                "installing the engines of another release takes root"
            );
            let (directory, name) = (cache::directory(), suite.name());
            eprintln!("installing engines of {name} into {}: a minute", directory.display());
            install_packages(suite, &recipe::packages_of_root(), &place.join("tree"))?;
            std::fs::create_dir(place.join("mount")).context("cannot make a directory")
        })?;
        Ok(Self { place })
    }

    /// A shell command in it. The machine's /dev, /proc, /run, /sys and /tmp are there, and so is
    /// each of `paths`, at the same place. Whatever else is written to is forgotten with the
    /// command.
    #[must_use]
    pub fn command(&self, script: &str, paths: &[PathBuf]) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation=private", "sh", "-euc", ENTER, "enter"]);
        command.arg(&self.place).arg(script).args(paths.iter().map(Path::new));
        command
    }
}
