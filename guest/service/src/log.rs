//! The agent's log: one JSON object per line, to the console and to whoever reads the log port.
//!
//! Writing to the console costs a virtual machine time, so that by default only warnings and errors
//! go there. The port gets everything that the level allows, also what was said before the host
//! began to read, as far as a bounded memory of it reaches.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use kata_guest_setup::cmdline::LogLevel;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::broadcast;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// How much of the past a new reader is told, in bytes.
const BACKLOG: usize = 64 << 10;
/// Lines that a slow reader may lag behind.
const LAG: usize = 512;

/// Where log lines go. Clones are the same log.
#[derive(Debug, Clone)]
pub struct Log {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    level: Level,
    console: Level,
    /// A mutex because a subscriber must be shareable between threads; the agent has one.
    past: Mutex<Past>,
    lines: broadcast::Sender<Arc<str>>,
}

#[derive(Debug, Default)]
struct Past {
    lines: VecDeque<Arc<str>>,
    bytes: usize,
}

impl Past {
    fn push(&mut self, line: Arc<str>) {
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.bytes > BACKLOG {
            let Some(oldest) = self.lines.pop_front() else { break };
            self.bytes -= oldest.len();
        }
    }
}

impl Log {
    /// Begins to log. To be called once; what is logged before it is lost.
    #[must_use]
    pub fn start(level: LogLevel) -> Self {
        let (level, console) = match level {
            LogLevel::Error => (Level::ERROR, Level::ERROR),
            LogLevel::Warn => (Level::WARN, Level::WARN),
            LogLevel::Info => (Level::INFO, Level::WARN),
            LogLevel::Debug => (Level::DEBUG, Level::DEBUG),
            LogLevel::Trace => (Level::TRACE, Level::TRACE),
        };
        let (lines, _) = broadcast::channel(LAG);
        let shared = Shared { level, console, past: Mutex::default(), lines };
        let log = Self { shared: Arc::new(shared) };
        // It fails only if there is a log already, which then serves as well.
        let _ = tracing::subscriber::set_global_default(Lines { log: log.clone() });
        log
    }

    /// Writes the log to `reader` until it goes away, or has shut its own side down: that is how it
    /// says that the past is enough.
    pub async fn serve(&self, reader: impl AsyncRead + AsyncWrite) {
        let (mut words, mut reader) = tokio::io::split(reader);
        let (past, mut lines) = {
            let past = self.past();
            (past.lines.clone(), self.shared.lines.subscribe())
        };
        for line in past {
            if reader.write_all(line.as_bytes()).await.is_err() {
                return;
            }
        }
        let enough = async {
            let mut ignored = [0; 64];
            while matches!(words.read(&mut ignored).await, Ok(1..)) {}
        };
        tokio::pin!(enough);
        loop {
            if reader.flush().await.is_err() {
                return;
            }
            let line = tokio::select! {
                line = lines.recv() => line,
                () = &mut enough => {
                    // It has gone away if this fails.
                    let _ = reader.shutdown().await;
                    return;
                }
            };
            let sent = match line {
                Ok(line) => reader.write_all(line.as_bytes()).await,
                // It lags so far behind that lines are gone; the next ones follow.
                Err(broadcast::error::RecvError::Lagged(_)) => Ok(()),
                Err(broadcast::error::RecvError::Closed) => return,
            };
            if sent.is_err() {
                return;
            }
        }
    }

    fn past(&self) -> MutexGuard<'_, Past> {
        self.shared.past.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, level: Level, line: String) {
        if level <= self.shared.console {
            // The console is the one place left to complain at.
            let _ = std::io::stdout().write_all(line.as_bytes());
        }
        let line: Arc<str> = line.into();
        self.past().push(Arc::clone(&line));
        // It fails when nobody reads now.
        let _ = self.shared.lines.send(line);
    }
}

struct Lines {
    log: Log,
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= self.log.shared.level
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(self.log.shared.level.into())
    }

    fn event(&self, event: &Event<'_>) {
        let mut record = Json::default();
        event.record(&mut record);
        let metadata = event.metadata();
        let line = record.line(*metadata.level(), metadata.target());
        self.log.write(*metadata.level(), line);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// The fields of an event.
#[derive(Default)]
struct Json {
    message: String,
    fields: String,
}

impl Json {
    fn line(self, level: Level, target: &str) -> String {
        let level = match level {
            Level::ERROR => "ERRO",
            Level::WARN => "WARN",
            Level::INFO => "INFO",
            Level::DEBUG => "DEBG",
            Level::TRACE => "TRCE",
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut line = String::from("{\"msg\":");
        quote(&mut line, &self.message);
        line.push_str(&self.fields);
        // Writing to a string does not fail.
        let _ = writeln!(
            line,
            ",\"level\":\"{level}\",\"ts\":\"{}\",\"subsystem\":\"{target}\",\"pid\":\"{}\",\
             \"source\":\"agent\",\"name\":\"kata-agent\",\"version\":\"{}\"}}",
            timestamp(now.as_secs(), now.subsec_micros()),
            std::process::id(),
            crate::VERSION,
        );
        line
    }

    fn field(&mut self, name: &str, value: &str) {
        if name == "message" {
            self.message.push_str(value);
            return;
        }
        self.fields.push(',');
        quote(&mut self.fields, name);
        self.fields.push(':');
        quote(&mut self.fields, value);
    }
}

impl Visit for Json {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.field(field.name(), &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.field(field.name(), value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.field(field.name(), &crate::status::chain(value));
    }
}

/// Appends `text` as a JSON string.
fn quote(line: &mut String, text: &str) {
    line.push('"');
    for character in text.chars() {
        match character {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            control if u32::from(control) < 0x20 => {
                let _ = write!(line, "\\u{:04x}", u32::from(control));
            }
            other => line.push(other),
        }
    }
    line.push('"');
}

/// RFC 3339 in UTC, from seconds since 1970.
fn timestamp(seconds: u64, microseconds: u32) -> String {
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    // Days are counted in years that begin in March, so that a leap day is a year's last.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{microseconds:06}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamp_knows_leap_years() {
        assert_eq!(timestamp(0, 0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(timestamp(951_782_400, 5), "2000-02-29T00:00:00.000005Z");
        assert_eq!(timestamp(1_795_500_754, 0), "2026-11-24T06:12:34.000000Z");
    }

    #[test]
    fn line_is_json_whatever_is_in_it() {
        let mut json = Json::default();
        json.field("message", "a \"quoted\"\nline\u{1}\\");
        json.field("error", "x: y");
        let line = json.line(Level::WARN, "kata_agent");
        let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(parsed["msg"], "a \"quoted\"\nline\u{1}\\");
        assert_eq!(parsed["error"], "x: y");
        assert_eq!(parsed["level"], "WARN");
        assert_eq!(parsed["source"], "agent");
    }

    #[test]
    fn past_is_bounded() {
        let mut past = Past::default();
        for _ in 0..100 {
            past.push("x".repeat(10_000).into());
        }
        assert!(past.bytes <= BACKLOG);
        assert_eq!(past.lines.len(), BACKLOG / 10_000);
    }
}
