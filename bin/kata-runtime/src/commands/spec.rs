//! `spec`: a config.json to start from.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};

use anyhow::{Context, Result, bail};
use oci_spec::runtime::Spec;

use crate::cli::SpecArgs;

pub(super) fn run(args: &SpecArgs) -> Result<()> {
    if args.rootless {
        bail!(
            "virtual machines need root, so there is no bundle for somebody else; run without --rootless"
        );
    }
    let path = args.bundle.join("config.json");
    let mut file = match OpenOptions::new().write(true).create_new(true).open(&path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!("File {} exists. Remove it first", path.display())
        }
        opened => opened.with_context(|| format!("cannot create {}", path.display()))?,
    };
    let mut spec = Spec::default();
    if let Some(process) = spec.process_mut() {
        process.set_terminal(Some(true));
    }
    let text = serde_json::to_string_pretty(&spec)?;
    writeln!(file, "{text}").with_context(|| format!("cannot write {}", path.display()))
}
