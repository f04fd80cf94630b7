//! kata-proxy's flags. Its only callers are our own programs, so each flag is a word and its value
//! another.

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};

/// What it is told to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Invocation {
    Version,
    Serve(CommandLine),
}

/// What it is told.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct CommandLine {
    /// The sandbox's id.
    pub(crate) sandbox: String,
    /// The file to log to.
    pub(crate) log: PathBuf,
    /// The path of the socket that is standard input, to be removed at the end.
    pub(crate) socket: PathBuf,
    /// The caller's process id.
    pub(crate) parent: i32,
    /// Log more.
    pub(crate) debug: bool,
}

pub(crate) fn parse(args: impl IntoIterator<Item = String>) -> anyhow::Result<Invocation> {
    let mut command_line = CommandLine::default();
    let mut args = args.into_iter();
    while let Some(flag) = args.next() {
        match flag.as_str() {
            "--version" | "-version" => return Ok(Invocation::Version),
            "--debug" => {
                command_line.debug = true;
                continue;
            }
            _ => {}
        }
        let value = args.next().with_context(|| format!("{flag} lacks its value"))?;
        match flag.as_str() {
            "--sandbox" => command_line.sandbox = value,
            "--log" => command_line.log = value.into(),
            "--socket" => command_line.socket = value.into(),
            "--parent" => command_line.parent = value.parse().context("--parent is no number")?,
            _ => bail!("there is no flag {flag}"),
        }
    }
    let complete = !command_line.sandbox.is_empty() && command_line.log.is_absolute();
    ensure!(complete, "it is started by kata-shim, not by hand");
    Ok(Invocation::Serve(command_line))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> anyhow::Result<Invocation> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn flags_are_read() {
        let line = "--sandbox s --log /run/l --socket /run/s --parent 7 --debug";
        let expected = CommandLine {
            sandbox: "s".to_owned(),
            log: "/run/l".into(),
            socket: "/run/s".into(),
            parent: 7,
            debug: true,
        };
        assert_eq!(words(line).unwrap(), Invocation::Serve(expected));
        assert_eq!(words("--version").unwrap(), Invocation::Version);
    }

    #[test]
    fn a_call_by_hand_is_an_error() {
        for line in ["", "--sandbox s", "--log", "--sandbox s --log relative", "--what 3"] {
            assert!(words(line).is_err(), "{line}");
        }
    }
}
