//! The pages of `docs/adr`: each has the parts that a reader looks for, and the index names it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// The folder, from the root.
const FOLDER: &str = "docs/adr";

/// The index in it.
const INDEX: &str = "README.md";

/// Lines that every page has, in this order; those that end with a space go on.
const PARTS: [&str; 6] =
    ["# ", "Status: ", "## Context", "## Decision", "## Consequences", "## Alternatives"];

/// Every page that lacks a part, and every one that the index does not name.
pub(crate) fn violations(root: &Path) -> Result<Vec<String>> {
    let folder = root.join(FOLDER);
    let index = read(&folder.join(INDEX))?;
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {FOLDER}"))? {
        let name = entry.with_context(|| format!("cannot list {FOLDER}"))?.file_name();
        let name = name.to_string_lossy();
        if name == INDEX {
            continue;
        }
        if let Some(part) = missing(&read(&folder.join(&*name))?) {
            found.push(format!("{FOLDER}/{name}: lacks the line `{part}`; see {FOLDER}/{INDEX}"));
        }
        if !index.contains(&format!("]({name})")) {
            found.push(format!("{FOLDER}/{INDEX}: does not name {name}; add it"));
        }
    }
    Ok(found)
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

/// The first part that a page lacks, or has too early.
fn missing(page: &str) -> Option<&'static str> {
    let mut lines = page.lines();
    PARTS.into_iter().find(|part| {
        !lines.any(|line| if part.ends_with(' ') { line.starts_with(part) } else { line == *part })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_part_is_named() {
        let page = "# 1. T\n\nStatus: accepted\n\n## Context\n\n## Decision\n\n## Consequences\n\n## Alternatives\n";
        assert_eq!(missing(page), None);
        assert_eq!(missing(&page.replace("Status", "Date")), Some("Status: "));
        assert_eq!(missing(&page.replace("## Decision", "## Choice")), Some("## Decision"));
    }
}
