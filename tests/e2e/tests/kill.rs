//! `kill -9` of any part, at any time: the client has its answer in time, the engine can delete
//! everything, and nothing is left.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kata_e2e::{
    Client, Configuration, Container, Containerd, Deadline, Input, Output, Part, Scenario,
    await_part, await_path, only_a_vm, parts_of, scenario,
};
use rustix::process::Signal;

/// How soon a client must have its answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Kills the one process of `part`.
fn kill(containerd: &Containerd, part: Part) -> Result<()> {
    let found = parts_of(containerd.mark(), part)?;
    ensure!(!found.is_empty(), "there is no process of {part:?}");
    found.iter().try_for_each(|process| process.signal(Signal::KILL))
}

/// The client's answer: 137, or the reason.
fn answers(client: Client) -> Result<()> {
    let output = client.wait_until(Deadline::after(ANSWER))?;
    if output.code == 137 { Ok(()) } else { tells_reason(output) }
}

/// That somebody has waited in vain is no reason: whoever died was watched.
fn tells_reason(output: Output) -> Result<()> {
    let told = output.failure()?;
    ensure!(!told.trim().is_empty(), "neither 137 nor a reason");
    let waited = ["timed out", "deadline exceeded"].iter().find(|words| told.contains(**words));
    ensure!(waited.is_none(), "a wait and no reason: {told}");
    Ok(())
}

/// Parts that the runtime under test has.
fn exists(part: Part) -> bool {
    part == Part::Shim || only_a_vm(&format!("death of {part:?}"))
}

fn idle_container_dies_with(part: Part) -> Result<()> {
    if !exists(part) {
        return Ok(());
    }
    scenario(|containerd| {
        let (client, container) = containerd.shell("echo up; exec sleep 1000").attach_and_keep()?;
        client.expect("up")?;
        let exec = container.shell("echo exec up; exec sleep 1000").attach()?;
        exec.expect("exec up")?;
        kill(containerd, part)?;
        answers(client).context("the client of the container")?;
        answers(exec).context("the client of the exec")?;
        container.exec(["true"]).output()?.failure().context("exec in a dead sandbox")?;
        container.remove()
    })
}

fn busy_container_dies_with(part: Part) -> Result<()> {
    if !exists(part) {
        return Ok(());
    }
    scenario(|containerd| {
        let (client, container) =
            containerd.shell("cat /dev/zero | cat; exit 1").attach_and_keep()?;
        client.stdout.expect("\0", Deadline::for_command())?;
        kill(containerd, part)?;
        answers(client)?;
        container.remove()
    })
}

/// Kills `part` as soon as it is there, while the sandbox is still being made.
fn start_fails_with_death_of(part: Part) -> Result<()> {
    if !exists(part) {
        return Ok(());
    }
    scenario(|containerd| {
        let client = containerd.shell("sleep 1000").attach()?;
        let process = await_part(containerd.mark(), part, Deadline::for_command())?;
        process.signal(Signal::KILL)?;
        tells_reason(client.wait_until(Deadline::after(ANSWER))?)
    })
}

fn deletion_works_when_killed_meanwhile(part: Part) -> Result<()> {
    if !exists(part) {
        return Ok(());
    }
    scenario(|containerd| {
        let container = containerd.run(["sleep", "1000"]).start()?;
        let victims = parts_of(containerd.mark(), part)?;
        ensure!(!victims.is_empty(), "there is no process of {part:?}");
        let args = ["task", "delete", "--force", container.id()];
        let deletion = containerd.start_ctr(args, Input::Nothing)?;
        victims.iter().try_for_each(|victim| victim.signal(Signal::KILL))?;
        // Whoever was first: it has an answer, and can be repeated.
        deletion.wait_until(Deadline::after(ANSWER))?;
        container.remove()
    })
}

#[test]
fn vmm_is_killed_while_idle() -> Result<()> {
    idle_container_dies_with(Part::Vmm)
}

#[test]
fn vmm_is_killed_while_busy() -> Result<()> {
    busy_container_dies_with(Part::Vmm)
}

#[test]
fn vmm_is_killed_while_it_boots() -> Result<()> {
    start_fails_with_death_of(Part::Vmm)
}

#[test]
fn vmm_is_killed_while_it_is_deleted() -> Result<()> {
    deletion_works_when_killed_meanwhile(Part::Vmm)
}

#[test]
fn file_server_is_killed_while_idle() -> Result<()> {
    idle_container_dies_with(Part::FileServer)
}

#[test]
fn file_server_is_killed_while_busy() -> Result<()> {
    busy_container_dies_with(Part::FileServer)
}

#[test]
fn file_server_is_killed_while_the_vmm_boots() -> Result<()> {
    start_fails_with_death_of(Part::FileServer)
}

#[test]
fn file_server_is_killed_while_it_is_deleted() -> Result<()> {
    deletion_works_when_killed_meanwhile(Part::FileServer)
}

#[test]
fn shim_is_killed_while_idle() -> Result<()> {
    idle_container_dies_with(Part::Shim)
}

#[test]
fn shim_is_killed_while_busy() -> Result<()> {
    busy_container_dies_with(Part::Shim)
}

#[test]
fn shim_is_killed_while_the_vmm_boots() -> Result<()> {
    if !only_a_vm("a long start") {
        return Ok(());
    }
    scenario(|containerd| {
        let client = containerd.shell("sleep 1000").attach()?;
        await_part(containerd.mark(), Part::Vmm, Deadline::for_command())?;
        kill(containerd, Part::Shim)?;
        tells_reason(client.wait_until(Deadline::after(ANSWER))?)
    })
}

#[test]
fn shim_is_killed_while_it_is_deleted() -> Result<()> {
    deletion_works_when_killed_meanwhile(Part::Shim)
}

#[test]
fn client_is_killed_and_the_container_lives_on() -> Result<()> {
    scenario(|containerd| {
        let (client, container) =
            containerd.shell("while :; do echo noise; sleep 0.2; done").attach_and_keep()?;
        client.expect("noise")?;
        client.signal(Signal::KILL)?;
        client.wait()?;
        lives(&container)?;
        container.remove()
    })
}

#[test]
fn containerd_is_killed_and_started_again() -> Result<()> {
    scenario(|containerd| {
        let container =
            containerd.shell("trap 'exit 9' TERM; while :; do sleep 0.1; done").start()?;
        containerd.kill_and_restart()?;
        lives(&container)?;
        container.pause()?;
        container.resume()?;
        let events = containerd.events()?;
        container.kill("TERM")?;
        events.expect_exit(container.id())?;
        assert_eq!(container.wait()?, 9);
        container.remove()
    })
}

#[test]
fn containerd_is_killed_while_the_vmm_boots() -> Result<()> {
    if !only_a_vm("a long start") {
        return Ok(());
    }
    scenario(|containerd| {
        let (client, container) = containerd.run(["sleep", "1000"]).attach_and_keep()?;
        await_part(containerd.mark(), Part::Vmm, Deadline::for_command())?;
        containerd.kill()?;
        answers(client)?;
        containerd.kill_and_restart()?;
        container.remove()
    })
}

/// Neither those who are attached hang, nor is anything lost that goes past containerd.
#[test]
fn containerd_is_killed_while_output_streams() -> Result<()> {
    const COUNTS: &str = "trap 'end=yes' TERM; i=0; \
         while [ -z \"$end\" ]; do i=$((i + 1)); echo line $i; done; exit 9";
    scenario(|containerd| {
        let file = containerd.directory().join("container.log");
        let uri = format!("file://{}", file.display());
        let container = containerd.shell(COUNTS).option("--log-uri", &uri).start()?;
        let exec = container.shell("while :; do echo noise; done").attach()?;
        exec.expect("noise")?;
        containerd.kill()?;
        answers(exec).context("the client of the exec")?;
        containerd.kill_and_restart()?;
        lives(&container)?;

        let events = containerd.events()?;
        container.kill("TERM")?;
        events.expect_exit(container.id())?;
        let deleted = containerd.ctr(["task", "delete", container.id()])?;
        ensure!(deleted.error_text().contains("exit with non-zero exit code 9"), "{deleted}");
        container.remove()?;
        let log = fs::read_to_string(&file)?;
        let lines = log.lines().count();
        ensure!(lines > 0 && log.ends_with('\n'), "{lines} lines, and no whole one at the end");
        let lost = log.lines().zip(1..).find(|(line, number)| *line != format!("line {number}"));
        ensure!(lost.is_none(), "of {lines} lines, not in its place: {lost:?}");
        Ok(())
    })
}

#[test]
fn containerd_is_killed_while_a_container_is_deleted() -> Result<()> {
    scenario(|containerd| {
        let container = containerd.run(["sleep", "1000"]).start()?;
        let args = ["task", "delete", "--force", container.id()];
        let deletion = containerd.start_ctr(args, Input::Nothing)?;
        containerd.kill()?;
        deletion.wait_until(Deadline::after(ANSWER))?;
        containerd.kill_and_restart()?;
        container.remove()
    })
}

/// The moment at which the shim has done its part, and nobody is there to hear of it.
#[test]
fn containerd_is_killed_when_the_deleted_vm_has_ended() -> Result<()> {
    if !only_a_vm("the end of a VM") {
        return Ok(());
    }
    scenario(|containerd| {
        let container = containerd.run(["sleep", "1000"]).start()?;
        let vmms = parts_of(containerd.mark(), Part::Vmm)?;
        let [vmm] = vmms.as_slice() else { bail!("not exactly one VMM: {vmms:?}") };
        let args = ["task", "delete", "--force", container.id()];
        let deletion = containerd.start_ctr(args, Input::Nothing)?;
        ensure!(vmm.ends(Deadline::for_command())?, "the VMM does not end");
        containerd.kill()?;
        deletion.wait_until(Deadline::after(ANSWER))?;
        containerd.kill_and_restart()?;
        container.remove()
    })
}

/// A guest that stands still answers nothing, and must not be able to outlive a SIGKILL by that.
#[test]
fn guest_that_answers_nothing_is_killed_with_its_container() -> Result<()> {
    if !only_a_vm("a guest that stands still") {
        return Ok(());
    }
    let patience = Configuration::with("[agent.kata]\ncreate_container_timeout = 10\n")?;
    Scenario::new().configuration(&patience.file()).run(|containerd| {
        let (client, container) = containerd.shell("echo up; exec sleep 1000").attach_and_keep()?;
        client.expect("up")?;
        let vmms = parts_of(containerd.mark(), Part::Vmm)?;
        vmms.iter().try_for_each(|vmm| vmm.signal(Signal::STOP))?;
        container.kill("KILL")?;
        assert_eq!(client.wait_until(Deadline::after(ANSWER))?.code, 137);
        container.remove()
    })
}

/// A VM may live on when nobody can talk to its agent any more; its sandbox must not.
#[test]
fn sandbox_ends_when_the_connection_to_its_agent_breaks() -> Result<()> {
    if !only_a_vm("a connection to an agent") {
        return Ok(());
    }
    scenario(|containerd| {
        let (client, container) = containerd.shell("echo up; exec sleep 1000").attach_and_keep()?;
        client.expect("up")?;
        let vmms = parts_of(containerd.mark(), Part::Vmm)?;
        let [vmm] = vmms.as_slice() else { bail!("not exactly one VMM: {vmms:?}") };
        let Some(socket) = agents_socket(&vmm.command_line) else {
            eprintln!("skipped: by vsock there is no socket that a test could shut");
            return container.remove();
        };
        vmm.shut_socket(socket)?;
        answers(client)?;
        containerd
            .log()
            .expect("the connection to its guest's agent broke", Deadline::for_command())?;
        container.remove()
    })
}

/// QEMU's descriptor of the agent's serial port; `None` where there is none.
fn agents_socket(command_line: &[String]) -> Option<i32> {
    let port = command_line.iter().find(|word| word.contains("name=agent.channel.0"))?;
    let backend = port.split(',').find_map(|option| option.strip_prefix("chardev="))?;
    let id = format!("id={backend}");
    let chardev = command_line.iter().find(|word| word.split(',').any(|option| option == id))?;
    chardev.split(',').find_map(|option| option.strip_prefix("fd="))?.parse().ok()
}

fn lives(container: &Container<'_>) -> Result<()> {
    assert_eq!(container.status()?.as_deref(), Some("RUNNING"));
    assert_eq!(container.exec(["echo", "alive"]).output()?.success()?, "alive\n");
    Ok(())
}

#[test]
fn container_ends_while_there_is_no_containerd() -> Result<()> {
    scenario(|containerd| {
        let directory = tempfile::tempdir()?;
        let (go, gone) = (directory.path().join("go"), directory.path().join("gone"));
        let script = "until [ -e /m/go ]; do sleep 0.1; done; touch /m/gone; exit 4";
        let run = containerd.shell(script).bind(directory.path(), "/m", "rbind:rw");
        let container = run.start()?;
        containerd.kill()?;
        fs::write(&go, "")?;
        ensure!(await_path(&gone, Deadline::for_command())?, "the container does not end");
        containerd.kill_and_restart()?;
        assert_eq!(container.wait()?, 4);
        container.remove()
    })
}

fn everything_dies_with_containerd(part: Part) -> Result<()> {
    if !exists(part) {
        return Ok(());
    }
    scenario(|containerd| {
        let container = containerd.run(["sleep", "1000"]).start()?;
        let victims = parts_of(containerd.mark(), part)?;
        ensure!(!victims.is_empty(), "there is no process of {part:?}");
        containerd.kill()?;
        victims.iter().try_for_each(|victim| victim.signal(Signal::KILL))?;
        containerd.kill_and_restart()?;
        container.remove()
    })
}

#[test]
fn shim_and_containerd_are_killed() -> Result<()> {
    everything_dies_with_containerd(Part::Shim)
}

#[test]
fn vmm_and_containerd_are_killed() -> Result<()> {
    everything_dies_with_containerd(Part::Vmm)
}

/// A process that waits for the answer of a file server cannot die, and what waits for it is not to
/// wait for ever.
#[test]
fn container_that_cannot_die_ends_with_its_sandbox() -> Result<()> {
    if !only_a_vm("a file server") {
        return Ok(());
    }
    scenario(|containerd| {
        let shared = containerd.directory().join("shared");
        fs::create_dir(&shared)?;
        let script = "echo up; read line; echo now; touch /shared/file";
        let run = containerd.shell(script).stdin(Input::Pipe);
        let (mut client, container) = run.bind(&shared, "/shared", "rbind:rw").attach_and_keep()?;
        client.expect("up\n")?;
        let servers = parts_of(containerd.mark(), Part::FileServer)?;
        let [server] = servers.as_slice() else { bail!("not one server: {servers:?}") };
        server.signal(Signal::STOP)?;
        client.write("now\n")?;
        client.expect("now\n")?;
        let before = Instant::now();
        // One that does nothing goes the same way first: by its end the process waits.
        container.kill("CONT")?;
        container.kill("KILL")?;
        assert_eq!(client.wait_until(Deadline::after(Duration::from_secs(150)))?.code, 137);
        ensure!(before.elapsed() > Duration::from_secs(50), "it has died by itself");
        container.remove()
    })
}
