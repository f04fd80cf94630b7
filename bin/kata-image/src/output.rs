//! Files that are whole or not there.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::progress::Teller;

/// Writes a file that all may read, and the directories above it that are missing.
pub(crate) fn write(output: &Path, content: &[u8], teller: &Teller) -> Result<()> {
    let context = || format!("cannot write {}", output.display());
    let directory = match output.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(directory).with_context(context)?;
    let mut file = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(directory)
        .with_context(context)?;
    file.write_all(content).with_context(context)?;
    file.persist(output).with_context(context)?;
    teller.file(output, content.len() as u64);
    Ok(())
}
