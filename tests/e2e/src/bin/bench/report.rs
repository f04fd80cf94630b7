//! What the values come to: whether targets are met, a table, JSON.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::json;

use crate::metric::{self, Subject, Values};

/// A target of SPECIFICATION.md, whose tables have the same names, and what was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    /// What the value must not exceed, to a hundredth.
    pub(crate) at_most: f64,
}

impl Target {
    /// As exactly as its value is printed, to a hundredth.
    pub(crate) fn is_met(&self) -> bool {
        let hundredths = |value: f64| (value * 100.0).round();
        hundredths(self.value) <= hundredths(self.at_most)
    }
}

/// The targets about which something was measured. Ratios are of medians of one run. `None` for the
/// initial ramdisk where the guest boots from an image; those of the small kernel only count if it
/// `is_small`.
pub(crate) fn targets(
    values: &Values,
    ramdisk: Option<&Path>,
    is_small: bool,
) -> Result<Vec<Target>> {
    let kata = |metric| values.median(metric, Subject::Kata);
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    let against = |metric, subject| Some((kata(metric)?, values.median(metric, subject)?));
    let burst = |metric, count: f64| Some(kata(metric)? * cores / (count * kata(metric::ONE)?));
    let run = against(metric::RUN, Subject::Floor).map(|(kata, floor)| kata / floor);
    let template = values
        .median(metric::RUN, Subject::Template)
        .and_then(|template| Some(template / values.median(metric::RUN, Subject::Floor)?));
    let distributions = kata(metric::RUN_DISTRIBUTION)
        .and_then(|kata| Some(kata / values.median(metric::BOOT, Subject::Distribution)?));
    let to_init = |subject| values.median(metric::TO_INIT, subject);
    let small = to_init(Subject::Floor).filter(|_| is_small);
    let kernels = small.and_then(|small| Some(small / to_init(Subject::Distribution)?));
    let exec = against(metric::EXEC, Subject::Runc).map(|(kata, runc)| (kata - runc) * 1000.0);
    let proxy = kata(metric::OWNER_PSS).and_then(|owner| Some(owner / kata(metric::READ_PSS)?));
    // What the engine takes by itself is what it takes with runc, and what the VM takes is what it
    // takes under ctr.
    let beyond = |metric| {
        let (kata, runc) = against(metric, Subject::Runc)?;
        let (ctr, ctr_runc) = against(metric::RUN, Subject::Runc)?;
        Some((kata - runc) - (ctr - ctr_runc))
    };
    let found = [
        ("time of ctr run --rm … true ÷ the floor", run, "", 1.5),
        ("time of ctr run --rm … true ÷ the floor, from a template", template, "", 1.5),
        ("time of ctr run --rm … true ÷ the floor, distribution's kernel", distributions, "", 2.0),
        ("kernel to init, small kernel ÷ distribution's kernel", kernels, "", 0.5),
        ("extra time of ctr task exec … true over runc", exec, "ms", 60.0),
        (
            "time from ctr task delete --force to the last process gone",
            kata(metric::STOP),
            "s",
            0.3,
        ),
        ("10 starts at once ÷ (10 × one start ÷ cores)", burst(metric::TEN, 10.0), "", 1.2),
        ("20 starts at once ÷ (20 × one start ÷ cores)", burst(metric::TWENTY, 20.0), "", 1.2),
        ("memory of an idle sandbox without its guest's", kata(metric::REST_PSS), "MiB", 30.0),
        ("memory in use in an idle guest", kata(metric::GUEST_USED), "MiB", 40.0),
        ("memory of the shim", kata(metric::SHIM_PSS), "MiB", 6.0),
        ("resident memory of the shim", kata(metric::SHIM_RSS), "MiB", 12.0),
        (
            "extra time over runc under Podman, minus the same under ctr",
            beyond(metric::PODMAN),
            "s",
            0.3,
        ),
        ("the same under Podman with its network", beyond(metric::PODMAN_NETWORK), "s", 0.3),
        (
            "extra time over runc under Docker, minus the same under ctr",
            beyond(metric::DOCKER),
            "s",
            0.3,
        ),
        ("the same under Docker with its network", beyond(metric::DOCKER_NETWORK), "s", 0.3),
        ("time of kata-runtime state", kata(metric::STATE), "ms", 15.0),
        ("memory of kata-proxy", kata(metric::PROXY_PSS), "MiB", 6.0),
        ("memory of kata-proxy ÷ the shim's, for the same container", proxy, "", 1.0),
        ("memory of kata-shim", kata(metric::STAND_IN_PSS), "MiB", 4.0),
        ("size of the initial ramdisk", ramdisk.map(mib).transpose()?, "MiB", 8.0),
        ("packages in Cargo.lock", Some(packages()?), "", 400.0),
    ];
    let measured = found.into_iter().filter_map(|(name, value, unit, at_most)| {
        Some(Target { name, value: value?, unit, at_most })
    });
    Ok(measured.collect())
}

fn mib(file: &Path) -> Result<f64> {
    let size = fs::metadata(file).with_context(|| format!("no {}", file.display()))?.len();
    Ok(size as f64 / 1_048_576.0)
}

fn packages() -> Result<f64> {
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.lock");
    let text = fs::read_to_string(&lock).with_context(|| format!("no {}", lock.display()))?;
    Ok(text.lines().filter(|line| *line == "[[package]]").count() as f64)
}

/// The table for people.
pub(crate) fn table(values: &Values, targets: &[Target]) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "{:<40} {:<6} {:>5} {:>10} {:>10} {:>10}",
        "what", "who", "runs", "median", "p90", "spread"
    );
    let mut before = None;
    for (metric, subject, summary) in values.rows() {
        let what = if before == Some(metric) {
            String::new()
        } else {
            format!("{}, {}", metric.name, metric.unit)
        };
        before = Some(metric);
        let (who, runs) = (subject.name(), summary.runs);
        let (median, p90, spread) = (summary.median, summary.p90, summary.spread);
        let _ = writeln!(
            text,
            "{what:<40} {who:<6} {runs:>5} {median:>10.3} {p90:>10.3} {spread:>10.3}"
        );
    }
    for left_out in values.left_out() {
        let _ = writeln!(text, "{left_out}");
    }
    let _ = writeln!(text, "\n{:<60} {:>10} {:>10}", "target", "measured", "at most");
    for target in targets {
        let measured = format!("{:.2} {}", target.value, target.unit);
        let verdict = if target.is_met() { "met" } else { "NOT MET" };
        let _ = writeln!(
            text,
            "{:<60} {:>10} {:>10} {verdict}",
            target.name,
            measured.trim_end(),
            target.at_most
        );
    }
    text
}

/// The same for programs.
pub(crate) fn json(values: &Values, targets: &[Target], kernel: &Path) -> Result<String> {
    let rows: Vec<_> = values
        .rows()
        .map(|(metric, subject, summary)| {
            json!({ "group": metric.group, "what": metric.name.trim(), "unit": metric.unit,
                    "who": subject, "summary": summary })
        })
        .collect();
    let all = json!({ "host": host(kernel), "figures": rows, "left_out": values.left_out(),
                      "targets": targets });
    serde_json::to_string_pretty(&all).context("cannot write JSON")
}

/// What the figures depend on.
pub(crate) fn host(guest_kernel: &Path) -> serde_json::Value {
    let first = |file: &str, key: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_once(": ").map_or("", |(_, value)| value).to_owned()
    };
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    json!({
        "processor": first("/proc/cpuinfo", "model name"),
        "cores": std::thread::available_parallelism().map_or(1, usize::from),
        "kernel": kernel.trim(),
        "guest_kernel": guest_kernel,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_measured_is_judged() {
        let mut values = Values::default();
        values.add(metric::RUN, Subject::Kata, 3.0);
        values.add(metric::RUN, Subject::Floor, 1.0);
        values.leave_out(Subject::Runsc, "no\nptrace\n");
        let targets = targets(&values, Some(Path::new("/dev/null")), true).unwrap();
        assert_eq!(targets.len(), 3);
        assert!(!targets[0].is_met() && targets[1].is_met());
        let table = table(&values, &targets);
        assert!(table.contains("NOT MET") && table.contains("3.000"), "{table}");
        assert!(table.contains("\nrunsc: left out: no ptrace\n"), "{table}");
        let json = json(&values, &targets, Path::new("/k")).unwrap();
        assert!(json.contains("\"at_most\": 1.5") && json.contains("\"who\": \"floor\""), "{json}");
        assert!(json.contains("\"why\": \"no ptrace\""), "{json}");
    }

    #[test]
    fn target_is_met_as_exactly_as_it_is_printed() {
        let target = |value| Target { name: "ratio", value, unit: "", at_most: 1.0 };
        assert!(target(1.004).is_met() && !target(1.006).is_met());
    }

    #[test]
    fn specification_names_every_target() {
        let mut values = Values::default();
        for metric in metric::ALL {
            for subject in Subject::ALL {
                values.add(metric, subject, 1.0);
            }
        }
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../SPECIFICATION.md");
        let specification = fs::read_to_string(file).unwrap();
        let targets = targets(&values, Some(Path::new("/dev/null")), true).unwrap();
        assert_eq!(targets.len(), 22);
        for Target { name, at_most, unit, .. } in targets {
            let start = format!("| {name} |");
            // The one in a table of targets; another explains the words.
            let limit = specification.lines().find_map(|line| {
                let cell = line.strip_prefix(&start)?.split('|').next()?;
                cell.trim().trim_end_matches(unit).trim().parse().ok()
            });
            assert_eq!(limit, Some(at_most), "{name}");
        }
    }
}
