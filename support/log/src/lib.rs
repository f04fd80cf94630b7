//! Where the log of a process goes that has nobody to print to: lines as logrus writes them, into a
//! fifo or a file of bounded size.
//!
//! Logging never holds anything up and never fails.

mod chain;
mod fifo;
mod file;
mod hidden;
mod line;

use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::{Registry, registry, reload};

pub use chain::chain;
use fifo::LogFifo;
use file::LogFile;
pub use hidden::is_hidden;
pub use line::now;

/// What a process that has started to log can still change about it.
struct Started {
    filter: reload::Handle<Targets, Registry>,
    /// The least that is logged.
    least: LevelFilter,
}

static STARTED: OnceLock<Started> = OnceLock::new();

/// Changes how much is logged from now on: `level` of everything, but of what is traced under a
/// target that begins with one of `of`, the level beside it. A process that was started to help
/// find a defect goes on to log at least [`LevelFilter::DEBUG`]. Does nothing before logging has
/// started.
pub fn set_levels(level: LevelFilter, of: &[(&str, LevelFilter)]) {
    let Some(Started { filter, least }) = STARTED.get() else { return };
    let of = of.iter().map(|&(target, level)| (target, level.max(*least)));
    // An error means that the subscriber is gone, and with it whatever would be logged.
    let _ = filter.reload(Targets::new().with_default(level.max(*least)).with_targets(of));
}

/// From now on, whatever is traced goes to the fifo, with the sandbox's id on each line. A fifo
/// that is not there is none of an error: the process may have been started by hand. Lines that
/// cannot be written are counted, and told when writing works again.
pub fn to_fifo(fifo: &Path, sandbox: &str, debug: bool) {
    start(LogFifo::new(fifo), sandbox, debug);
}

/// From now on, whatever is traced goes to the file, which is made if need be. It never grows over
/// a mebibyte: the older half of a log that is too long is in a second file with `.1` after its
/// name.
pub fn to_file(file: &Path, sandbox: &str, debug: bool) {
    start(LogFile::new(file), sandbox, debug);
}

/// What takes lines, without ever waiting.
trait Sink: Send + 'static {
    fn write_line(&mut self, line: &str);
}

fn start(sink: impl Sink, sandbox: &str, debug: bool) {
    let (level, least) = match debug {
        true => (LevelFilter::DEBUG, LevelFilter::DEBUG),
        false => (LevelFilter::INFO, LevelFilter::OFF),
    };
    let (levels, filter) = reload::Layer::new(Targets::new().with_default(level));
    let layer =
        SinkLayer { sandbox: sandbox.to_owned(), sink: Mutex::new(sink) }.with_filter(levels);
    // An error means that somebody was first, which nobody can be in a program that logs to one
    // place.
    if tracing::subscriber::set_global_default(registry().with(layer)).is_ok() {
        let _ = STARTED.set(Started { filter, least });
    }
}

struct SinkLayer<S> {
    sandbox: String,
    // A mutex and not a channel: a line written before a crash must be out, and writing never
    // waits.
    sink: Mutex<S>,
}

impl<S: Subscriber, T: Sink> Layer<S> for SinkLayer<T> {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let line = line::of_event(event, &self.sandbox);
        self.sink.lock().unwrap_or_else(PoisonError::into_inner).write_line(&line);
    }
}
