//! Configurations of tests' own.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use tempfile::TempDir;

/// The variable that names the configuration under test.
const VARIABLE: &str = "KATA_E2E_CONFIG";

/// The configuration under test with further lines, in a directory that goes when this is dropped.
#[derive(Debug)]
pub struct Configuration {
    directory: TempDir,
}

impl Configuration {
    /// With these lines, which win.
    pub fn with(lines: &str) -> Result<Self> {
        let directory = tempfile::tempdir().context("cannot make a directory")?;
        let this = Self { directory };
        let drop_ins = this.directory.path().join("config.d");
        fs::create_dir(&drop_ins).context("cannot make a directory for drop-ins")?;
        fs::write(this.file(), under_test()?).context("cannot write a configuration")?;
        fs::write(drop_ins.join("test.toml"), lines).context("cannot write a configuration")?;
        Ok(this)
    }

    /// The file for `KATA_CONF_FILE`.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.directory.path().join("configuration.toml")
    }
}

/// The name of the hypervisor under test: the one that the configuration under test chooses, else
/// QEMU's.
pub fn hypervisor_under_test() -> Result<String> {
    let text = under_test()?;
    let chosen = text.lines().find_map(|line| line.strip_prefix("hypervisor_name = "));
    Ok(chosen.map_or("qemu", |name| name.trim_matches('"')).to_owned())
}

/// The file of the configuration under test; `None` for the installed one.
pub(crate) fn file_under_test() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).map(PathBuf::from)
}

fn under_test() -> Result<String> {
    match file_under_test() {
        Some(file) => {
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))
        }
        None => Ok(String::new()),
    }
}
