//! How a line of the log looks: as logrus writes text, which is what containerd's readers expect.

use std::fmt::{self, Write};

use tracing::field::{Field, Visit};
use tracing::{Event, Level};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

/// The line for an event, with its newline.
pub(crate) fn of_event(event: &Event<'_>, sandbox: &str) -> String {
    let mut fields = Fields::default();
    event.record(&mut fields);
    let level = match *event.metadata().level() {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    };
    format!("{}{} sandbox={sandbox}\n", head(level, &fields.message), fields.rest)
}

/// The line that says that `count` others are missing.
pub(crate) fn lost(count: u64) -> String {
    format!("{}\n", head("warning", &format!("{count} log lines are missing here")))
}

fn head(level: &str, message: &str) -> String {
    format!("time={:?} level={level} msg={message:?}", now())
}

/// The time as RFC 3339 has it, in UTC with microseconds.
#[must_use]
pub fn now() -> String {
    let mut time = String::new();
    // Writing to a String cannot fail, and a clock before 1970 leaves the time empty.
    let _ = SystemTime.format_time(&mut Writer::new(&mut time));
    time
}

/// The parts of an event.
#[derive(Default)]
struct Fields {
    message: String,
    /// ` key=value` for each of the others.
    rest: String,
}

impl Fields {
    fn add(&mut self, name: &str, value: &str) {
        if name == "message" {
            value.clone_into(&mut self.message);
            return;
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._/@^+".contains(c);
        // Writing to a String cannot fail.
        let _ = if !value.is_empty() && value.chars().all(plain) {
            write!(self.rest, " {name}={value}")
        } else {
            write!(self.rest, " {name}={value:?}")
        };
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field.name(), &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field.name(), value);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

    use super::*;

    struct Collect(Arc<Mutex<String>>);

    impl<S: tracing::Subscriber> Layer<S> for Collect {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            self.0.lock().unwrap().push_str(&of_event(event, "s1"));
        }
    }

    fn logged(trace: impl FnOnce()) -> String {
        let text = Arc::new(Mutex::new(String::new()));
        let subscriber = tracing_subscriber::registry().with(Collect(Arc::clone(&text)));
        tracing::subscriber::with_default(subscriber, trace);
        let line = text.lock().unwrap().clone();
        let (time, rest) = line.split_once("\" ").unwrap();
        assert!(time.starts_with("time=\"20") && time.ends_with('Z'), "{time}");
        rest.to_owned()
    }

    #[test]
    fn a_line_has_level_message_and_fields() {
        let line = logged(
            || tracing::warn!(id = "c1", status = 137, path = ?"/a b", "the {} is gone", "VM"),
        );
        assert_eq!(
            line,
            "level=warning msg=\"the VM is gone\" id=c1 status=137 path=\"\\\"/a b\\\"\" sandbox=s1\n"
        );
    }

    #[test]
    fn an_event_is_always_one_line() {
        let line = logged(|| tracing::error!(stderr = "one\ntwo\u{1b}", "a\nb \"c\""));
        assert_eq!(
            line,
            "level=error msg=\"a\\nb \\\"c\\\"\" stderr=\"one\\ntwo\\u{1b}\" sandbox=s1\n"
        );
    }
}
