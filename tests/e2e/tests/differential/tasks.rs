//! What the engine's client says of a task besides its output: of its start, its processes, its
//! metrics and its end.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use kata_e2e::{Container, Containerd, Output, Runtime};

/// How the exit code of a first process is asked for that ends by itself.
const ENDS: &str = "exit 7";

/// What a runtime has told.
struct Told {
    /// What the client says, by the question.
    answers: Vec<(&'static str, String)>,
    /// The sections of the metrics.
    sections: BTreeSet<String>,
}

/// Asks everything under both runtimes and compares the answers.
pub(crate) fn compare_tasks(containerd: &Containerd) -> Result<()> {
    let expected = told(containerd, Runtime::Runc)?;
    let got = told(containerd, Runtime::under_test())?;
    let pairs = expected.answers.iter().zip(&got.answers);
    let differences: Vec<String> = pairs
        .filter(|(expected, got)| expected != got)
        .map(|((question, expected), (_, got))| {
            format!("{question}:\n  runc: {expected}\n  kata: {got}")
        })
        .collect();
    ensure!(differences.is_empty(), "not as under runc:\n{}", differences.join("\n"));
    // A guest's kernel may know more than the host's.
    let missing: Vec<_> = expected.sections.difference(&got.sections).collect();
    ensure!(
        missing.is_empty(),
        "runc's metrics have {missing:?}, and only these: {:?}",
        got.sections
    );
    ensure!(expected.sections.contains("memory"), "{:?}", expected.sections);
    Ok(())
}

fn told(containerd: &Containerd, runtime: Runtime) -> Result<Told> {
    let task = |words: &[&str]| containerd.ctr([&["task"], words].concat());
    let mut answers = Vec::new();

    let (client, container) = containerd.run(["sleep", "1000"]).under(runtime).starting()?;
    let id = container.id().to_owned();
    answers.push(("ctr run -d", said(&client.wait()?, &id)));
    let processes = task(&["ps", &id])?;
    answers.push(("task ps", without_numbers(&said(&processes, &id))));
    let sections = sections(&container)?;
    answers.push(("task delete while it runs", said(&task(&["delete", &id])?, &id)));
    answers.push(("task delete --force", said(&task(&["delete", "--force", &id])?, &id)));
    answers.push(("task delete of none", said(&task(&["delete", &id])?, &id)));
    container.remove()?;

    let events = containerd.events()?;
    let container = containerd.shell(ENDS).under(runtime).start()?;
    let id = container.id().to_owned();
    events.expect_exit(&id)?;
    answers.push(("task delete after its end", said(&task(&["delete", &id])?, &id)));
    container.remove()?;
    Ok(Told { answers, sections })
}

/// All that the client says, with the time and the container's name taken out.
fn said(output: &Output, id: &str) -> String {
    let text = [output.text(), output.error_text()];
    let text = text.map(|text| without_time(&text).replace(id, "ID"));
    format!("exit code {}, stdout {:?}, stderr {:?}", output.code, text[0], text[1])
}

/// What the client logs begins with the time.
fn without_time(text: &str) -> String {
    let without =
        |line: &str| match line.strip_prefix("time=").and_then(|rest| rest.split_once(' ')) {
            Some((_, rest)) => format!("{rest}\n"),
            None => format!("{line}\n"),
        };
    text.lines().map(without).collect()
}

/// Process ids are not the same twice, nor are they always as long, by which the columns are set.
fn without_numbers(text: &str) -> String {
    let (head, rows) = text.split_once("\\n").unwrap_or((text, ""));
    let head: Vec<&str> = head.split_whitespace().collect();
    let rows = rows.replace(|letter: char| letter.is_ascii_digit(), "").replace(' ', "");
    format!("{}\\n{rows}", head.join(" "))
}

/// Which sections the metrics have, and which parts with a structure of their own these have.
fn sections(container: &Container<'_>) -> Result<BTreeSet<String>> {
    let metrics = container.metrics()?;
    let metrics = metrics.as_object().context("the metrics are no object")?;
    let mut names = BTreeSet::new();
    for (name, section) in metrics {
        let Some(parts) = section.as_object() else { continue };
        names.insert(name.clone());
        let parts = parts.iter().filter(|(_, part)| part.is_object());
        names.extend(parts.map(|(part, _)| format!("{name}.{part}")));
    }
    Ok(names)
}
