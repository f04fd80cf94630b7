//! Listens to what libcontainer logs while it makes a container.
//!
//! Its processes hand only an error's outermost sentence to each other ("failed to prepare
//! rootfs"); the cause is in what they log on the way. The first thing that is logged as an error
//! is the one nearest to the cause, so it is passed on to the agent.

use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Calls its function with the text of the first error that is logged in this process; a process
/// that is forked off later may report one of its own.
pub(crate) struct FirstError<F> {
    report: F,
    reported: AtomicBool,
}

impl<F: Fn(String) + Send + Sync + 'static> FirstError<F> {
    pub(crate) fn new(report: F) -> Self {
        Self { report, reported: AtomicBool::new(false) }
    }
}

impl<F: Fn(String) + Send + Sync + 'static> Subscriber for FirstError<F> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() == Level::ERROR
    }

    fn event(&self, event: &Event<'_>) {
        if !self.reported.swap(true, Ordering::Relaxed) {
            let mut text = Text::default();
            event.record(&mut text);
            (self.report)(text.finish());
        }
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// The message, then every field in brackets.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Text {
    fn finish(self) -> String {
        if self.fields.is_empty() {
            self.message
        } else {
            format!("{} ({})", self.message, self.fields)
        }
    }
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        if field.name() == "message" {
            let _ = write!(self.message, "{value:?}");
        } else {
            let separator = if self.fields.is_empty() { "" } else { ", " };
            let _ = write!(self.fields, "{separator}{}: {value:?}", field.name());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn first_error_is_reported_with_its_fields() {
        let (sender, reported) = mpsc::channel();
        let subscriber = FirstError::new(move |text| sender.send(text).unwrap());
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!("not this");
            tracing::error!(path = "/x", "failed to {}", "mount");
            tracing::error!("failed to prepare rootfs");
        });
        assert_eq!(reported.iter().collect::<Vec<_>>(), ["failed to mount (path: \"/x\")"]);
    }
}
