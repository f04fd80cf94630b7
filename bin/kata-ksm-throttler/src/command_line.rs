//! Flags as Go's flag package reads them: one dash is as good as two, and a value comes after `=`
//! or in the next word.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// What the program is told to do.
#[derive(Debug, PartialEq, Eq)]
enum Invocation {
    Version,
    Help,
    Run(CommandLine),
}

/// What it is told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CommandLine {
    log: LevelFilter,
    paths: HashMap<&'static str, PathBuf>,
}

impl CommandLine {
    /// The value of a flag that was among those given to [`parse`].
    pub(crate) fn path(&self, flag: &str) -> PathBuf {
        self.paths.get(flag).cloned().unwrap_or_default()
    }
}

/// What both programs begin and end with: does what the command line asks for, which is `run` with
/// all of `paths` (see [`parse`]) unless it is a question.
pub(crate) fn main(
    program: &str,
    usage: &str,
    paths: &[(&'static str, &str)],
    run: impl FnOnce(&CommandLine) -> Result<()>,
) -> ExitCode {
    let done = match parse(std::env::args_os().skip(1), paths) {
        Ok(Invocation::Version) => {
            println!("{program} version {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        Ok(Invocation::Help) => {
            println!("{usage}");
            Ok(())
        }
        Ok(Invocation::Run(command_line)) => {
            log_to_stderr(command_line.log);
            run(&command_line)
        }
        Err(error) => Err(error),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{program}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Reads the words after the program's name. `paths` are the flags that take a path, each with its
/// default.
fn parse(
    words: impl IntoIterator<Item = OsString>,
    paths: &[(&'static str, &str)],
) -> Result<Invocation> {
    let mut command_line = CommandLine {
        log: LevelFilter::WARN,
        paths: paths.iter().map(|&(flag, default)| (flag, default.into())).collect(),
    };
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let word = word.to_str().with_context(|| format!("{} is no flag", word.display()))?;
        let name = word.strip_prefix("--").or_else(|| word.strip_prefix('-'));
        let name = name.with_context(|| format!("{word} is no flag; see -help"))?;
        let (name, inline) =
            name.split_once('=').map_or((name, None), |(name, value)| (name, Some(value)));
        match name {
            "version" => return Ok(Invocation::Version),
            "help" | "h" => return Ok(Invocation::Help),
            _ => {}
        }
        let value = inline.map(OsString::from).or_else(|| words.next());
        let value = value.with_context(|| format!("-{name} lacks its value"))?;
        if name == "log" {
            command_line.log = level(&value.to_string_lossy())?;
        } else if let Some((flag, _)) = paths.iter().find(|(flag, _)| *flag == name) {
            let path = value.to_str().and_then(|text| text.strip_prefix("unix://"));
            command_line.paths.insert(flag, path.map_or(value.clone().into(), PathBuf::from));
        } else {
            bail!("there is no flag -{name}; see -help");
        }
    }
    Ok(Invocation::Run(command_line))
}

/// logrus's names of levels.
fn level(name: &str) -> Result<LevelFilter> {
    Ok(match name {
        "panic" | "fatal" | "error" => LevelFilter::ERROR,
        "warn" | "warning" => LevelFilter::WARN,
        "info" => LevelFilter::INFO,
        "debug" => LevelFilter::DEBUG,
        "trace" => LevelFilter::TRACE,
        _ => bail!("-log {name}: the levels are error, warn, info, debug and trace"),
    })
}

/// From now on, whatever is traced goes to standard error, which systemd keeps. Not so every frame
/// of HTTP/2, which is nobody's business.
fn log_to_stderr(level: LevelFilter) {
    let ours = Targets::new().with_default(level).with_target("h2", LevelFilter::WARN.min(level));
    let stderr = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    tracing_subscriber::registry().with(stderr.with_filter(ours)).init();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Invocation> {
        parse(line.split_whitespace().map(OsString::from), &[("uri", "/default"), ("root", "/r")])
    }

    #[test]
    fn flags_are_read_as_go_reads_them() {
        for line in
            ["-uri /s -log debug", "--uri=/s --log=debug", "-log=debug -uri unix:///s -root /r"]
        {
            let Invocation::Run(command_line) = read(line).unwrap() else { panic!("{line}") };
            assert_eq!(command_line.path("uri"), PathBuf::from("/s"), "{line}");
            assert_eq!(command_line.path("root"), PathBuf::from("/r"), "{line}");
            assert_eq!(command_line.log, LevelFilter::DEBUG, "{line}");
        }
        assert_eq!(read("-version").unwrap(), Invocation::Version);
        assert_eq!(read("--help").unwrap(), Invocation::Help);
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for line in ["uri", "-uri", "-log loud", "-sock /s"] {
            assert!(read(line).is_err(), "{line}");
        }
    }
}
