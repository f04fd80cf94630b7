//! Where the log of a process goes that has nobody to print to: lines as logrus writes them, into a fifo or a file of bounded size.
//!
//! Logging never holds anything up and never fails.

mod fifo;
mod file;
mod line;

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry;

use fifo::LogFifo;
use file::LogFile;
pub use line::now;

/// From now on, whatever is traced goes to the fifo, with the sandbox's id on each line. A fifo that is not there is none of an error:
/// the process may have been started by hand. Lines that cannot be written are counted, and told when writing works again.
pub fn to_fifo(fifo: &Path, sandbox: &str, debug: bool) {
    start(LogFifo::new(fifo), sandbox, debug);
}

/// From now on, whatever is traced goes to the file, which is made if need be. It never grows over a mebibyte: the older half of a log
/// that is too long is in a second file with `.1` after its name.
pub fn to_file(file: &Path, sandbox: &str, debug: bool) {
    start(LogFile::new(file), sandbox, debug);
}

/// What takes lines, without ever waiting.
trait Sink: Send + 'static {
    fn write_line(&mut self, line: &str);
}

fn start(sink: impl Sink, sandbox: &str, debug: bool) {
    let level = if debug { LevelFilter::DEBUG } else { LevelFilter::INFO };
    let layer =
        SinkLayer { sandbox: sandbox.to_owned(), sink: Mutex::new(sink) }.with_filter(level);
    // An error means that somebody was first, which nobody can be in a program that logs to one place.
    let _ = tracing::subscriber::set_global_default(registry().with(layer));
}

struct SinkLayer<S> {
    sandbox: String,
    // A mutex and not a channel: a line written before a crash must be out, and writing never waits.
    sink: Mutex<S>,
}

impl<S: Subscriber, T: Sink> Layer<S> for SinkLayer<T> {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let line = line::of_event(event, &self.sandbox);
        self.sink.lock().unwrap_or_else(PoisonError::into_inner).write_line(&line);
    }
}
