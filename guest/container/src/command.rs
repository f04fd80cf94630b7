//! Finding the command of a process in the container's own file system, with the words that users
//! of runc know for what can be wrong with it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Why a command cannot be run.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// A bare name that is in no directory of `$PATH`.
    #[error("exec: {0:?}: executable file not found in $PATH")]
    NotInPath(String),
    /// A path to nothing.
    #[error("exec: {0:?}: stat {0}: no such file or directory")]
    NoSuchFile(String),
    /// A directory, or a file without execute permission.
    #[error("exec: {0:?}: permission denied")]
    PermissionDenied(String),
    /// The file cannot be looked at.
    #[error("exec: {name:?}: stat {name}: {reason}")]
    Stat {
        /// The command.
        name: String,
        /// What the kernel said.
        reason: String,
    },
}

/// Finds the file that `name` means: itself if it has a slash, else the first executable file of
/// that name in the directories of `path` (an empty one is the current directory).
///
/// # Errors
///
/// Says in runc's words why there is none.
pub fn find(name: &str, path: &str) -> Result<PathBuf, CommandError> {
    if name.contains('/') {
        return check(name, Path::new(name)).map(|()| PathBuf::from(name));
    }
    let found = path
        .split(':')
        .filter(|_| !path.is_empty() && !name.is_empty())
        .map(|directory| if directory.is_empty() { "." } else { directory })
        .map(|directory| Path::new(directory).join(name))
        .find(|candidate| check(name, candidate).is_ok());
    found.ok_or_else(|| CommandError::NotInPath(name.to_owned()))
}

fn check(name: &str, file: &Path) -> Result<(), CommandError> {
    let metadata = file.metadata().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => CommandError::NoSuchFile(name.to_owned()),
        std::io::ErrorKind::PermissionDenied => CommandError::PermissionDenied(name.to_owned()),
        _ => CommandError::Stat { name: name.to_owned(), reason: in_words(&error) },
    })?;
    let executable = !metadata.is_dir() && metadata.permissions().mode() & 0o111 != 0;
    if executable { Ok(()) } else { Err(CommandError::PermissionDenied(name.to_owned())) }
}

/// The kernel's error as other runtimes print it: in lower case and without its number.
#[must_use]
pub fn in_words(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    text.to_lowercase()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn bin_with(name: &str, mode: u32) -> tempfile::TempDir {
        let bin = tempfile::tempdir().unwrap();
        fs::write(bin.path().join(name), "").unwrap();
        fs::set_permissions(bin.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
        bin
    }

    #[test]
    fn find_missing_command_speaks_like_runc() {
        assert_eq!(
            find("foo", "/nonexistent:/bin").unwrap_err().to_string(),
            r#"exec: "foo": executable file not found in $PATH"#
        );
        assert_eq!(
            find("/foo", "/bin").unwrap_err().to_string(),
            r#"exec: "/foo": stat /foo: no such file or directory"#
        );
        assert_eq!(
            find("", "/bin").unwrap_err().to_string(),
            r#"exec: "": executable file not found in $PATH"#
        );
    }

    #[test]
    fn find_non_executable_command_is_permission_denied() {
        let bin = bin_with("data", 0o644);
        let name = bin.path().join("data").display().to_string();
        assert_eq!(find(&name, "").unwrap_err(), CommandError::PermissionDenied(name));
        assert_eq!(find("/etc", "").unwrap_err().to_string(), r#"exec: "/etc": permission denied"#);
    }

    #[test]
    fn find_bare_name_skips_what_cannot_be_run() {
        let (first, second) = (bin_with("tool", 0o644), bin_with("tool", 0o755));
        let path = format!("{}:{}", first.path().display(), second.path().display());
        assert_eq!(find("tool", &path).unwrap(), second.path().join("tool"));
    }

    #[test]
    fn in_words_is_lower_case_without_number() {
        let error = std::io::Error::from_raw_os_error(libc::ENOEXEC);
        assert_eq!(in_words(&error), "exec format error");
    }
}
