//! Pages that are generated from the code, and whether they are current.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// A generated page: where it lies, and what makes it.
type Page = (&'static str, fn() -> String);

const PAGES: &[Page] = &[
    ("docs/reference/configuration.md", kata_config::reference_page),
    ("docs/reference/hypervisors.md", crate::hypervisors::page),
];

/// Writes every page.
pub(crate) fn write(root: &Path) -> Result<()> {
    for (page, generate) in PAGES {
        let path = root.join(page);
        let folder = path.parent().context("a page lies in a folder")?;
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        fs::write(&path, generate()).with_context(|| format!("cannot write {page}"))?;
    }
    Ok(())
}

/// Every page that is not what would be written.
pub(crate) fn violations(root: &Path) -> Vec<String> {
    PAGES
        .iter()
        .filter(|(page, generate)| {
            fs::read_to_string(root.join(page)).map_or(true, |text| text != generate())
        })
        .map(|(page, _)| format!("{page}: is not current; run `cargo run -p xtask -- docs`"))
        .collect()
}
