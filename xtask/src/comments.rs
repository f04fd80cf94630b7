//! The width of comments, which rustfmt leaves alone.

use crate::style::SourceFile;

/// Columns that no comment exceeds: as many as `max_width` in rustfmt.toml.
const MAX_COLUMNS: usize = 100;

/// Every line of a comment that is too wide. Drawings, examples and tables may be wider.
pub(crate) fn violations(files: &[SourceFile]) -> Vec<String> {
    let mut found = Vec::new();
    for SourceFile { path, text } in files {
        let shown = path.display();
        found.extend(wide_lines(text).into_iter().map(|line| {
            format!("{shown}:{line}: is a comment of more than {MAX_COLUMNS} columns; wrap it")
        }));
    }
    found
}

/// The numbers of the lines that are too wide.
fn wide_lines(text: &str) -> Vec<usize> {
    let mut wide = Vec::new();
    let mut in_fence = false;
    for (index, line) in text.lines().enumerate() {
        let Some(comment) = comment(line) else {
            in_fence = false;
            continue;
        };
        if comment.starts_with("```") {
            in_fence = !in_fence;
        } else if !in_fence && can_be_wrapped(comment) && line.chars().count() > MAX_COLUMNS {
            wide.push(index + 1);
        }
    }
    wide
}

/// What a line says that is a comment and nothing else.
fn comment(line: &str) -> Option<&str> {
    let comment = line.trim_start().strip_prefix("//")?;
    Some(comment.trim_start_matches(['/', '!']).trim())
}

fn can_be_wrapped(comment: &str) -> bool {
    !comment.starts_with('|') && comment.contains(' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_comment_is_found_and_wide_code_is_rustfmts_matter() {
        let words = "word ".repeat(25);
        for mark in ["//", "///", "//!", "        //"] {
            assert_eq!(wide_lines(&format!("fn f() {{}}\n{mark} {words}\n")), [2], "{mark}");
        }
        assert!(wide_lines(&format!("let text = \"{words}\";\n")).is_empty());
    }

    #[test]
    fn drawings_tables_and_long_words_may_be_wide() {
        let words = "word ".repeat(25);
        assert!(wide_lines(&format!("//! ```text\n//! {words}\n//! ```\n")).is_empty());
        assert_eq!(wide_lines(&format!("//! ```text\n//! ```\n//! {words}\n")), [3]);
        assert!(wide_lines(&format!("//! | {words} |\n")).is_empty());
        assert!(wide_lines(&format!("// {}\n", "x".repeat(120))).is_empty());
    }
}
