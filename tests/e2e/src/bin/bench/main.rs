//! `make bench`: measures, prints a table, and writes JSON. Exits with 0 whatever the figures are.

mod floor;
mod measure;
mod report;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use kata_e2e::{Installation, Scenario};

use measure::Measurements;

/// Measures containers under kata and under runc, and the least that a virtual machine can take.
#[derive(Debug, Parser)]
struct Arguments {
    /// How often each thing is measured. Ratios come from the medians of one run.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Where the figures go as JSON.
    #[arg(long, default_value = "build/bench.json")]
    output: PathBuf,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut measurements = Measurements::default();
    Scenario::new().run(|containerd| {
        for run in 1..=arguments.runs {
            // Each round has one of everything, so that a busy moment of the machine spoils no ratio.
            eprint!("\rround {run} of {}", arguments.runs);
            measure::round(containerd, &mut measurements)?;
        }
        eprintln!();
        Ok(())
    })?;
    let installation = Installation::under_test();
    let figures = report::figures(&measurements, &installation)?;
    print!("{}", report::table(&figures, arguments.runs));
    if let Some(directory) = arguments.output.parent() {
        std::fs::create_dir_all(directory).context("cannot make the output's directory")?;
    }
    let shown = arguments.output.display();
    std::fs::write(&arguments.output, report::json(&figures, arguments.runs)?)
        .with_context(|| format!("cannot write {shown}"))?;
    println!("written to {shown}");
    Ok(())
}
