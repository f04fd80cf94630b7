//! The crates of this repository and who depends on whom, from `cargo metadata`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The repository.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// Its root folder.
    pub(crate) root: PathBuf,
    /// Its crates.
    pub(crate) crates: Vec<Crate>,
}

/// One crate.
#[derive(Debug)]
pub(crate) struct Crate {
    /// Its folder from the root: `host/qemu`.
    pub(crate) folder: String,
    /// The folders of the crates of this repository that it depends on, whatever for.
    pub(crate) uses: Vec<String>,
}

impl Workspace {
    /// Asks cargo.
    pub(crate) fn read() -> Result<Self> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args(["metadata", "--no-deps", "--format-version", "1"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .context("cannot run cargo metadata")?;
        if !output.status.success() {
            bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let metadata = serde_json::from_slice(&output.stdout)
            .context("cargo metadata did not print what it promises")?;
        Self::from_metadata(&metadata).context("cargo metadata lacks a field")
    }

    fn from_metadata(metadata: &Value) -> Option<Self> {
        let root = PathBuf::from(metadata["workspace_root"].as_str()?);
        let folder = |path: &Path| Some(path.strip_prefix(&root).ok()?.to_str()?.to_owned());
        let mut crates = Vec::new();
        for package in metadata["packages"].as_array()? {
            let manifest = Path::new(package["manifest_path"].as_str()?);
            let dependencies = package["dependencies"].as_array()?;
            let uses = dependencies
                .iter()
                .filter_map(|dependency| dependency["path"].as_str())
                .filter_map(|path| folder(Path::new(path)));
            crates.push(Crate { folder: folder(manifest.parent()?)?, uses: uses.collect() });
        }
        Some(Self { root, crates })
    }
}
