//! How far a build is: a bar on a terminal, a line per stage elsewhere, JSON for machines.

use std::cell::RefCell;
use std::io::{IsTerminal, stderr};
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

/// A plain log shows how many files are compiled no oftener than this.
const PLAIN_INTERVAL: Duration = Duration::from_secs(30);

/// Tells the user.
pub(crate) struct Teller {
    format: Format,
    bar: Option<ProgressBar>,
    stage: RefCell<Stage>,
}

struct Stage {
    name: String,
    steps: u64,
    told: Instant,
}

impl Teller {
    pub(crate) fn new(format: Format) -> Self {
        let bar = (format == Format::Text && stderr().is_terminal()).then(|| {
            let style =
                ProgressStyle::with_template("{spinner} {elapsed:>4} {prefix} {pos} {wide_msg}");
            let bar = ProgressBar::new_spinner().with_style(style.expect("the template is right"));
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        let stage = Stage { name: String::new(), steps: 0, told: Instant::now() };
        Self { format, bar, stage: RefCell::new(stage) }
    }

    /// Tells of a file that was written or found.
    pub(crate) fn file(&self, path: &std::path::Path, bytes: u64) {
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

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Teller {
    fn stage(&self, name: &str) {
        *self.stage.borrow_mut() = Stage { name: name.to_owned(), steps: 0, told: Instant::now() };
        match (&self.bar, self.format) {
            (Some(bar), _) => {
                bar.set_position(0);
                bar.set_prefix(name.to_owned());
                bar.set_message("");
            }
            (None, Format::Json) => println!("{}", json!({ "stage": name })),
            (None, Format::Text) => eprintln!("{name}"),
        }
    }

    fn step(&self, piece: &str) {
        let mut stage = self.stage.borrow_mut();
        stage.steps += 1;
        if let Some(bar) = &self.bar {
            bar.set_position(stage.steps);
            bar.set_message(piece.to_owned());
        } else if stage.told.elapsed() >= PLAIN_INTERVAL {
            stage.told = Instant::now();
            match self.format {
                Format::Json => println!("{}", json!({"stage": stage.name, "steps": stage.steps})),
                Format::Text => eprintln!("{}: {} files so far", stage.name, stage.steps),
            }
        }
    }
}
