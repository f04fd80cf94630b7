//! Running a case under both runtimes and telling what differs.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use kata_e2e::{Containerd, Output, Run, Runtime};

/// A question that a script asks inside of a container.
#[derive(Clone, Copy)]
pub(crate) struct Probe {
    name: &'static str,
    script: &'static str,
    normalize: fn(&str) -> String,
}

impl Probe {
    pub(crate) const fn new(name: &'static str, script: &'static str) -> Self {
        Self { name, script, normalize: str::to_owned }
    }

    /// With what may differ, taken out of the answer.
    pub(crate) const fn normalized(self, normalize: fn(&str) -> String) -> Self {
        Self { normalize, ..self }
    }
}

/// Asks all `probes` in one container of each runtime, as a boot is not for free, and compares the
/// answers one by one.
pub(crate) fn compare<'a>(probes: &[Probe], mut run: impl FnMut(&str) -> Run<'a>) -> Result<()> {
    let script = script_of(probes);
    let reference = run(&script).under(Runtime::Runc).output()?;
    let tested = run(&script).output()?;
    ensure!(tested.code == 0, "the script failed: {tested}");
    let (reference_text, tested_text) = (reference.text(), tested.text());
    let (reference, tested) = (answers(&reference_text), answers(&tested_text));
    let mut differences = Vec::new();
    for probe in probes {
        let answer = |answers: &BTreeMap<&str, String>| {
            let answer = answers.get(probe.name).map(|answer| (probe.normalize)(answer));
            answer.with_context(|| format!("no answer to {}", probe.name))
        };
        let (expected, got) = (answer(&reference)?, answer(&tested)?);
        if expected != got {
            differences.push(format!("{}:\n{}", probe.name, lines_that_differ(&expected, &got)));
        }
    }
    ensure!(differences.is_empty(), "not as under runc:\n{}", differences.join("\n"));
    Ok(())
}

/// One script for all probes; an answer begins with a line that names it, and ends with its exit
/// code.
fn script_of(probes: &[Probe]) -> String {
    let ask = |probe: &Probe| {
        let Probe { name, script, .. } = probe;
        format!("echo '@@@{name}'\n(\n{script}\n) 2>&1\necho \"exit code $?\"\n")
    };
    probes.iter().map(ask).chain(["exit 0".to_owned()]).collect()
}

fn answers(text: &str) -> BTreeMap<&str, String> {
    let parts = text.split("@@@").skip(1).filter_map(|part| part.split_once('\n'));
    parts.map(|(name, answer)| (name.trim_end(), answer.to_owned())).collect()
}

fn lines_that_differ(expected: &str, got: &str) -> String {
    let only = |these: &str, those: &str, sign: &str| -> Vec<String> {
        let those: Vec<_> = those.lines().collect();
        let lines = these.lines().filter(|line| !those.contains(line));
        lines.map(|line| format!("  {sign} {line}")).collect()
    };
    let mut lines = only(expected, got, "runc:");
    lines.extend(only(got, expected, "kata:"));
    if lines.is_empty() {
        return format!("  the same lines in another order\n  runc: {expected:?}\n  kata: {got:?}");
    }
    lines.join("\n")
}

/// A command whose client is compared: output, error and exit code.
pub(crate) struct Case {
    name: &'static str,
    command: &'static [&'static str],
    options: &'static [&'static str],
    exec: bool,
}

impl Case {
    /// `ctr run`, in a container of its own.
    pub(crate) const fn run(name: &'static str, command: &'static [&'static str]) -> Self {
        Self { name, command, options: &[], exec: false }
    }

    /// `ctr task exec`, in a container that all such cases share.
    pub(crate) const fn exec(name: &'static str, command: &'static [&'static str]) -> Self {
        Self { name, command, options: &[], exec: true }
    }

    /// With one option that has a value.
    pub(crate) const fn with(self, options: &'static [&'static str; 2]) -> Self {
        Self { options, ..self }
    }

    fn option(&self) -> Option<(&str, &str)> {
        Some((self.options.first()?, self.options.get(1)?))
    }
}

/// Runs all `cases` under both runtimes and compares what the client says.
pub(crate) fn compare_clients(containerd: &Containerd, cases: &[Case]) -> Result<()> {
    let reference = outputs(containerd, cases, Runtime::Runc)?;
    let tested = outputs(containerd, cases, Runtime::under_test())?;
    let mut differences = Vec::new();
    for ((case, expected), got) in cases.iter().zip(&reference).zip(&tested) {
        let got = essence(got);
        let expected = expected_of(containerd, case, essence(expected), &got)?;
        if expected != got {
            differences.push(format!("{}:\n  runc: {expected}\n  kata: {got}", case.name));
        }
    }
    ensure!(differences.is_empty(), "not as under runc:\n{}", differences.join("\n"));
    Ok(())
}

/// How often runc is asked again about a case.
const SECOND_CHANCES: usize = 3;

/// What runc says, asked again as long as it differs: containerd 1.6 now and then loses what a
/// short command prints under runc. The runtime under test is asked once, so that it never gets
/// away with that.
fn expected_of(
    containerd: &Containerd,
    case: &Case,
    mut expected: String,
    got: &str,
) -> Result<String> {
    for _ in 0..SECOND_CHANCES {
        if expected == got {
            break;
        }
        let again = outputs(containerd, std::slice::from_ref(case), Runtime::Runc)?;
        expected = again.first().map(essence).context("runc was asked about one case")?;
    }
    Ok(expected)
}

fn outputs(containerd: &Containerd, cases: &[Case], runtime: Runtime) -> Result<Vec<Output>> {
    let shared = if cases.iter().any(|case| case.exec) {
        Some(containerd.run(["sleep", "1000"]).under(runtime).start()?)
    } else {
        None
    };
    let outputs = cases.iter().map(|case| match &shared {
        Some(container) if case.exec => {
            let exec = container.exec(case.command.iter().copied());
            match case.option() {
                Some((flag, value)) => exec.option(flag, value).output(),
                None => exec.output(),
            }
        }
        _ => {
            let run = containerd.run(case.command.iter().copied()).under(runtime);
            match case.option() {
                Some((flag, value)) => run.option(flag, value).output(),
                None => run.output(),
            }
        }
    });
    let outputs = outputs.collect::<Result<Vec<_>>>()?;
    shared.map_or(Ok(()), kata_e2e::Container::remove)?;
    Ok(outputs)
}

/// Everything that must be the same. Of an error of the engine, the end: what it says before names
/// its own stages.
fn essence(output: &Output) -> String {
    let errors = output.error_text();
    let starts = ["exec: ", "exec /", "chdir to cwd"].iter().filter_map(|start| errors.find(start));
    let errors = match starts.min() {
        // Who tells it, the engine or the process itself, depends on how late it was found.
        Some(at) => errors[at..].trim_end().trim_end_matches(": unknown"),
        None => &errors,
    };
    format!("exit code {}, stdout {:?}, stderr {errors:?}", output.code, output.text())
}
