//! Every release of containerd that people use.

use anyhow::{Context, Result, ensure};
use kata_e2e::{
    Containerd, Daemon, Input, Installation, PackageRoot, Runtime, Scenario, Suite, only_a_vm,
};

fn serves(daemon: Daemon, version: &str) -> Result<()> {
    let told = daemon.version()?;
    ensure!(told.contains(version), "expected containerd {version}: {told}");
    Scenario::new().daemon(daemon).run(whole_life)
}

/// The installed example for Kubernetes is one that this release takes for what it is meant.
fn takes_example(daemon: &Daemon, name: &str, plugin: &str) -> Result<()> {
    let told = daemon.understands(&Installation::under_test().example(name))?;
    // Releases differ in their quotation marks.
    let told = told.replace('\'', "\"");
    let runtime = format!("[plugins.\"{plugin}\".containerd.runtimes.kata]");
    let (_, settings) = told.split_once(&runtime).with_context(|| told.clone())?;
    let settings = settings.split("\n\n").next().unwrap_or_default();
    ensure!(
        settings.contains(Runtime::Kata.name()) && settings.contains("shim-kata"),
        "{settings}"
    );
    Ok(())
}

/// One of everything that the engine asks of a shim.
fn whole_life(containerd: &Containerd) -> Result<()> {
    let output = containerd.shell("echo out; echo err >&2; exit 42").output()?;
    assert_eq!((output.text(), output.code), ("out\n".to_owned(), 42), "{output}");

    let events = containerd.events()?;
    let container = containerd.run(["sleep", "1000"]).start()?;
    let exec = container.exec(["cat"]).stdin(Input::Bytes(b"through exec".to_vec()));
    assert_eq!(exec.output()?.success()?, "through exec");
    container.pause()?;
    container.resume()?;
    ensure!(container.metrics()?["memory"].is_object(), "no memory in the metrics");
    containerd.kill_and_restart()?;
    assert_eq!(container.status()?.as_deref(), Some("RUNNING"));
    assert_eq!(container.exec(["echo", "alive"]).output()?.success()?, "alive\n");
    drop(events);
    let events = containerd.events()?;
    container.kill("KILL")?;
    events.expect_exit(container.id())?;
    container.delete()?;

    let error = containerd.run(["no-such-command"]).output()?.failure()?;
    ensure!(error.contains("executable file not found in $PATH"), "{error}");
    Ok(())
}

/// Debian 12 has 1.6, which no other test fetches, and Debian 13 has 1.7.
#[test]
fn containerd_1_6_or_1_7_of_this_machine_is_served() -> Result<()> {
    let daemon = Daemon::of_this_machine();
    let told = daemon.version()?;
    let mut words = told.split_whitespace().map(|word| word.trim_start_matches('v'));
    let Some(version) = words.find(|word| word.starts_with("1.6.") || word.starts_with("1.7."))
    else {
        eprintln!("left out, for this machine has neither 1.6 nor 1.7: {told}");
        return Ok(());
    };
    takes_example(&daemon, "containerd-1.toml", "io.containerd.grpc.v1.cri")?;
    serves(daemon, version)
}

#[test]
fn containerd_1_7_is_served() -> Result<()> {
    serves(PackageRoot::fetch(Suite::Trixie, &["containerd", "runc"])?.daemon(), " 1.7.")
}

#[test]
fn containerd_2_is_served() -> Result<()> {
    let daemon = PackageRoot::fetch(Suite::Sid, &["containerd", "runc"])?.daemon();
    takes_example(&daemon, "containerd-2.toml", "io.containerd.cri.v1.runtime")?;
    serves(daemon.clone(), " 2.")?;
    if !only_a_vm("a shim that answers -info; runc's is older than the question") {
        return Ok(());
    }
    Scenario::new().daemon(daemon).run(runtime_is_inspected)
}

/// Releases since 2.0 ask the shim what it is, without a container.
fn runtime_is_inspected(containerd: &Containerd) -> Result<()> {
    let name = Runtime::under_test().name();
    let told = containerd.ctr(["plugins", "inspect-runtime", "--runtime", name])?.success()?;
    ensure!(told.contains("Version") || told.contains("version"), "{told}");
    Ok(())
}
