//! Programs on disk: where one is that was named, and which version of it.

use std::fs;
use std::io::{self, PipeReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::process::SEARCH_PATH;

/// How long a program may take to tell its version.
const PATIENCE: Duration = Duration::from_secs(10);

/// As much of the answer as is looked at, in bytes.
const LONGEST: u64 = 4096;

/// Where `program` is that [`crate::process::Spawn`] would run: the path itself, or for a name
/// without one the first such file in the usual directories. An error if there is none, or if it
/// cannot be executed.
pub fn find(program: &Path) -> io::Result<PathBuf> {
    if program.components().count() > 1 {
        return is_executable(program).map(|()| program.to_owned());
    }
    let found = SEARCH_PATH.split(':').map(|directory| Path::new(directory).join(program));
    found.into_iter().find(|path| is_executable(path).is_ok()).ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("it is in none of {SEARCH_PATH}"))
    })
}

fn is_executable(path: &Path) -> io::Result<()> {
    let metadata = fs::metadata(path)?;
    if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is no executable file"))
}

/// What keeps a user without any rights from running the `program` that [`find`] found: the program
/// itself, or a directory on the way to it, of its path or of what that leads to if it is a link,
/// that not everybody may enter. `None` where nothing does, as far as permission bits tell.
pub fn barrier(program: &Path) -> io::Result<Option<PathBuf>> {
    let target = fs::canonicalize(program)?;
    for part in program.ancestors().chain(target.ancestors()) {
        // A relative path ends with a directory without a name.
        let named = !part.as_os_str().is_empty();
        if named && fs::metadata(part)?.permissions().mode() & 0o001 == 0 {
            return Ok(Some(part.to_owned()));
        }
    }
    Ok(None)
}

/// The first line that `program --version` prints. The program is killed if it says nothing within
/// ten seconds.
pub fn version_of(program: &Path) -> io::Result<String> {
    let (output, theirs) = io::pipe()?;
    let mut command = Command::new(program);
    command.arg("--version").env_clear().env("PATH", SEARCH_PATH);
    command.stdin(Stdio::null()).stdout(theirs).stderr(Stdio::null());
    let mut child = command.spawn()?;
    // It holds our copy of the pipe's other end.
    drop(command);
    let line = first_line(output);
    // Whatever it is still about has no reader any more.
    let _ = child.kill();
    child.wait()?;
    line
}

fn first_line(mut output: PipeReader) -> io::Result<String> {
    let deadline = Instant::now() + PATIENCE;
    let mut said = Vec::new();
    while !said.contains(&b'\n') && (said.len() as u64) < LONGEST {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut fds = [PollFd::new(&output, PollFlags::IN)];
        if rustix::io::retry_on_intr(|| poll(&mut fds, Some(&timeout)))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut chunk = [0; 512];
        match output.read(&mut chunk)? {
            0 => break,
            length => said.extend_from_slice(&chunk[..length]),
        }
    }
    let text = String::from_utf8_lossy(&said);
    let line = text.lines().next().unwrap_or_default().trim();
    if line.is_empty() {
        return Err(io::Error::other("it does not tell its version"));
    }
    Ok(line.chars().filter(|character| !character.is_control()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        (dir, path)
    }

    #[test]
    fn names_are_looked_for_and_paths_are_not() {
        assert!(find(Path::new("sh")).unwrap().ends_with("bin/sh"));
        assert_eq!(find(Path::new("/bin/sh")).unwrap(), Path::new("/bin/sh"));
        let missing = find(Path::new("no-such-program-anywhere")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        let data = find(Path::new("/etc/passwd")).unwrap_err();
        assert_eq!(data.kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(find(Path::new("/etc")).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn program_below_a_closed_directory_is_behind_it() {
        let (dir, program) = script("exit 0");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(barrier(&program).unwrap().unwrap(), dir.path());
        let open = tempfile::tempdir().unwrap();
        fs::set_permissions(open.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let link = open.path().join("link");
        std::os::unix::fs::symlink(&program, &link).unwrap();
        assert_eq!(barrier(&link).unwrap().unwrap(), dir.path().canonicalize().unwrap());
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(barrier(&program).unwrap().unwrap(), program);
        assert_eq!(barrier(&find(Path::new("sh")).unwrap()).unwrap(), None);
    }

    #[test]
    fn version_is_the_first_line_whatever_comes_after() {
        let (_dir, program) = script("echo 'thing 1.2'; exec yes");
        assert_eq!(version_of(&program).unwrap(), "thing 1.2");
    }

    #[test]
    fn program_that_says_nothing_has_no_version() {
        let (_dir, program) = script("exit 3");
        assert!(version_of(&program).unwrap_err().to_string().contains("version"));
    }
}
