//! Processes of the command line as callers hold them: by pid, by descriptor, in the foreground.

use std::fs;
use std::os::fd::AsRawFd;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use kata_e2e::{
    Client, CommandLine, Deadline, IDLE, Input, READS_COMMANDS, Runtime, Spec, only_a_vm,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(pid.cast_signed()).context("a pid is positive")?;
    kill_process(pid, signal).context("cannot signal")
}

fn is_in_guest(host: &CommandLine, words: &str) -> Result<bool> {
    Ok(host.succeed(&["exec", &host.id("c"), "ps", "-o", "args"])?.contains(words))
}

/// For who looks there for a process's limits and interfaces.
fn is_where_the_container_is(host: &CommandLine, pid: u32) -> Result<()> {
    let first = host.pid("c")?;
    let cgroups = |pid: u32| fs::read_to_string(format!("/proc/{pid}/cgroup"));
    assert_eq!(cgroups(pid)?, cgroups(first)?);
    let network = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/net"));
    assert_eq!(network(pid)?, network(first)?);
    Ok(())
}

/// As Podman stops what it has added to a container.
#[test]
fn process_that_was_added_is_ended_by_its_pid() -> Result<()> {
    CommandLine::scenario(Runtime::under_test(), |host| {
        host.run_idle("c")?;
        for how in [Signal::TERM, Signal::KILL] {
            let pid = host.exec_detached("c", &["sleep", "2000"])?;
            is_where_the_container_is(host, pid)?;
            assert!(is_in_guest(host, "sleep 2000")?);
            signal(pid, how)?;
            CommandLine::ends_pid(pid)?;
            CommandLine::until(|| Ok(!is_in_guest(host, "sleep 2000")?))?;
            assert_eq!(host.status("c")?, "running");
        }
        host.succeed(&["delete", "--force", &host.id("c")]).map(drop)
    })
}

#[test]
fn signal_to_an_exec_in_the_foreground_is_its_processs() -> Result<()> {
    CommandLine::scenario(Runtime::under_test(), |host| {
        host.run_idle("c")?;
        let script = "trap 'exit 5' TERM; echo up; while :; do sleep 0.1; done";
        let exec = host.attach(&["exec", &host.id("c"), "sh", "-c", script], Input::Nothing)?;
        exec.expect("up")?;
        exec.signal(Signal::TERM)?;
        assert_eq!(exec.wait()?.code, 5);
        assert_eq!(host.status("c")?, "running");
        host.succeed(&["delete", "--force", &host.id("c")]).map(drop)
    })
}

/// As a person types into it: the size comes through, control-C is a signal to the process and to
/// nobody else, and the caller's terminal is in the end what it was.
fn serves_its_callers_terminal(mut client: Client) -> Result<()> {
    client.expect("ready")?;
    ensure!(client.has_raw_terminal()?, "the caller's terminal heeds what is typed");
    client.resize(41, 123)?;
    client.write("until stty size | grep -x '41 123'; do :; done\n")?;
    client.expect("41 123")?;
    client
        .write("trap 'echo caught; exit 5' INT; echo wai${x}ting; while :; do sleep 0.1; done\n")?;
    client.expect("waiting")?;
    client.write([3])?;
    client.expect("caught")?;
    ensure!(client.ends(Deadline::for_command())?, "it does not end");
    ensure!(!client.has_raw_terminal()?, "the caller's terminal stays raw");
    assert_eq!(client.wait()?.code, 5);
    Ok(())
}

#[test]
fn terminal_of_a_command_in_the_foreground_is_its_callers() -> Result<()> {
    CommandLine::scenario(Runtime::under_test(), |host| {
        let in_terminal = |spec: Spec| spec.set("/process/terminal", json!(true));
        let bundle = host.bundle("c", READS_COMMANDS, in_terminal)?.display().to_string();
        let run = host.attach(&["run", "--bundle", &bundle, &host.id("c")], Input::Terminal)?;
        run.expect("ready")?;
        let exec = ["exec", "--tty", &host.id("c"), "sh", "-c", READS_COMMANDS];
        serves_its_callers_terminal(host.attach(&exec, Input::Terminal)?)?;
        assert_eq!(host.status("c")?, "running");
        serves_its_callers_terminal(run)?;
        assert_eq!(host.status("c")?, "gone");
        Ok(())
    })
}

/// As with `--pid host`.
#[test]
fn container_without_process_ids_of_its_own_sees_the_guests() -> Result<()> {
    if !only_a_vm("processes of a guest") {
        return Ok(());
    }
    CommandLine::scenario(Runtime::Kata, |host| {
        let others = ["ipc", "uts", "mount", "network"].map(|kind| json!({ "type": kind }));
        let bundle = host.bundle("c", IDLE, |spec| spec.set("/linux/namespaces", json!(others)))?;
        host.create("c", &bundle)?;
        host.succeed(&["start", &host.id("c")])?;
        let of_kernel = host.succeed(&["exec", &host.id("c"), "cat", "/proc/2/comm"])?;
        assert_eq!(of_kernel, "kthreadd\n");
        host.succeed(&["delete", "--force", &host.id("c")]).map(drop)
    })
}

/// CRI-O and go-runc give them like this.
#[test]
fn limits_are_read_from_standard_input() -> Result<()> {
    CommandLine::scenario(Runtime::under_test(), |host| {
        host.run_idle("c")?;
        let limits = json!({ "pids": { "limit": 77 } }).to_string();
        let update = ["update", "--resources", "-", &host.id("c")];
        host.attach(&update, Input::Bytes(limits.into_bytes()))?.wait()?.success()?;
        let told: Value =
            serde_json::from_str(&host.succeed(&["events", "--stats", &host.id("c")])?)?;
        assert_eq!(told["data"]["pids"]["limit"], 77, "{told}");
        host.succeed(&["delete", "--force", &host.id("c")]).map(drop)
    })
}

/// runc has this since 1.2.
#[test]
fn descriptor_of_the_process_is_sent() -> Result<()> {
    if !only_a_vm("--pidfd-socket") {
        return Ok(());
    }
    CommandLine::scenario(Runtime::Kata, |host| {
        let bundle = host.bundle("c", IDLE, |spec| spec)?;
        let pidfd = host.create_with_pidfd("c", &bundle)?;
        let facts = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
        let pid = facts.lines().find_map(|line| line.strip_prefix("Pid:"));
        assert_eq!(pid.context("it is no pidfd")?.trim(), host.pid("c")?.to_string());
        host.succeed(&["delete", "--force", &host.id("c")]).map(drop)
    })
}

/// Told while the container lives, each time; whoever comes late is told once of what was before.
#[test]
fn events_tell_of_a_want_of_memory_when_it_comes() -> Result<()> {
    if !only_a_vm("events of a guest") {
        return Ok(());
    }
    CommandLine::scenario(Runtime::Kata, |host| {
        let bundle = host.bundle("c", IDLE, |spec| {
            spec.set("/linux/resources/memory", json!({ "limit": 32 << 20 }))
        })?;
        host.create("c", &bundle)?;
        let id = host.id("c");
        host.succeed(&["start", &id])?;
        let watch = || host.attach(&["events", "--interval", "1h", &id], Input::Nothing);
        let eats = || -> Result<()> {
            let eater = host.call(&["exec", &id, "tail", "/dev/zero"])?;
            ensure!(eater.code == 137, "{eater}");
            Ok(())
        };
        let told = "\"oom\"";
        let first = watch()?;
        first.expect("\"stats\"")?;
        eats()?;
        first.expect(told)?;
        let late = watch()?;
        late.expect(told)?;
        assert_eq!(host.status("c")?, "running");
        host.succeed(&["delete", "--force", &id])?;
        for events in [first, late] {
            let said = events.wait()?.success()?;
            assert_eq!(said.matches(told).count(), 1, "{said}");
        }
        Ok(())
    })
}

/// The records end with the container, and say where memory was wanting.
#[test]
fn events_end_with_the_container_and_tell_of_a_want_of_memory() -> Result<()> {
    if !only_a_vm("events of a guest") {
        return Ok(());
    }
    CommandLine::scenario(Runtime::Kata, |host| {
        let eats = "read -r line; exec tail /dev/zero";
        let bundle = host.bundle("c", eats, |spec| {
            spec.set("/linux/resources/memory", json!({ "limit": 32 << 20 }))
        })?;
        let mut create = host.command(&["create", "--bundle"]);
        create.arg(&bundle).arg("--pid-file").arg(host.file("c.pid")).arg(host.id("c"));
        create.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut create = create.spawn()?;
        ensure!(create.wait()?.success(), "create has failed");
        host.succeed(&["start", &host.id("c")])?;
        let args = ["events", "--interval", "100ms", &host.id("c")];
        let events = host.attach(&args, Input::Nothing)?;
        events.expect("\"stats\"")?;
        // The end of its input lets it go on.
        drop(create.stdin.take());
        let told = events.wait()?.success()?;
        let records: Vec<Value> =
            told.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let wants: Vec<_> = records.iter().filter(|record| record["type"] != "stats").collect();
        assert_eq!(wants, [&json!({ "type": "oom", "id": host.id("c") })]);
        let first = records.first().context("nothing was told")?;
        assert!(first["data"]["blkio"]["ioServicedRecursive"].is_array(), "{first}");
        assert!(first["data"]["hugetlb"].is_object(), "{first}");
        host.ends("c")?;
        assert!(host.call(&args)?.failure()?.contains("is not running"));
        host.succeed(&["delete", &host.id("c")]).map(drop)
    })
}
