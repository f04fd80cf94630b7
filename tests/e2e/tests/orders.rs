//! The commands of the OCI command line in all orders, those that the specification allows and
//! those that it refuses, compared with runc's and crun's one by one: the exit code, the words that
//! callers look for, what is printed, and the status that the container has then.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result};
use kata_e2e::{CommandLine, Output, Runtime};
use serde_json::Value;

/// One command a line, of words with blanks between. `ID` stands for the container, `BUNDLE` for
/// its bundle, and `~` for a blank in a word. Two lines are the test's: `make` creates the
/// container, `ends` waits for its process's end.
const ORDERS: &str = "
    list --format json
    state ID
    start ID
    kill ID 9
    pause ID
    resume ID
    exec ID true
    ps ID
    update --pids-limit 50 ID
    events --stats ID
    delete ID
    delete --force ID
    create --bundle /no-such-bundle ID

    make
    create --bundle BUNDLE ID
    state ID
    list --quiet
    list --format json
    list --format nonsense
    resume ID
    exec ID echo before~the~start
    ps --format json ID
    update --pids-limit 50 ID
    kill ID 0
    pause ID
    pause ID
    start ID
    exec ID true
    delete ID
    resume ID
    delete ID
    state ID

    make
    pause ID
    delete --force ID

    make
    kill ID KILL
    ends
    start ID
    delete ID

    make
    start ID
    start ID
    resume ID
    delete ID
    create --bundle BUNDLE ID
    exec ID sh -c exit~7
    exec ID /no-such-program
    exec --cwd /no-such-directory ID true
    exec --cwd relative ID true
    exec --cwd /tmp ID pwd
    exec --user 7:8 ID id
    exec --user 7:8 -g 9 -g 10 ID id
    exec --user nobody ID id
    exec --env A=b --env C=d ID sh -c echo~$A~$C
    exec --cap CAP_SYS_ADMIN ID grep CapEff /proc/self/status
    exec --cap CAP_OF_NOBODY ID true
    exec --no-new-privs ID grep NoNewPrivs /proc/self/status
    exec --process /no-such-file ID
    exec --tty --detach ID true
    exec --detach ID sleep 1000
    ps --format json ID
    ps --format nonsense ID
    ps ID -o args
    kill ID NONSENSE
    kill ID 99
    kill ID 0
    kill ID SIGWINCH
    kill ID winch
    kill ID 28
    update ID
    update --cpu-share 500 ID
    update --memory 64m ID
    update --memory -5 ID
    update --cpu-quota nonsense ID
    update --resources /no-such-file ID
    events --stats ID
    events --interval 0s ID
    pause ID
    state ID
    pause ID
    start ID
    exec ID true
    ps --format json ID
    update --pids-limit 90 ID
    events --stats ID
    kill ID 0
    delete ID
    resume ID
    resume ID
    kill ID 9
    ends
    state ID
    list --format json
    start ID
    pause ID
    resume ID
    kill ID 9
    kill --all ID 9
    exec ID true
    ps --format json ID
    ps ID
    update --pids-limit 9 ID
    events --stats ID
    events ID
    create --bundle BUNDLE ID
    delete ID
    delete ID
    delete --force ID
    state ID

    make
    start ID
    pause ID
    delete --force ID

    make
    start ID
    delete --force ID

    no-such-command
    state
    state ID ID
    state --no-such-flag ID
    --no-such-flag state ID
    --log-format nonsense state ID
    --log /dev/null --log-format json --debug --systemd-cgroup state ID
    state ../escape
    create
    spec --bundle /no-such-directory
";

/// Where crun differs from runc, whom its callers know best, and why it is runc whom we follow.
const CRUN_DIFFERS: &[(&str, &str)] = &[
    ("list", "its JSON has fewer fields, and an empty list is `[]` where Go's is `null`"),
    ("state", "its JSON has fields of its own"),
    ("events", "it has no such command"),
    ("ps", "of what is not there it says so with 253, and it takes no arguments for ps(1)"),
    (
        "exec",
        "it fails with 1 before there is a process, has no -g, and enters no paused container",
    ),
    ("pause", "a created one is still `created` for it, and it may pause twice"),
    ("resume", "it may resume what runs"),
    ("start", "a created one that is paused starts"),
    ("kill", "it takes words that are no signals"),
    ("update", "it writes to the cgroup of what has ended, and takes sizes in bytes only"),
    ("delete", "a created one that is paused is `created` for it"),
    ("no-such-command", "it says so with 1"),
    ("--no-such-flag", "it says so with 64"),
    ("--log-format", "it takes any word"),
];

/// Words that engines look for, or that say which of several refusals it is.
const WORDS: &[&str] = &[
    "does not exist",
    "already exists",
    "container not running",
    "container not paused",
    "that is not stopped",
    "that has stopped",
    "already running",
    "in the paused state",
    "in a paused container",
    "in a stopped container",
    "is not running",
    "no such file or directory",
    "must be an absolute path",
    "without setting console socket",
    "invalid size",
    "greater than 0",
    "pid field",
    "invalid container id format",
    "unknown or unavailable capabilities",
];

/// What one command has come to.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    command: &'static str,
    code: i32,
    words: Vec<&'static str>,
    printed: String,
    status: String,
}

impl Step {
    fn of(command: &'static str, output: &Output, status: String) -> Self {
        let said = output.error_text().to_lowercase();
        let words = WORDS.iter().copied().filter(|words| said.contains(words)).collect();
        Self { command, code: output.code, words, printed: printed(command, output), status }
    }
}

/// What can be compared of what was printed: of a process its output, of JSON the shape, of
/// people's texts nothing.
fn printed(command: &str, output: &Output) -> String {
    let text = output.text();
    let is_json = command.starts_with("state") || command.contains("--format json");
    match serde_json::from_str::<Value>(&text) {
        _ if output.code != 0 => String::new(),
        _ if command.starts_with("exec") || command == "list --quiet" => text,
        Ok(json) if is_json => shape(&json),
        _ => String::new(),
    }
}

/// The names in it, and how many entries it has; of its values only what is said in words.
fn shape(json: &Value) -> String {
    match json {
        Value::Array(all) => {
            let shapes: BTreeSet<String> = all.iter().map(shape).collect();
            format!("{} of {shapes:?}", all.len())
        }
        Value::Object(all) => {
            let named = |(name, value): (&String, &Value)| match name.as_str() {
                "status" | "owner" => format!("{name} {value}"),
                _ => name.clone(),
            };
            all.iter().map(named).collect::<Vec<_>>().join(", ")
        }
        Value::Null => "null".to_owned(),
        _ => "a value".to_owned(),
    }
}

fn steps(host: &CommandLine) -> Result<Vec<Step>> {
    let id = host.id("c");
    let bundle = host.bundle("c", "exec sleep 1000", |spec| spec)?;
    let mut seen = Vec::new();
    for line in ORDERS.lines().map(str::trim).filter(|line| !line.is_empty()) {
        match line {
            "make" => {
                // crun has let run what runc has deleted by now.
                host.succeed(&["delete", "--force", &id])?;
                host.create("c", &bundle)?;
            }
            "ends" => host.ends("c")?,
            command => {
                let output = call(host, command, &id, &bundle)?;
                let is_ending = command.ends_with(" KILL") || command.ends_with(" 9");
                // Whether the end is seen already is a matter of moments.
                let status = if is_ending { String::new() } else { host.status("c")? };
                let step = Step::of(command, &output, status);
                eprintln!("{step:?}: {}", output.error_text().trim());
                // Of nobody's container it is the caller's name.
                seen.push(Step { printed: step.printed.replace(&id, "ID"), ..step });
            }
        }
    }
    Ok(seen)
}

fn call(host: &CommandLine, command: &str, id: &str, bundle: &Path) -> Result<Output> {
    let bundle = bundle.display().to_string();
    let word = |word: &str| match word {
        "ID" => id.to_owned(),
        "BUNDLE" => bundle.clone(),
        word => word.replace('~', " "),
    };
    let words: Vec<String> = command.split(' ').map(word).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if words.contains(&"--detach") {
        return detached(host, &words);
    }
    host.call(&words).with_context(|| command.to_owned())
}

/// Whoever lives on has the streams still open, so they are a file.
fn detached(host: &CommandLine, words: &[&str]) -> Result<Output> {
    let path = host.file("detached.out");
    let file = File::create(&path).context("cannot make a file")?;
    let mut command = host.command(words);
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let status = command.status().context("cannot run the runtime")?;
    let code = status.code().context("the runtime was killed")?;
    Ok(Output { stdout: Vec::new(), stderr: fs::read(path)?, code })
}

fn steps_of(runtime: Runtime) -> Result<Vec<Step>> {
    let mut seen = Vec::new();
    CommandLine::scenario(runtime, |host| {
        seen = steps(host)?;
        Ok(())
    })?;
    Ok(seen)
}

#[test]
fn every_order_of_commands_ends_as_with_runc() -> Result<()> {
    let (kata, runc) = (steps_of(Runtime::Kata)?, steps_of(Runtime::Runc)?);
    let differ: Vec<_> = kata.iter().zip(&runc).filter(|(ours, theirs)| ours != theirs).collect();
    assert!(kata.len() == runc.len() && differ.is_empty(), "{differ:#?}");
    Ok(())
}

#[test]
fn crun_and_runc_differ_where_it_is_known() -> Result<()> {
    let mut crun = Vec::new();
    CommandLine::of_crun(|host| {
        crun = steps(host)?;
        Ok(())
    })?;
    let runc = steps_of(Runtime::Runc)?;
    for (crun, runc) in crun.iter().zip(&runc) {
        let first = crun.command.split(' ').next().unwrap_or_default();
        let is_known = CRUN_DIFFERS.iter().any(|(command, _)| *command == first);
        let same = (crun.code, &crun.status) == (runc.code, &runc.status);
        assert!(same || is_known, "{crun:?} / {runc:?}");
    }
    Ok(())
}
