//! The agent that goes into a guest.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Where an installation has it, from its prefix.
const INSTALLED: &str = "share/kata-containers/guest/kata-agent";

/// The agent and its file: the named one, else the one that is installed with this program.
pub(crate) fn read(named: Option<&Path>) -> Result<(PathBuf, Vec<u8>)> {
    let (path, remedy) = match named {
        Some(path) => (path.to_owned(), ""),
        None => {
            let program = std::env::current_exe().context("cannot tell where this program is")?;
            let installed = kata_config::prefix_of(&program).join(INSTALLED);
            (installed, ", which is installed with this program; name another with --agent")
        }
    };
    let agent = fs::read(&path)
        .with_context(|| format!("cannot read the agent {}{remedy}", path.display()))?;
    Ok((path, agent))
}
