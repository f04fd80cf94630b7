//! kill -9 of each part of a sandbox of the command line, at each point of a container's life.
//!
//! ```text
//!               proxy  stand-in  VMM
//!     create      ▪       ▪       ▪     command_line.rs
//!     start       ▪       ▪       ▪  ┐
//!     exec        ▪       ▪       ▪  │
//!     pause       ▪       ▪       ▪  │
//!     resume      ▪       ▪       ▪  ├  while the command runs
//!     update      ▪       ▪       ▪  │
//!     kill        ▪       ▪       ▪  │
//!     delete      ▪       ▪       ▪  ┘
//! ```
//!
//! And of a command itself, when the guest has been asked; and of the parts of a pod's sandbox.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kata_e2e::{CommandLine, Deadline, IDLE, Input, Part, Runtime, Spec, only_a_vm};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

/// Each command, and those that come before it.
const MOMENTS: &[(&[&str], &[&str])] = &[
    (&["start", "ID"], &[]),
    (&["exec", "ID", "sleep", "1000"], &["start"]),
    (&["pause", "ID"], &["start"]),
    (&["resume", "ID"], &["start", "pause"]),
    (&["update", "--memory", "64m", "ID"], &["start"]),
    (&["kill", "ID", "TERM"], &["start"]),
    (&["delete", "--force", "ID"], &["start"]),
];

/// How long whatever belongs to a sandbox may live on without the part that was killed.
fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

fn kill(pid: u32) -> Result<()> {
    let pid = Pid::from_raw(pid.cast_signed()).context("a pid is positive")?;
    kill_process(pid, Signal::KILL).context("cannot kill")
}

fn killed_meanwhile(part: Part) -> Result<()> {
    if !only_a_vm("parts that can be killed") {
        return Ok(());
    }
    for (words, before) in MOMENTS {
        let moment = || format!("{part:?} is killed during {}", words[0]);
        CommandLine::scenario(Runtime::Kata, |host| {
            let bundle = host.bundle("c", IDLE, |spec| spec)?;
            let id = host.id("c");
            host.create("c", &bundle)?;
            for word in *before {
                host.succeed(&[word, &id])?;
            }
            let processes = host.processes()?;
            let victim = processes.iter().find(|one| one.is(part)).context("there is none")?;
            let words: Vec<&str> =
                words.iter().map(|word| if *word == "ID" { id.as_str() } else { word }).collect();
            let command = host.attach(&words, Input::Nothing)?;
            victim.signal(Signal::KILL)?;
            // Whether it was in time to succeed is chance; that it ends is not.
            command.wait_until(soon())?;
            for process in &processes {
                assert!(process.ends(soon())?, "this lives on: {}", process.describe());
            }
            let status = host.status("c")?;
            assert!(["stopped", "gone"].contains(&status.as_str()), "{status}");
            host.succeed(&["delete", "--force", &id])?;
            host.succeed(&["delete", "--force", &id])?;
            assert_eq!(host.status("c")?, "gone");
            // And the name can be used again.
            host.create("c", &bundle)?;
            host.succeed(&["delete", "--force", &id]).map(drop)
        })
        .with_context(moment)?;
    }
    Ok(())
}

#[test]
fn proxy_is_killed_while_a_command_runs() -> Result<()> {
    killed_meanwhile(Part::Proxy)
}

#[test]
fn stand_in_is_killed_while_a_command_runs() -> Result<()> {
    killed_meanwhile(Part::StandIn)
}

#[test]
fn vmm_is_killed_while_a_command_runs() -> Result<()> {
    killed_meanwhile(Part::Vmm)
}

/// Its id is taken until nothing of it is left, so that the next one loses neither its cgroup nor
/// its sandbox to who removes the one before.
#[test]
fn container_is_made_anew_while_the_one_of_its_name_is_removed() -> Result<()> {
    if !only_a_vm("a cgroup that goes before the id is free") {
        return Ok(());
    }
    CommandLine::scenario(Runtime::Kata, |host| {
        let id = host.id("c");
        let in_cgroup = |spec: Spec| spec.set("/linux/cgroupsPath", json!(format!("/{id}")));
        let bundle = host.bundle("c", IDLE, in_cgroup)?;
        host.create("c", &bundle)?;
        for _ in 0..5 {
            let removal = host.attach(&["delete", "--force", &id], Input::Nothing)?;
            CommandLine::until(|| match host.create("c", &bundle) {
                Err(error) if format!("{error:#}").contains("already exists") => Ok(false),
                made => made.map(|()| true),
            })?;
            let removed = removal.wait()?;
            ensure!(removed.code == 0, "{removed}");
            host.succeed(&["start", &id])?;
            let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", host.pid("c")?))?;
            ensure!(cgroups.lines().all(|line| line.ends_with(&format!("/{id}"))), "{cgroups}");
            assert!(host.succeed(&["exec", &id, "ps", "-o", "args"])?.contains("sleep 1000"));
        }
        host.succeed(&["delete", "--force", &id]).map(drop)
    })
}

/// Its process in the guest goes with it, and nothing else does.
#[test]
fn container_survives_the_stand_in_of_an_added_process() -> Result<()> {
    CommandLine::scenario(Runtime::under_test(), |host| {
        host.run_idle("c")?;
        let pid = host.exec_detached("c", &["sleep", "2000"])?;
        kill(pid)?;
        CommandLine::ends_pid(pid)?;
        let listed = || host.succeed(&["exec", &host.id("c"), "ps", "-o", "args"]);
        CommandLine::until(|| Ok(!listed()?.contains("sleep 2000")))?;
        assert!(listed()?.contains("sleep 1000"));
        assert_eq!(host.status("c")?, "running");
        host.succeed(&["delete", "--force", &host.id("c")]).map(drop)
    })
}

/// The VMM stands still meanwhile, so that the guest cannot have started it before.
#[test]
fn stand_in_is_killed_while_its_process_is_being_started() -> Result<()> {
    if !only_a_vm("a VMM that stands still") {
        return Ok(());
    }
    CommandLine::scenario(Runtime::Kata, |host| {
        let bundle = host.bundle("c", IDLE, |spec| spec)?;
        let id = host.id("c");
        host.create("c", &bundle)?;
        let processes = host.processes()?;
        let vmm = host.await_part(Part::Vmm)?;
        vmm.signal(Signal::STOP)?;
        let start = host.attach(&["start", &id], Input::Nothing)?;
        host.logs("c", "msg=\"start\"")?;
        host.await_part(Part::StandIn)?.signal(Signal::KILL)?;
        vmm.signal(Signal::CONT)?;
        start.wait_until(soon())?;
        for process in &processes {
            assert!(process.ends(soon())?, "this lives on: {}", process.describe());
        }
        assert_eq!(host.status("c")?, "stopped");
        host.succeed(&["delete", &id]).map(drop)
    })
}

/// Whether the guest has done by then what it was asked for is chance: the next command asks again.
#[test]
fn what_a_killed_command_has_left_half_done_can_be_asked_for_again() -> Result<()> {
    if !only_a_vm("a VMM that stands still") {
        return Ok(());
    }
    CommandLine::scenario(Runtime::Kata, |host| {
        host.run_idle("c")?;
        let id = host.id("c");
        let vmm = host.await_part(Part::Vmm)?;
        let killed = |word: &str, times: usize| {
            vmm.signal(Signal::STOP)?;
            let command = host.attach(&[word, &id], Input::Nothing)?;
            host.logs_times("c", &format!("msg=\"{word}\""), times)?;
            command.signal(Signal::KILL)?;
            command.wait_until(soon())?;
            vmm.signal(Signal::CONT)
        };
        killed("pause", 1)?;
        assert_eq!(host.status("c")?, "paused");
        host.succeed(&["resume", &id])?;
        assert_eq!(host.succeed(&["exec", &id, "echo", "runs"])?.trim(), "runs");
        host.succeed(&["pause", &id])?;
        killed("resume", 2)?;
        assert_eq!(host.status("c")?, "paused");
        host.succeed(&["pause", &id])?;
        assert_eq!(host.status("c")?, "paused");
        host.succeed(&["resume", &id])?;
        assert_eq!(host.succeed(&["exec", &id, "echo", "runs"])?.trim(), "runs");
        host.succeed(&["delete", "--force", &id]).map(drop)
    })
}

/// Nobody would stand for it, so it is taken back, and it is told.
#[test]
fn stand_in_is_killed_while_its_added_process_is_being_started() -> Result<()> {
    if !only_a_vm("a VMM that stands still") {
        return Ok(());
    }
    CommandLine::scenario(Runtime::Kata, |host| {
        host.run_idle("c")?;
        let id = host.id("c");
        let vmm = host.await_part(Part::Vmm)?;
        let before: Vec<u32> = host.processes()?.iter().map(|process| process.pid).collect();
        vmm.signal(Signal::STOP)?;
        let exec = host.attach(&["exec", "--detach", &id, "sleep", "2000"], Input::Nothing)?;
        host.logs("c", "msg=\"exec\"")?;
        let stand_in = host
            .processes()?
            .into_iter()
            .find(|one| one.is(Part::StandIn) && !before.contains(&one.pid));
        stand_in.context("nothing stands for the added process")?.signal(Signal::KILL)?;
        vmm.signal(Signal::CONT)?;
        let output = exec.wait_until(soon())?;
        assert_eq!(output.code, 255);
        assert!(output.error_text().contains("kata-shim"), "{}", output.error_text());
        assert!(!host.succeed(&["exec", &id, "ps", "-o", "args"])?.contains("sleep 2000"));
        host.succeed(&["delete", "--force", &id]).map(drop)
    })
}

/// A pod of three containers: `pod`, which is the first, `one` and `two`.
fn run_pod_of_three(host: &CommandLine) -> Result<()> {
    host.run_pod()?;
    ["one", "two"].into_iter().try_for_each(|name| host.run_member(name, |spec| spec))
}

/// Also of the first, whose id is the sandbox's.
#[test]
fn pod_survives_the_stand_in_of_a_member() -> Result<()> {
    if !only_a_vm("a pod that is one VM") {
        return Ok(());
    }
    for victim in ["one", "pod"] {
        CommandLine::scenario(Runtime::Kata, |host| {
            run_pod_of_three(host)?;
            kill(host.pid(victim)?)?;
            host.ends(victim)?;
            assert_eq!(host.status(victim)?, "stopped");
            host.succeed(&["delete", &host.id(victim)])?;
            for name in ["pod", "one", "two"].into_iter().filter(|name| *name != victim) {
                assert_eq!(host.status(name)?, "running", "{name}");
                assert_eq!(host.succeed(&["exec", &host.id(name), "echo", "here"])?, "here\n");
            }
            if victim == "one" {
                host.run_member("one", |spec| spec)?;
            }
            for name in ["one", "two", "pod"] {
                host.succeed(&["delete", "--force", &host.id(name)])?;
            }
            Ok(())
        })
        .with_context(|| format!("the stand-in of {victim} is killed"))?;
    }
    Ok(())
}

#[test]
fn every_member_of_a_pod_ends_with_its_sandbox() -> Result<()> {
    if !only_a_vm("a pod that is one VM") {
        return Ok(());
    }
    for part in [Part::Proxy, Part::Vmm] {
        CommandLine::scenario(Runtime::Kata, |host| {
            run_pod_of_three(host)?;
            let processes = host.processes()?;
            let victim = processes.iter().find(|one| one.is(part)).context("there is none")?;
            victim.signal(Signal::KILL)?;
            for process in &processes {
                assert!(process.ends(soon())?, "this lives on: {}", process.describe());
            }
            for name in ["one", "two", "pod"] {
                assert_eq!(host.status(name)?, "stopped", "{name}");
                host.succeed(&["delete", &host.id(name)])?;
            }
            // And the names can be used again.
            host.run_pod()?;
            host.run_member("one", |spec| spec)?;
            ["one", "pod"]
                .iter()
                .try_for_each(|name| host.succeed(&["delete", "--force", &host.id(name)]).map(drop))
        })
        .with_context(|| format!("{part:?} is killed"))?;
    }
    Ok(())
}

/// Podman stops a container by its signal, and if that finds nobody, by a look at the state.
#[test]
fn who_is_told_that_it_has_ended_finds_it_stopped() -> Result<()> {
    CommandLine::scenario(Runtime::under_test(), |host| {
        for name in ["a", "b", "c"] {
            let bundle = host.bundle(name, "read -t 1 < /dev/null; exit 3", |spec| spec)?;
            host.create(name, &bundle)?;
            host.succeed(&["start", &host.id(name)])?;
            let told = || host.call(&["kill", &host.id(name), "CONT"]);
            CommandLine::until(|| Ok(told()?.error_text().contains("container not running")))?;
            assert_eq!(host.status(name)?, "stopped");
            host.succeed(&["delete", &host.id(name)])?;
        }
        Ok(())
    })
}
