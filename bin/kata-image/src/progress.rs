//! How far a build is: a bar on a terminal, a line per stage elsewhere, JSON for machines.

use std::cell::RefCell;
use std::io::{IsTerminal, stderr};
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use kata_initrd::Progress;
use serde_json::json;

/// In which form results and progress are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people: progress on stderr, results as lines on stdout.
    Text,
    /// For machines: one JSON object per line on stdout.
    Json,
}

/// A plain log shows how far a stage is no oftener than this.
const PLAIN_INTERVAL: Duration = Duration::from_secs(30);

/// What a bar shows of a stage whose length is not known, and of one whose length is.
const OPEN: &str = "{spinner} {elapsed:>4} {prefix} {pos} {wide_msg}";
const WHOLE: &str = "{spinner} {elapsed:>4} {prefix} [{bar:24}] {percent:>3} % {wide_msg}";

/// Tells the user.
pub(crate) struct Teller {
    format: Format,
    bar: Option<ProgressBar>,
    stage: RefCell<Stage>,
}

struct Stage {
    name: String,
    steps: u64,
    /// How many there are, where that is known.
    total: Option<u64>,
    told: Instant,
}

impl Stage {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), steps: 0, total: None, told: Instant::now() }
    }
}

impl Teller {
    pub(crate) fn new(format: Format) -> Self {
        let bar = (format == Format::Text && stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new_spinner().with_style(style(OPEN));
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self { format, bar, stage: RefCell::new(Stage::new("")) }
    }

    /// Tells of a file that was written or found.
    pub(crate) fn file(&self, path: &Path, bytes: u64) {
        self.finish();
        match self.format {
            Format::Json => println!("{}", json!({"file": path, "bytes": bytes})),
            Format::Text => {
                eprintln!("wrote {} ({:.1} MiB)", path.display(), bytes as f64 / 1_048_576.0);
            }
        }
    }

    /// Tells of a fact about the result, like a root hash.
    pub(crate) fn fact(&self, name: &str, value: &str) {
        self.finish();
        match self.format {
            Format::Json => println!("{}", json!({ name: value })),
            Format::Text => println!("{name} = {value}"),
        }
    }

    /// Tells of a package's file: for people the file alone, a line each.
    pub(crate) fn package(&self, path: &Path) {
        self.finish();
        match self.format {
            Format::Json => println!("{}", json!({ "package": path })),
            Format::Text => println!("{}", path.display()),
        }
    }

    /// Tells of something that the user may want to change.
    pub(crate) fn note(&self, text: &str) {
        self.finish();
        match self.format {
            Format::Json => println!("{}", json!({ "note": text })),
            Format::Text => eprintln!("note: {text}"),
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is right").progress_chars("=> ")
}

impl Progress for Teller {
    fn stage(&self, name: &str) {
        *self.stage.borrow_mut() = Stage::new(name);
        match (&self.bar, self.format) {
            (Some(bar), _) => {
                bar.reset();
                bar.set_style(style(OPEN));
                bar.set_prefix(name.to_owned());
                bar.set_message("");
            }
            (None, Format::Json) => println!("{}", json!({ "stage": name })),
            (None, Format::Text) => eprintln!("{name}"),
        }
    }

    fn total(&self, steps: u64) {
        self.stage.borrow_mut().total = Some(steps);
        if let Some(bar) = &self.bar {
            bar.set_length(steps);
            bar.set_style(style(WHOLE));
        }
    }

    fn step(&self, piece: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(piece.to_owned());
        }
        let steps = self.stage.borrow().steps + 1;
        self.reached(steps);
    }

    fn reached(&self, steps: u64) {
        let mut stage = self.stage.borrow_mut();
        stage.steps = steps;
        // What was said about the whole may be a little less than it is.
        let shown = stage.total.map_or(steps, |total| steps.min(total));
        if let Some(bar) = &self.bar {
            bar.set_position(shown);
        } else if stage.told.elapsed() >= PLAIN_INTERVAL {
            stage.told = Instant::now();
            let Stage { name, total, .. } = &*stage;
            match (self.format, total) {
                (Format::Json, _) => {
                    println!("{}", json!({"stage": name, "steps": shown, "total": total}));
                }
                (Format::Text, Some(total)) => {
                    eprintln!("{name}: {} %", shown * 100 / (*total).max(1));
                }
                (Format::Text, None) => eprintln!("{name}: {shown} files so far"),
            }
        }
    }
}
