//! How many files this process may have open: as many as it is allowed, and its children what it
//! was given itself.
//!
//! Service managers give a low soft limit, for programs that wait with select(2) and fail beyond
//! 1024, and a high hard one, for programs that know better to take.

use std::io;
use std::process::Command;
use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::jail;

/// The limit that this process was started with, once it has another.
static GIVEN: OnceLock<Rlimit> = OnceLock::new();

/// Raises this process's soft limit to its hard one. May be repeated.
///
/// # Errors
///
/// As setrlimit(2), which has no reason to.
pub fn raise_limit() -> io::Result<()> {
    let now = getrlimit(Resource::Nofile);
    let given = GIVEN.get_or_init(|| now);
    setrlimit(Resource::Nofile, Rlimit { current: given.maximum, maximum: given.maximum })?;
    Ok(())
}

/// Lets a child that is not ours, a user's program, start with the limit that this process was
/// given.
pub fn give_back_limit(command: &mut Command) {
    if let Some(given) = GIVEN.get().copied() {
        jail::limit(command, Resource::Nofile, given);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_start_with_the_limit_that_was_given() {
        let limits = |command: &mut Command| {
            let output = command.args(["-c", "ulimit -Sn; ulimit -Hn"]).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let hard = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: Some(512), maximum: hard }).unwrap();
        let given = limits(&mut Command::new("sh"));
        assert!(given.starts_with("512\n"), "{given}");

        raise_limit().unwrap();
        raise_limit().unwrap();
        assert_eq!(getrlimit(Resource::Nofile).current, hard);
        let mut command = Command::new("sh");
        give_back_limit(&mut command);
        assert_eq!(limits(&mut command), given);
        assert_ne!(limits(&mut Command::new("sh")), given);
    }
}
