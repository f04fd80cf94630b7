//! Laws of style that no lint checks: lengths, names, and a README for each layer.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::workspace::Workspace;

/// Lines that no source file exceeds.
const MAX_LINES: usize = 600;

/// Lines that no README of a layer exceeds.
const MAX_README_LINES: usize = 15;

/// Names that say nothing about what is inside.
const BANNED: &[&str] =
    &["util", "utils", "common", "helper", "helpers", "misc", "manager", "inner"];

/// Top folders, each with a README that states its law.
const TOP_FOLDERS: &[&str] = &["bin", "host", "wire", "guest", "image", "support", "tests", "docs"];

/// Folders that hold no source.
const SKIPPED: &[&str] = &["target", "build", ".git"];

/// A file of Rust.
#[derive(Debug)]
pub(crate) struct SourceFile {
    /// Its path from the root.
    pub(crate) path: PathBuf,
    /// What is in it.
    pub(crate) text: String,
}

/// Every file of Rust in the repository.
pub(crate) fn sources(root: &Path) -> Result<Vec<SourceFile>> {
    let mut files = Vec::new();
    rust_files(root, &mut files)?;
    let sources = files.into_iter().map(|file| {
        let path = file.strip_prefix(root).unwrap_or(&file).to_path_buf();
        Ok(SourceFile { path, text: read(&file)? })
    });
    sources.collect()
}

/// Every broken law of style.
pub(crate) fn violations(workspace: &Workspace, sources: &[SourceFile]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for member in &workspace.crates {
        let manifest = workspace.root.join(&member.folder).join("Cargo.toml");
        let text = read(&manifest)?;
        if !takes_workspace_lints(&text) {
            let folder = &member.folder;
            found.push(format!("{folder}/Cargo.toml: lacks [lints] workspace = true; add it"));
        }
    }
    for folder in TOP_FOLDERS {
        found.extend(readme(&workspace.root, folder));
    }
    found.extend(sources.iter().flat_map(|file| source(&file.path, &file.text)));
    Ok(found)
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

fn takes_workspace_lints(manifest: &str) -> bool {
    let table: Option<toml::Table> = manifest.parse().ok();
    let lints = table.as_ref().and_then(|table| table.get("lints")?.get("workspace")?.as_bool());
    lints == Some(true)
}

fn readme(root: &Path, folder: &str) -> Option<String> {
    match fs::read_to_string(root.join(folder).join("README.md")) {
        Err(_) => Some(format!("{folder}/README.md: is missing; state the law of the layer in it")),
        Ok(text) if text.lines().count() > MAX_README_LINES => {
            Some(format!("{folder}/README.md: has more than {MAX_README_LINES} lines; shorten it"))
        }
        Ok(_) => None,
    }
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
        let path = entry.path();
        let kind = entry.file_type().with_context(|| format!("cannot stat {}", path.display()))?;
        if kind.is_dir() {
            if !SKIPPED.iter().any(|skipped| path.file_name() == Some(OsStr::new(skipped))) {
                rust_files(&path, files)?;
            }
        } else if path.extension() == Some(OsStr::new("rs")) {
            files.push(path);
        }
    }
    Ok(())
}

/// The broken laws of one source file, which is named from the root.
fn source(file: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let shown = file.display();
    let lines = text.lines().count();
    if lines > MAX_LINES {
        found.push(format!("{shown}: has {lines} lines, more than {MAX_LINES}; split it"));
    }
    for part in file.with_extension("").iter().filter_map(OsStr::to_str) {
        if let Some(word) = banned_word(part) {
            found.push(format!("{shown}: \"{word}\" in a name says nothing; name what is inside"));
        }
    }
    for (index, line) in text.lines().enumerate() {
        if let Some(word) = module_name(line).and_then(banned_word) {
            let line = index + 1;
            found.push(format!(
                "{shown}:{line}: \"{word}\" in a name says nothing; name what is inside"
            ));
        }
    }
    found
}

fn banned_word(name: &str) -> Option<&str> {
    name.split(['_', '-']).find(|word| BANNED.contains(word))
}

/// The name in `mod name`, with or without visibility.
fn module_name(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let after = match line.strip_prefix("mod ") {
        Some(after) => after,
        None => line.strip_prefix("pub")?.split_once(" mod ")?.1,
    };
    after.split([' ', ';', '{']).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn banned_names_are_found_in_files_folders_and_modules() {
        let broken = |file: &str, text: &str| source(Path::new(file), text).len();
        assert_eq!(broken("host/x/src/device_manager.rs", ""), 1);
        assert_eq!(broken("support/utils/src/lib.rs", ""), 1);
        assert_eq!(broken("a.rs", "pub(crate) mod helper;\nmod misc {\n"), 2);
        assert_eq!(broken("a.rs", "// mod inner\nlet commonly = 1;\nmod mount;\n"), 0);
    }

    #[test]
    fn long_file_is_reported() {
        assert_eq!(source(Path::new("a.rs"), &"\n".repeat(MAX_LINES)).len(), 0);
        assert_eq!(source(Path::new("a.rs"), &"\n".repeat(MAX_LINES + 1)).len(), 1);
    }

    #[test]
    fn lints_are_seen_however_they_are_written() {
        assert!(takes_workspace_lints("[lints]\nworkspace = true\n"));
        assert!(takes_workspace_lints("lints.workspace = true\n"));
        assert!(!takes_workspace_lints("[lints]\nworkspace = false\n"));
        assert!(!takes_workspace_lints(""));
    }
}
