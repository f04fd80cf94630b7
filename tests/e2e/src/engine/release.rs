//! Which release of an engine is there.

use std::process::Command;

use anyhow::{Context, Result};

use super::{Engine, Kind};
use crate::client::run;

impl Engine {
    /// The first number of its version; of Docker it is the daemon's, for the client may be of
    /// another.
    pub fn release(&self) -> Result<u32> {
        match self.kind() {
            Kind::Podman => release(self.command()),
            Kind::Docker | Kind::DockerWithShim => release(Command::new("dockerd")),
        }
    }
}

/// The first number of a program's version, from what it says to `--version`.
pub(super) fn release(mut program: Command) -> Result<u32> {
    program.arg("--version");
    let told = run(program)?.success()?;
    first_number(&told).with_context(|| format!("there is no version in {told:?}"))
}

fn first_number(told: &str) -> Option<u32> {
    told.split_once("version ")?.1.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_number_is_found() {
        assert_eq!(first_number("Docker version 20.10.24+dfsg1, build 297e128\n"), Some(20));
        assert_eq!(first_number("podman version 5.4.2"), Some(5));
        assert_eq!(first_number("dockerd"), None);
    }
}
