//! The same as the table, as a page for the documentation.

use std::fmt::Write;
use std::path::Path;

use crate::metric::Values;
use crate::report::{self, Target};

/// All figures and targets, under what they depend on: the guest's kernel, and its memory in MiB.
pub(crate) fn page(values: &Values, targets: &[Target], kernel: &Path, memory: u32) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "# Figures of the bench\n\nWritten by `make bench` ([picture](pictures/bench.svg)). [SPECIFICATION.md](../SPECIFICATION.md) \
         says what the words mean and why a target is not met.\n\nA guest of {memory} MiB; {}.\n\n\
         | what | who | runs | median | p90 | spread |\n|---|---|--:|--:|--:|--:|",
        host(kernel)
    );
    for (metric, subject, summary) in values.rows() {
        let _ = writeln!(
            text,
            "| {}, {} | {} | {} | {:.3} | {:.3} | {:.3} |",
            // A part of the row above.
            metric.name.replace("  ", "– "),
            metric.unit,
            subject.name(),
            summary.runs,
            summary.median,
            summary.p90,
            summary.spread
        );
    }
    for left_out in values.left_out() {
        // A line of its own, in which nothing of a program's words is markup.
        let _ = writeln!(text, "\n`{}`", left_out.to_string().replace('`', "'"));
    }
    let _ = writeln!(text, "\n| target | at most | measured | |\n|---|--:|--:|---|");
    for target in targets {
        let with_unit = |number: String| format!("{number} {}", target.unit).trim_end().to_owned();
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} |",
            target.name,
            with_unit(target.at_most.to_string()),
            with_unit(format!("{:.2}", target.value)),
            if target.is_met() { "met" } else { "**not met**" }
        );
    }
    text
}

fn host(kernel: &Path) -> String {
    let host = report::host(kernel);
    let word = |key: &str| host[key].as_str().unwrap_or_default().to_owned();
    format!("host: {} × {}, Linux {}", host["cores"], word("processor"), word("kernel"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::{self, Subject};

    #[test]
    fn page_has_a_row_for_each_figure_and_target() {
        let mut values = Values::default();
        values.add(metric::RUN, Subject::Kata, 3.0);
        values.add(metric::TO_INIT, Subject::Floor, 1.0);
        values.leave_out(Subject::Runsc, "`ptrace` is\nforbidden");
        let target = |value| Target { name: "time", value, unit: "s", at_most: 1.5 };
        let page = page(&values, &[target(2.0), target(1.0)], Path::new("/k"), 256);
        for line in [
            "| ctr run --rm … true, s | kata | 1 | 3.000 | 3.000 | 0.000 |",
            "| – kernel to init, s | floor | 1 | 1.000 | 1.000 | 0.000 |",
            "`runsc: left out: 'ptrace' is forbidden`",
            "| time | 1.5 s | 2.00 s | **not met** |",
            "| time | 1.5 s | 1.00 s | met |",
        ] {
            assert!(page.lines().any(|one| one == line), "{line} is not in:\n{page}");
        }
    }
}
