//! A container's life, from `ctr run` to `ctr container delete`.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kata_e2e::{
    CommandLine, Container, Containerd, Input, Part, READS_COMMANDS, Runtime, only_a_vm, parts_of,
    scenario,
};

#[test]
fn output_and_exit_code_reach_the_client() -> Result<()> {
    scenario(|containerd| {
        let output = containerd.shell("echo out; echo err >&2; exit 42").output()?;
        assert_eq!((output.text(), output.error_text()), ("out\n".into(), "err\n".into()));
        assert_eq!(output.code, 42);
        Ok(())
    })
}

#[test]
fn kernel_is_not_the_hosts() -> Result<()> {
    if !only_a_vm("a kernel of its own") {
        return Ok(());
    }
    scenario(|containerd| {
        let host = fs::read_to_string("/proc/version")?;
        let guest = containerd.run(["cat", "/proc/version"]).output()?.success()?;
        assert!(guest.starts_with("Linux version "), "{guest}");
        assert_ne!(guest, host);
        Ok(())
    })
}

#[test]
fn detached_container_lives_until_it_is_killed() -> Result<()> {
    scenario(|containerd| {
        let events = containerd.events()?;
        let container = containerd.run(["sleep", "1000"]).start()?;
        assert_eq!(container.status()?.as_deref(), Some("RUNNING"));
        let pid = container.pid()?;
        assert!(fs::exists(format!("/proc/{pid}"))?, "{pid} is no process of the host");
        assert!(!container.processes()?.is_empty());
        metrics_have_all_parts(&container)?;
        if only_a_vm("parts of a sandbox on the host") {
            parts_are_in_the_engines_cgroup(containerd, &container)?;
        }

        assert_eq!(container.shell("exit 7").output()?.code, 7);
        assert_eq!(container.exec(["id", "-u"]).user("1000").output()?.success()?, "1000\n");
        assert_eq!(container.exec(["pwd"]).cwd("/srv").output()?.success()?, "/srv\n");
        exec_is_killed_alone(&container)?;
        duplicate_exec_is_refused(&container)?;
        if only_a_vm("a checkpoint that nobody can make") {
            let checkpoint = containerd.ctr(["task", "checkpoint", container.id()])?;
            let error = checkpoint.failure()?;
            ensure!(error.contains("checkpoint"), "{error}");
        }

        container.kill("KILL")?;
        events.expect_exit(container.id())?;
        assert_eq!(container.status()?.as_deref(), Some("STOPPED"));
        container.kill("KILL").expect_err("there is nobody left to kill");
        container.delete()
    })
}

/// An engine decodes one of two messages, by the version of the host's cgroups, and looks into
/// these parts without asking.
fn metrics_have_all_parts(container: &Container<'_>) -> Result<()> {
    let metrics = container.metrics()?;
    for part in ["cpu", "memory", "pids"] {
        ensure!(metrics[part].is_object(), "no {part} in {metrics}");
    }
    let cpu = &metrics["cpu"];
    let used = cpu["usage"]["total"].as_u64().or(cpu["usage_usec"].as_u64());
    ensure!(used.is_some_and(|used| used > 0), "no CPU time in {metrics}");
    let memory = &metrics["memory"]["usage"];
    let used = memory["usage"].as_u64().or(memory.as_u64());
    ensure!(used.is_some_and(|used| used > 0), "no memory in {metrics}");
    ensure!(metrics["pids"]["current"].as_u64() >= Some(1), "no processes in {metrics}");
    Ok(())
}

/// Who limits or counts the engine's cgroup, has everything that a container costs the host.
fn parts_are_in_the_engines_cgroup(
    containerd: &Containerd,
    container: &Container<'_>,
) -> Result<()> {
    let engines = format!("/{}/{}", containerd.namespace(), container.id());
    for part in [Part::Shim, Part::Vmm, Part::FileServer] {
        let found = parts_of(containerd.mark(), part)?;
        // Not every hypervisor needs a file server beside it.
        ensure!(part == Part::FileServer || !found.is_empty(), "no process of {part:?}");
        for process in found {
            let places = process.cgroups()?;
            ensure!(!places.is_empty(), "in no cgroup: {}", process.describe());
            for place in places {
                let inside = Path::new(&place).starts_with(&engines);
                ensure!(inside, "in {place} and not in {engines}: {}", process.describe());
            }
        }
    }
    Ok(())
}

fn exec_is_killed_alone(container: &Container<'_>) -> Result<()> {
    let exec = container.shell("echo up; exec sleep 1000");
    let id = exec.id().to_owned();
    let client = exec.attach()?;
    client.expect("up")?;
    container.kill_exec(&id, "TERM")?;
    assert_eq!(client.wait()?.code, 143);
    assert_eq!(container.status()?.as_deref(), Some("RUNNING"));
    Ok(())
}

fn duplicate_exec_is_refused(container: &Container<'_>) -> Result<()> {
    let exec = container.shell("echo up; read x");
    let again = exec.clone();
    let client = exec.stdin(Input::Pipe).attach()?;
    client.expect("up")?;
    let error = again.output()?.failure()?;
    ensure!(error.contains("already exists"), "{error}");
    assert_eq!(client.wait()?.code, 1, "the end of input ends read with 1");
    Ok(())
}

#[test]
fn paused_container_stands_still() -> Result<()> {
    scenario(|containerd| {
        let (client, container) =
            containerd.shell("while :; do echo tick; sleep 0.1; done").attach_and_keep()?;
        client.expect("tick")?;
        container.pause()?;
        assert_eq!(container.status()?.as_deref(), Some("PAUSED"));
        // What was on its way comes first.
        let _ = client.stdout.stays_quiet_for(Duration::from_millis(300));
        client.stdout.stays_quiet_for(Duration::from_millis(800))?;
        container.exec(["true"]).output()?.failure().context("exec in a paused container")?;

        container.resume()?;
        let ticks = client.stdout.times("tick");
        client.stdout.expect_times("tick", ticks + 3, kata_e2e::Deadline::for_command())?;
        container.kill("KILL")?;
        assert_eq!(client.wait()?.code, 137);
        container.remove()
    })
}

#[test]
fn terminal_shows_input_and_size() -> Result<()> {
    scenario(|containerd| {
        let mut client = containerd.shell(READS_COMMANDS).tty().attach()?;
        client.expect("ready")?;
        resize(&mut client, 41, 123)?;
        // Between two commands a shell heeds a signal whenever it has come. One that is just about
        // to wait for input may not, until there is some.
        client.write(
            "tty; trap 'echo caught; exit 5' INT; echo wai${x}ting; while :; do sleep 0.1; done\n",
        )?;
        client.expect("waiting")?;
        // Control-C is a signal only if there is a terminal on the other side.
        client.write([3])?;
        client.expect("caught")?;
        let output = client.wait()?;
        assert_eq!(output.code, 5);
        ensure!(output.text().contains("/dev/pts/0") || output.text().contains("/dev/console"));
        Ok(())
    })
}

/// Resizes the terminal. `ctr` listens for that at some time after the start, and the size takes
/// its way past the input: so it is told, and the guest is asked, until the guest knows.
fn resize(client: &mut kata_e2e::Client, rows: u16, columns: u16) -> Result<()> {
    let size = format!("{rows} {columns}");
    for round in 1..=100 {
        client.resize(rows, columns)?;
        client.write(format!("stty size; echo ro${{x}}und {round}.\n"))?;
        client.expect(&format!("round {round}."))?;
        if client.stdout.text().contains(&size) {
            return Ok(());
        }
    }
    anyhow::bail!("the terminal has not become {size}: {}", client.stdout.text())
}

#[test]
fn terminal_of_exec_works_and_stays_alive() -> Result<()> {
    scenario(|containerd| {
        let container = containerd.run(["sleep", "1000"]).start()?;
        let mut client = container.shell(READS_COMMANDS).tty().attach()?;
        client.expect("ready")?;
        resize(&mut client, 20, 70)?;
        // Nothing goes over the wire for longer than any timeout that a stream might wrongly have.
        client.write("sleep 12; echo still he${x}re\n")?;
        client.expect("still here")?;
        client.write("exit 3\n")?;
        assert_eq!(client.wait()?.code, 3);
        container.remove()
    })
}

#[test]
fn container_is_started_again_after_its_end() -> Result<()> {
    scenario(|containerd| {
        let (client, container) = containerd.shell("echo once; exit 3").attach_and_keep()?;
        assert_eq!(client.wait()?.code, 3);
        let fifo = containerd.directory().join("fifo");
        let fifo = fifo.to_string_lossy().into_owned();
        for _ in 0..2 {
            let again = containerd.ctr(["task", "start", "--fifo-dir", &fifo, container.id()])?;
            assert_eq!((again.text().as_str(), again.code), ("once\n", 3), "{again}");
        }
        container.remove()
    })
}

#[test]
fn native_snapshotter_serves_as_well() -> Result<()> {
    scenario(|containerd| {
        // How many blocks they take is the file system's.
        let script = "echo changed > /etc/hostname && cat /etc/hostname && ls -ln /srv | sed 1d";
        let run = || containerd.shell(script).snapshotter("native");
        let output = run().output()?;
        assert_eq!(output, run().under(Runtime::Runc).output()?);
        assert_eq!(output.code, 0, "{output}");
        Ok(())
    })
}

#[test]
fn logs_go_where_the_engine_says() -> Result<()> {
    scenario(|containerd| {
        // `ctr` attaches to fifos only, so the end is learned from the events.
        let events = containerd.events()?;
        let file = containerd.directory().join("container.log");
        let uri = format!("file://{}", file.display());
        let container = containerd
            .shell("echo to the file; echo errors too >&2")
            .option("--log-uri", &uri)
            .start()?;
        events.expect_exit(container.id())?;
        container.remove()?;
        let log = fs::read_to_string(&file)?;
        ensure!(log.contains("to the file\n") && log.contains("errors too\n"), "{log}");

        let logger = containerd.directory().join("logger.sh");
        let copy = containerd.directory().join("logger.out");
        write_logger(&logger)?;
        let uri = format!("binary://{}?to={}", logger.display(), copy.display());
        let container = containerd.shell("echo to the logger").option("--log-uri", &uri).start()?;
        let id = container.id().to_owned();
        events.expect_exit(&id)?;
        container.remove()?;
        let log = fs::read_to_string(&copy)?;
        assert_eq!(log, format!("{id} {}\nto the logger\n", containerd.namespace()));
        Ok(())
    })
}

/// A logging program as containerd defines it: output on descriptors 3 and 4, and 5 to be closed
/// when it is ready. Told to end by SIGTERM, it reads to the end first.
fn write_logger(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let script = "#!/bin/sh\n[ \"$1\" = to ] || exit 1\n\
                  trap '' TERM\necho $CONTAINER_ID $CONTAINER_NAMESPACE > $2\nexec 5>&-\nexec cat <&3 >> $2\n";
    fs::write(path, script)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

#[test]
fn events_come_in_order() -> Result<()> {
    scenario(|containerd| {
        let events = containerd.events()?;
        let container = containerd.run(["sleep", "1000"]).start()?;
        let id = container.id().to_owned();
        container.exec(["true"]).output()?.success()?;
        container.pause()?;
        container.resume()?;
        container.kill("KILL")?;
        assert_eq!(container.wait()?, 137);
        container.remove()?;
        events.expect_delete(&id)?;
        let mut topics = events.topics(&id);
        // The deletion of an exec is told or not, as the shim likes.
        topics.retain(|topic| topic != "/tasks/delete");
        let expected = [
            "/tasks/create",
            "/tasks/start",
            "/tasks/exec-added",
            "/tasks/exec-started",
            "/tasks/exit",
            "/tasks/paused",
            "/tasks/resumed",
            "/tasks/exit",
        ];
        assert_eq!(topics, expected);
        Ok(())
    })
}

/// CRI-O looks for it, which is not here: these are its annotations.
#[test]
fn memory_that_was_wanting_is_told_to_cri_o_by_a_file() -> Result<()> {
    if !only_a_vm("a file that the shim writes") {
        return Ok(());
    }
    scenario(|containerd| {
        let greedy = |kind: &str| -> Result<bool> {
            let run = containerd.shell("exec tail /dev/zero").option("--memory-limit", "67108864");
            let run = run.option("--annotation", &format!("{kind}=container"));
            let container = run.start()?;
            CommandLine::until(|| Ok(container.status()?.as_deref() == Some("STOPPED")))?;
            let state = containerd.directory().join("state/io.containerd.runtime.v2.task");
            let bundle = state.join(containerd.namespace()).join(container.id());
            ensure!(bundle.join("config.json").exists(), "no bundle at {}", bundle.display());
            let told = bundle.join("oom").exists();
            container.delete()?;
            Ok(told)
        };
        ensure!(greedy("io.kubernetes.cri-o.ContainerType")?, "there is no file");
        ensure!(!greedy("io.kubernetes.cri.container-type")?, "nobody looks for the file");
        Ok(())
    })
}
