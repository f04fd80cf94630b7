//! `check`: can this host run containers in VMs?

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;
use kata_host_runtime::{Finding, Outcome};
use serde_json::json;

use super::{Host, print};
use crate::cli::CheckArgs;

/// What Kata's own command says, since scripts look for it.
const CAPABLE: &str = "System can currently create Kata Containers";
const NOT_CAPABLE: &str = "ERROR: System is not capable of running Kata Containers";

/// Returns 0 when a container can start here, and 1 otherwise.
pub(super) fn run(host: &Host, args: &CheckArgs) -> Result<u8> {
    let option = Some(host.config.as_str()).filter(|path| !path.is_empty()).map(Path::new);
    let found = kata_host_runtime::check(option);
    let worst = found.iter().map(|one| one.outcome).max().unwrap_or(Outcome::Good);
    let bearable = if args.strict { Outcome::Good } else { Outcome::Warning };
    let capable = worst <= bearable;
    if args.json {
        print(&json(&found, capable))?;
    } else {
        print(&text(&found, capable))?;
    }
    Ok(u8::from(!capable))
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Good => "ok",
        Outcome::Warning => "warning",
        Outcome::Failed => "failed",
    }
}

/// A line for each finding, and the verdict.
fn text(found: &[Finding], capable: bool) -> String {
    let mut text = String::new();
    for Finding { probe, outcome, detail, remedy } in found {
        // Writing to a String cannot fail.
        let _ = write!(text, "{:<8} {probe:<15} {detail}", word(*outcome));
        if let Some(remedy) = remedy {
            let _ = write!(text, " -- {remedy}");
        }
        text.push('\n');
    }
    text + if capable { CAPABLE } else { NOT_CAPABLE } + "\n"
}

fn json(found: &[Finding], capable: bool) -> String {
    let findings: Vec<_> = found
        .iter()
        .map(|Finding { probe, outcome, detail, remedy }| {
            json!({ "probe": probe, "outcome": word(*outcome), "detail": detail, "remedy": remedy })
        })
        .collect();
    format!("{:#}\n", json!({ "capable": capable, "findings": findings }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_is_a_line_with_its_remedy() {
        let found = [Finding::good("a", "fine"), Finding::failed("b", "is broken", "mend it")];
        let text = text(&found, false);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), ["ok", "a", "fine"]);
        assert!(lines[1].ends_with("is broken -- mend it"), "{text}");
        assert_eq!(lines[2], NOT_CAPABLE);
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn json_says_the_same() {
        let found = [Finding::warning("kvm", "none", "load it")];
        let value: serde_json::Value = serde_json::from_str(&json(&found, true)).unwrap();
        assert_eq!(value["capable"], true);
        assert_eq!(value["findings"][0]["outcome"], "warning");
        assert_eq!(value["findings"][0]["remedy"], "load it");
    }
}
