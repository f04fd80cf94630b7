//! Figures, their budgets, and how they are shown.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use kata_e2e::Installation;
use serde::Serialize;

use crate::measure::Measurements;

/// Budgets; all are upper bounds.
const RUN_PER_FLOOR: f64 = 2.0;
const EXEC_MORE_MS: f64 = 60.0;
const SHIM_MIB: f64 = 12.0;
const INITRD_MIB: f64 = 20.0;
const PACKAGES: f64 = 400.0;
const DELETE_S: f64 = 0.3;

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Figure {
    name: &'static str,
    value: f64,
    unit: &'static str,
    /// What it must not exceed, if anything.
    budget: Option<f64>,
    /// The least and the most of what the value is the median of.
    range: Option<(f64, f64)>,
}

impl Figure {
    fn of_seconds(name: &'static str, durations: &[Duration], budget: Option<f64>) -> Self {
        let seconds: Vec<f64> = durations.iter().map(Duration::as_secs_f64).collect();
        let least = seconds.iter().copied().fold(f64::INFINITY, f64::min);
        let most = seconds.iter().copied().fold(0.0, f64::max);
        let range = Some((least, most));
        Self { name, value: median(&seconds), unit: "s", budget, range }
    }

    fn plain(name: &'static str, value: f64, unit: &'static str, budget: Option<f64>) -> Self {
        Self { name, value, unit, budget, range: None }
    }

    fn verdict(&self) -> String {
        match self.budget {
            None => String::new(),
            Some(budget) if self.value <= budget => format!("met (at most {budget})"),
            Some(budget) => format!("NOT MET (at most {budget})"),
        }
    }
}

/// Everything that was measured, in the table's order.
pub(crate) fn figures(from: &Measurements, installation: &Installation) -> Result<Vec<Figure>> {
    let mid = |durations: &[Duration]| {
        median(&durations.iter().map(Duration::as_secs_f64).collect::<Vec<_>>())
    };
    let more_ms = (mid(&from.exec_kata) - mid(&from.exec_runc)) * 1000.0;
    let ratio = mid(&from.run_kata) / mid(&from.floor);
    let shim: Vec<f64> = from.shim_kib.iter().map(|kib| *kib as f64 / 1024.0).collect();
    let initrd = installation.initrd();
    let initrd = fs::metadata(&initrd).with_context(|| format!("no {}", initrd.display()))?.len();
    Ok(vec![
        Figure::of_seconds("floor: QEMU boots an init that ends", &from.floor, None),
        Figure::of_seconds("ctr run --rm … true, kata", &from.run_kata, None),
        Figure::plain("  as a multiple of the floor", ratio, "", Some(RUN_PER_FLOOR)),
        Figure::of_seconds("ctr run --rm … true, runc", &from.run_runc, None),
        Figure::of_seconds("ctr task exec … true, kata", &from.exec_kata, None),
        Figure::of_seconds("ctr task exec … true, runc", &from.exec_runc, None),
        Figure::plain("  kata takes more", more_ms, "ms", Some(EXEC_MORE_MS)),
        Figure::of_seconds(
            "running container: kill to gone, kata",
            &from.delete_kata,
            Some(DELETE_S),
        ),
        Figure::of_seconds("running container: kill to gone, runc", &from.delete_runc, None),
        Figure::plain(
            "shim's resident memory, one container",
            median(&shim),
            "MiB",
            Some(SHIM_MIB),
        ),
        Figure::plain("initial ramdisk", initrd as f64 / 1_048_576.0, "MiB", Some(INITRD_MIB)),
        Figure::plain("packages in Cargo.lock", packages()?, "", Some(PACKAGES)),
    ])
}

fn packages() -> Result<f64> {
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.lock");
    let text = fs::read_to_string(&lock).with_context(|| format!("no {}", lock.display()))?;
    Ok(text.lines().filter(|line| *line == "[[package]]").count() as f64)
}

/// The value in the middle; of an even number of values, the mean of the two in the middle. 0 of none.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        length if length % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// The table for people.
pub(crate) fn table(figures: &[Figure], runs: u32) -> String {
    let mut text = format!("medians of {runs} interleaved runs\n\n");
    for figure in figures {
        let value = format!("{:.3} {}", figure.value, figure.unit);
        let range = figure.range.map(|(least, most)| format!("{least:.3} … {most:.3}"));
        let range = range.unwrap_or_default();
        let line = format!("{:<40} {value:>12}  {range:<17} {}", figure.name, figure.verdict());
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text.push('\n');
    text
}

/// The same for programs.
pub(crate) fn json(figures: &[Figure], runs: u32) -> Result<String> {
    let all = serde_json::json!({ "runs": runs, "figures": figures });
    serde_json::to_string_pretty(&all).context("cannot write JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_in_the_middle() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn table_marks_what_is_over_budget() {
        let figures = [
            Figure::plain("good", 1.0, "s", Some(2.0)),
            Figure::plain("bad", 3.0, "s", Some(2.0)),
            Figure::of_seconds("free", &[Duration::from_secs(1)], None),
        ];
        let table = table(&figures, 1);
        assert!(
            table.contains("met (at most 2)") && table.contains("NOT MET (at most 2)"),
            "{table}"
        );
        assert!(json(&figures, 1).unwrap().contains("\"budget\": 2.0"));
    }
}
