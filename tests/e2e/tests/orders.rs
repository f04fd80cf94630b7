//! The commands of the OCI command line in all orders, those that the specification allows and
//! those that it refuses, compared with runc's and crun's one by one: the exit code, the words that
//! callers look for, what is printed, and the status that the container has then.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result};
use kata_e2e::{CommandLine, Output, Runtime, checkout};
use serde_json::Value;

/// One command a line, of words with blanks between. `ID` stands for the container, `BUNDLE` for
/// its bundle, `PIDFILE` for the file with its pid, and `~` for a blank in a word. Two lines are
/// the test's: `make` creates the container, `ends` waits for its process's end.
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
    pause ID
    state ID
    ps --format json ID
    update --pids-limit 50 ID
    events --stats ID
    kill ID 0
    delete --force ID

    make
    kill ID KILL
    ends
    start ID
    delete ID

    make
    events --stats ID
    checkpoint ID
    run --bundle BUNDLE ID
    kill --all ID 9
    ends
    checkpoint ID
    delete ID

    make
    start ID
    pause ID
    checkpoint ID
    run --bundle BUNDLE ID
    delete --force ID

    make
    start ID
    kill --all ID 9
    ends
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
    exec --console-socket /no-such-socket --tty --detach ID true
    exec --pid-file /no-such-directory/pid --detach ID sleep 1000
    exec --detach ID sleep 1000
    checkpoint ID
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
    run --detach --bundle BUNDLE --pid-file PIDFILE ID
    run --detach --bundle BUNDLE --pid-file PIDFILE ID
    run --bundle /no-such-bundle ID
    kill ID 9
    ends
    run --detach --bundle BUNDLE --pid-file PIDFILE ID
    delete ID
    run --detach --pid-file /no-such-directory/pid --bundle BUNDLE ID
    delete --force ID
    run --detach --console-socket /no-such-socket --bundle BUNDLE ID
    delete --force ID
    restore --bundle BUNDLE ID

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

/// Where crun differs from runc, whom its callers know best and whom we follow: the command, the
/// status then, and in what.
const CRUN_DIFFERS: &[(&str, &str, &str)] = &[
    ("exec ID true", "gone", "1: so it says of all that fails before there is a process"),
    ("ps ID", "gone", "253"),
    (
        "resume ID",
        "created",
        "0, of what is not paused, too; or it runs then, since it was started while paused",
    ),
    ("pause ID", "paused", "0, of what is paused, too; a created one stays `created`"),
    ("state ID", "paused", STAYS_CREATED),
    ("ps --format json ID", "paused", STAYS_CREATED),
    ("update --pids-limit 50 ID", "paused", STAYS_CREATED),
    ("kill ID 0", "paused", STAYS_CREATED),
    ("start ID", "paused", "0: a created one that is paused starts, and runs when it is resumed"),
    ("exec ID true", "paused", "1"),
    ("delete ID", "gone", "1, where it runs since it was started while paused"),
    ("state ID", "gone", "0, where it could not be deleted before"),
    ("resume ID", "running", "0, of what is not paused, too"),
    ("exec --user 7:8 -g 9 -g 10 ID id", "running", "64: it has no `-g`"),
    ("exec --user nobody ID id", "running", "1"),
    (
        "exec --env A=b --env C=d ID sh -c echo~$A~$C",
        "running",
        "255: the process has nothing but these variables, and no PATH to find the program by",
    ),
    (
        "exec --cap CAP_SYS_ADMIN ID grep CapEff /proc/self/status",
        "running",
        "the process has nothing but this capability",
    ),
    ("exec --process /no-such-file ID", "running", "1"),
    ("exec --tty --detach ID true", "running", "1"),
    ("exec --console-socket /no-such-socket --tty --detach ID true", "running", "1"),
    ("exec --pid-file /no-such-directory/pid --detach ID sleep 1000", "running", "1"),
    ("kill ID NONSENSE", "running", "0: it takes words that are no signals"),
    ("update --memory 64m ID", "running", "1: it takes sizes in bytes only"),
    ("events --stats ID", "created", "1: it has no such command"),
    ("events --stats ID", "running", "1: it has no such command"),
    ("events --stats ID", "paused", "1: it has no such command"),
    ("exec ID true", "stopped", "1"),
    ("ps --format json ID", "stopped", "139: it crashes"),
    ("ps ID", "stopped", "139: it crashes"),
    ("update --pids-limit 9 ID", "stopped", "0: it writes to the cgroup of what has ended"),
    ("no-such-command", "gone", "1"),
    ("state --no-such-flag ID", "gone", "64"),
    ("--no-such-flag state ID", "gone", "64"),
];

const STAYS_CREATED: &str = "one that was not started stays `created` while it is paused";

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
    "cannot use console socket if",
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

/// The names in it, how many entries it has, and of what kind its values are; of the values
/// themselves what does not differ from one run to the next.
fn shape(json: &Value) -> String {
    match json {
        Value::Array(all) => {
            let shapes: BTreeSet<String> = all.iter().map(shape).collect();
            format!("{} of {shapes:?}", all.len())
        }
        Value::Object(all) => {
            let named = |(name, value): (&String, &Value)| match name.as_str() {
                "status" | "owner" | "id" | "bundle" => format!("{name} {value}"),
                _ => format!("{name}: {}", shape(value)),
            };
            all.iter().map(named).collect::<Vec<_>>().join(", ")
        }
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "yes or no".to_owned(),
        Value::Number(number) if number.as_u64() == Some(0) => "0".to_owned(),
        Value::Number(_) => "a number".to_owned(),
        Value::String(_) => "a text".to_owned(),
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
                // Both carry the mark of their caller.
                let printed = step.printed.replace(&bundle.display().to_string(), "BUNDLE");
                seen.push(Step { printed: printed.replace(&id, "ID"), ..step });
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
        "PIDFILE" => host.file("c.pid").display().to_string(),
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

/// The differences between two runs of the commands, as lines for people.
fn differences(ours: &[Step], theirs: &[Step], is_same: fn(&Step, &Step) -> bool) -> Vec<String> {
    assert_eq!(ours.len(), theirs.len());
    let differ = ours.iter().zip(theirs).filter(|(ours, theirs)| !is_same(ours, theirs));
    differ.map(|(ours, theirs)| format!("{ours:?}\n    {theirs:?}")).collect()
}

/// Whether crun has come to the same: its words are its own, and so is the shape of its JSON.
fn is_as_with_crun(ours: &Step, crun: &Step) -> bool {
    let output = |step: &Step| step.command.starts_with("exec").then(|| step.printed.clone());
    (ours.code, &ours.status, output(ours)) == (crun.code, &crun.status, output(crun))
}

fn known_of_crun(step: &Step) -> Option<&'static str> {
    let is_it = |(command, status): (&str, &str)| command == step.command && status == step.status;
    let found = CRUN_DIFFERS.iter().find(|(command, status, _)| is_it((command, status)));
    found.map(|(.., how)| *how)
}

/// The page that shows what came of each command.
fn page(kata: &[Step], crun: &[Step]) -> String {
    let mut text = PAGE.to_owned();
    for (step, crun) in kata.iter().zip(crun) {
        let Step { command, code, status, .. } = step;
        let known = known_of_crun(step).filter(|_| !is_as_with_crun(step, crun));
        let crun = known.unwrap_or("the same");
        let status = if status.is_empty() { "ending" } else { status };
        let command = command.replace('~', " ").replace('|', "\\|");
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| `{command}` | {code} | {status} | {crun} |");
    }
    text
}

const PAGE: &str = "\
# The OCI command line, compared with runc and crun

<!-- Generated by `KATA_E2E_WRITE=1 cargo test -p kata-e2e --test orders`, which also checks it. -->

`kata-runtime` takes the commands of runc. The test `orders` of `tests/e2e` calls each line below with `kata-runtime`, runc and crun,
in this order, and compares what comes of it: the exit code, the words that callers look for, the output of processes, the names and the
kinds of values in JSON, and the status that the container has then. With runc all of it is the same. Where crun differs in exit code,
status or output, the last column says how.

`ID` is the container, `BUNDLE` its bundle, and `PIDFILE` a file for its pid. Before a line whose command needs a new container, the
test has deleted the old one and made another. `ending` stands after a deadly signal: whether the end is seen already is a matter of
moments.

| command | exit code | status then | crun |
|---|---|---|---|
";

#[test]
fn every_order_of_commands_ends_as_with_runc_and_where_crun_differs_is_known() -> Result<()> {
    let (kata, runc) = (steps_of(Runtime::Kata)?, steps_of(Runtime::Runc)?);
    let differ = differences(&kata, &runc, |ours, theirs| ours == theirs);
    assert!(differ.is_empty(), "from runc:\n{}", differ.join("\n"));

    let mut crun = Vec::new();
    CommandLine::of_crun(|host| {
        crun = steps(host)?;
        Ok(())
    })?;
    let is_same =
        |ours: &Step, crun: &Step| is_as_with_crun(ours, crun) || known_of_crun(ours).is_some();
    let differ = differences(&kata, &crun, is_same);
    assert!(differ.is_empty(), "from crun:\n{}", differ.join("\n"));
    for (command, status, _) in CRUN_DIFFERS {
        let is_it = |ours: &Step| ours.command == *command && ours.status == *status;
        let mut both = kata.iter().zip(&crun).filter(|(ours, _)| is_it(ours));
        let differs = both.any(|(ours, crun)| !is_as_with_crun(ours, crun));
        assert!(differs, "crun does as runc does: {command} ({status})");
    }
    shows(&page(&kata, &crun))
}

/// As with runc; under crun it is killed once it is resumed.
#[test]
fn paused_container_that_is_killed_ends_although_nobody_resumes_it() -> Result<()> {
    CommandLine::scenario(Runtime::under_test(), |host| {
        let (id, bundle) = (host.id("c"), host.bundle("c", "exec sleep 1000", |spec| spec)?);
        for before in [["pause"].as_slice(), &["start", "pause"]] {
            host.create("c", &bundle)?;
            for word in before {
                host.succeed(&[word, &id])?;
            }
            host.succeed(&["kill", &id, "KILL"])?;
            host.ends("c")?;
            assert_eq!(host.status("c")?, "stopped", "{before:?}");
            let resumed = host.call(&["resume", &id])?;
            assert!(resumed.error_text().contains("container not paused"), "{resumed}");
            host.succeed(&["delete", &id])?;
        }
        Ok(())
    })
}

/// Compares the page with the published one, or publishes it.
fn shows(page: &str) -> Result<()> {
    let path = checkout().join("docs/reference/oci-command-line.md");
    if std::env::var_os("KATA_E2E_WRITE").is_some() {
        return fs::write(&path, page).context("cannot write the page");
    }
    let published = fs::read_to_string(&path).context("there is no page")?;
    assert!(published == page, "{} is not current; set KATA_E2E_WRITE=1 once", path.display());
    Ok(())
}
