//! Log lines on stderr, where the runtime keeps the last of them.

use std::io::Write;

use log::{LevelFilter, Log, Metadata, Record};

struct StderrLog;

impl Log for StderrLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            // One write for a line, so that the lines of several threads do not mix. Nobody can be
            // told when it fails.
            let line =
                format!("{}: {}\n", record.level().as_str().to_ascii_lowercase(), record.args());
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

/// Sends everything up to `level` to stderr from now on.
pub(crate) fn init(level: LevelFilter) {
    static LOG: StderrLog = StderrLog;
    log::set_logger(&LOG).expect("this is the only logger of the program");
    log::set_max_level(level);
}
