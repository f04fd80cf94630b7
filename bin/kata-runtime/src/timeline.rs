//! `timeline`: where the time of a sandbox's start went.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use kata_timeline::{svg, table};

/// Shows where the time of a running sandbox's start went.
#[derive(Debug, Args)]
pub(crate) struct Timeline {
    /// The sandbox's id: its first container's.
    sandbox: String,
    /// Print the record for programs: moments in nanoseconds of CLOCK_MONOTONIC.
    #[arg(long, conflicts_with = "svg")]
    json: bool,
    /// Draw it: into this file, or without one to standard output.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    svg: Option<PathBuf>,
}

impl Timeline {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let dir = kata_host_runtime::run_dir_of(&self.sandbox)?;
        let timeline = kata_timeline::Timeline::load(&dir)?;
        match &self.svg {
            Some(file) if file != Path::new("-") => fs::write(file, svg(&timeline))
                .with_context(|| format!("cannot write {}", file.display()))?,
            Some(_) => print!("{}", svg(&timeline)),
            None if self.json => println!("{}", timeline.to_json()),
            None => print!("{}", table(&timeline)),
        }
        Ok(())
    }
}
