//! How errors are told: one line on standard error, one record in the log, as runc does it, since
//! engines read both.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use rustix::process::{getpgrp, getpid};

use crate::cli::{Global, LogFormat};

/// Where errors go.
#[derive(Debug)]
pub(crate) struct Report {
    log: Option<PathBuf>,
    format: LogFormat,
}

impl Report {
    pub(crate) fn new(global: &Global) -> Self {
        Self::to(global.log.clone(), global.log_format)
    }

    /// To this file; to standard error alone without one.
    pub(crate) fn to(log: Option<PathBuf>, format: LogFormat) -> Self {
        Self { log: log.filter(|path| !path.as_os_str().is_empty()), format }
    }

    /// Writes into the log what was told on standard error already.
    pub(crate) fn log_error(&self, message: &str) {
        self.log("error", message);
    }

    /// Tells an error with its causes. There is nobody to tell when this fails.
    pub(crate) fn error(&self, error: &anyhow::Error) {
        self.record("error", &format!("{error:#}").replace('\n', " "));
    }

    /// Tells people something that is no fault, and that they may have wanted: in a log that is not
    /// for programs, who take whatever is in theirs for an error; or at their terminal. `what` is
    /// asked only if there is somebody to tell.
    pub(crate) fn note(&self, what: impl FnOnce() -> Option<String>) {
        if self.log.is_some() && self.format == LogFormat::Text {
            what().iter().for_each(|message| self.log("info", message));
        } else if self.log.is_none() && is_called_at_a_terminal() {
            what().iter().for_each(|message| self.warning(message));
        }
    }

    /// Tells something that changes nothing.
    pub(crate) fn warning(&self, message: &str) {
        // In a terminal that is the container's already, no line end goes back to the line's
        // beginning by itself.
        let end = if std::io::stderr().is_terminal() { "\r\n" } else { "\n" };
        // A second record in the log would keep Podman from reading the first.
        let _ = write!(std::io::stderr(), "{}{end}", text("warning", message));
    }

    fn record(&self, level: &str, message: &str) {
        if self.log.is_none() {
            let _ = writeln!(std::io::stderr(), "{}", self.line(level, message));
            return;
        }
        self.log(level, message);
        let _ = writeln!(std::io::stderr(), "{message}");
    }

    fn log(&self, level: &str, message: &str) {
        let Some(path) = &self.log else { return };
        let logged = File::options().append(true).create(true).mode(0o644).open(path);
        let _ = logged.and_then(|mut log| writeln!(log, "{}", self.line(level, message)));
    }

    fn line(&self, level: &str, message: &str) -> String {
        match self.format {
            LogFormat::Text => text(level, message),
            LogFormat::Json => json(level, message),
        }
    }
}

/// Whether an interactive shell has called this program. Podman's `start` writes to the user's
/// terminal, too, but only a shell makes a group of processes of what it is told to run.
fn is_called_at_a_terminal() -> bool {
    std::io::stderr().is_terminal() && getpgrp() == getpid()
}

/// As logrus writes text.
fn text(level: &str, message: &str) -> String {
    format!("time={:?} level={level} msg={message:?}", kata_log::now())
}

/// As logrus writes JSON.
fn json(level: &str, message: &str) -> String {
    serde_json::json!({ "level": level, "msg": message, "time": kata_log::now() }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_for_people() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        for format in [LogFormat::Json, LogFormat::Text] {
            let report = Report { log: Some(path.clone()), format };
            report.note(|| Some("nothing is wrong".to_owned()));
            report.note(|| None);
            let logged = std::fs::read_to_string(&path).unwrap_or_default();
            let lines = usize::from(format == LogFormat::Text);
            assert_eq!(logged.lines().count(), lines, "{logged}");
        }
    }

    #[test]
    fn the_json_log_is_one_object() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.json");
        let report = Report { log: Some(path.clone()), format: LogFormat::Json };
        report.error(&anyhow::anyhow!("cause\n\"quoted\"").context("what"));
        let record: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(record["level"], "error");
        assert_eq!(record["msg"], "what: cause \"quoted\"");
        assert!(record["time"].as_str().unwrap().ends_with('Z'));
    }
}
