//! How people look into a guest: its debug console (`kata-runtime exec SANDBOX`), its console and
//! its agent's log (`kata-runtime logs`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, ensure};
use kata_e2e::{
    Client, CommandLine, Containerd, Deadline, Input, Installation, Output, Part, Process, Runtime,
    Scenario, only_a_vm, parts_of, scenario,
};
use kata_initrd::{Archive, Entry};
use rustix::process::Signal;
use tempfile::TempDir;

const SLEEP: [&str; 2] = ["sleep", "1000"];

/// The key that leaves the console: control and `]`.
const LEAVE: &[u8] = b"\x1d";

fn kata_runtime(arguments: &[&str], input: Input) -> Result<Client> {
    let mut command = Command::new(Installation::under_test().bin().join("kata-runtime"));
    command.args(arguments);
    Client::spawn(command, input)
}

fn call(arguments: &[&str]) -> Result<Output> {
    kata_runtime(arguments, Input::Nothing)?.wait()
}

/// A configuration that switches the debug console on, and a guest that has a shell.
fn with_debug_console() -> Result<(TempDir, PathBuf)> {
    let directory = tempfile::tempdir()?;
    let initrd = directory.path().join("initrd");
    let mut bytes = fs::read(Installation::under_test().initrd())?;
    // Of several archives the kernel unpacks one after the other.
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend(shell()?);
    fs::write(&initrd, bytes)?;
    let configuration = configuration(
        directory.path(),
        &format!("[hypervisor.qemu]\ninitrd = \"{}\"\n", initrd.display()),
    )?;
    Ok((directory, configuration))
}

fn configuration(directory: &Path, hypervisor: &str) -> Result<PathBuf> {
    let file = directory.join("configuration.toml");
    fs::write(&file, format!("{hypervisor}[agent.kata]\ndebug_console_enabled = true\n"))?;
    Ok(file)
}

fn shell() -> Result<Vec<u8>> {
    let places = ["/usr/bin/busybox", "/bin/busybox", "/usr/sbin/busybox"];
    let busybox = places.iter().find(|path| Path::new(path).exists());
    let busybox = fs::read(busybox.context("there is no busybox; install busybox-static")?)?;
    let mut archive = Archive::default();
    archive.add("bin", 0o755, Entry::Directory);
    archive.add("bin/busybox", 0o755, Entry::File(&busybox));
    for applet in ["sh", "stty", "cat", "sleep", "["] {
        archive.add(&format!("bin/{applet}"), 0o777, Entry::Symlink("busybox"));
    }
    Ok(archive.finish())
}

/// Everything that a person does in the debug console of sandbox `id`. The words are put before its
/// arguments.
fn console_is_a_shell_of_the_guest(words: &[&str], id: &str) -> Result<()> {
    let arguments = [words, &["exec", id]].concat();
    let mut client = kata_runtime(&arguments, Input::Terminal)?;
    client.expect("control and ] leave it")?;
    client.write("echo size $(stty size), first $(cat /proc/1/comm)\n")?;
    client.expect("size 24 80, first init")?;
    // The new size takes a way of its own.
    client.resize(34, 98)?;
    client.write("while [ \"$(stty size)\" != '34 98' ]; do :; done; echo now $(stty size)\n")?;
    client.expect("now 34 98")?;
    ensure!(client.has_raw_terminal()?, "the terminal is not raw");
    client.write("exit\n")?;
    ensure!(client.ends(Deadline::for_command())?, "the shell has ended, and the client has not");
    ensure!(!client.has_raw_terminal()?, "the terminal is left raw");
    ensure!(client.wait()?.code == 0);

    let mut client = kata_runtime(&arguments, Input::Terminal)?;
    client.expect("leave it")?;
    client.write("sleep 1000\n")?;
    client.write(LEAVE)?;
    ensure!(client.wait()?.code == 0, "the key does not leave a shell that is busy");

    let client = kata_runtime(&arguments, Input::Terminal)?;
    client.expect("leave it")?;
    client.signal(Signal::TERM)?;
    ensure!(client.ends(Deadline::for_command())?, "a signal does not end it");
    ensure!(!client.has_raw_terminal()?, "the terminal is left raw by a signal");
    client.wait()?;

    let script = Input::Bytes(b"echo sum $((40 + 2))\n".to_vec());
    let output = kata_runtime(&arguments, script)?.wait()?.success()?;
    ensure!(output.contains("\nsum 42"), "{output}");
    Ok(())
}

/// Whatever the guest writes, a terminal that shows it obeys nothing of it.
fn terminal_obeys_nothing_of_the_guests(id: &str) -> Result<()> {
    let script = Input::Bytes(b"printf 'be\\033[2Jware\\n' >/dev/console\n".to_vec());
    kata_runtime(&["exec", id], script)?.wait()?.success()?;
    let shown = kata_runtime(&["logs", "--source", "console", id], Input::Terminal)?.wait()?;
    ensure!(shown.text().contains("be\\u{1b}[2Jware"), "{}", shown.text());
    ensure!(!shown.stdout.contains(&0x1b), "{}", shown.text());
    let bytes = call(&["logs", "--source", "console", id])?;
    ensure!(bytes.text().contains("be\x1b[2Jware"), "{}", bytes.text());
    Ok(())
}

#[test]
fn debug_console_of_containerds_sandbox() -> Result<()> {
    if !only_a_vm("a debug console") {
        return Ok(());
    }
    let (_directory, configuration) = with_debug_console()?;
    Scenario::new().configuration(&configuration).run(|containerd| {
        let container = containerd.run(SLEEP).start()?;
        console_is_a_shell_of_the_guest(&[], container.id())?;
        terminal_obeys_nothing_of_the_guests(container.id())?;
        // Who is in it is let go when the sandbox goes.
        let visitor = kata_runtime(&["exec", container.id()], Input::Pipe)?;
        container.remove()?;
        visitor.wait().map(drop)
    })
}

#[test]
fn debug_console_of_the_command_lines_sandbox() -> Result<()> {
    if !only_a_vm("a debug console") {
        return Ok(());
    }
    let (_directory, configuration) = with_debug_console()?;
    CommandLine::scenario(Runtime::Kata, |host| {
        let bundle = host.bundle("c", "exec sleep 1000", |spec| spec)?;
        let bundle = bundle.display().to_string();
        let mut command = host.command(&["--config", &configuration.display().to_string()]);
        command.args(["run", "--detach", "--bundle", &bundle, &host.id("c")]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        ensure!(command.status()?.success(), "the container does not start");
        let root = host.file("state").display().to_string();
        console_is_a_shell_of_the_guest(&["--root", &root], &host.id("c"))?;
        host.succeed(&["delete", "--force", &host.id("c")]).map(drop)
    })
}

/// All at once, for they must not be in each other's way. Some can be seen only where they act.
#[test]
fn settings_take_effect_on_the_host_and_in_the_guest() -> Result<()> {
    if !only_a_vm("settings of the runtime") {
        return Ok(());
    }
    let (directory, configuration) = with_debug_console()?;
    let [readable, writable] = ["readable", "writable"].map(|name| directory.path().join(name));
    fs::create_dir(&readable)?;
    fs::create_dir(&writable)?;
    fs::write(readable.join("file"), "from the host\n")?;
    fs::create_dir(directory.path().join("config.d"))?;
    let settings = format!(
        "[hypervisor.qemu]\nentropy_source = '/dev/random'\n\
         virtio_fs_extra_args = ['--thread-pool-size=2']\n\
         [agent.kata]\ncontainer_pipe_size = 65536\ndial_timeout_ms = 50\n\
         [runtime]\ndisable_guest_seccomp = true\nsandbox_cgroup_only = false\n\
         sandbox_bind_mounts = ['{}', '{}:rw']\n",
        readable.display(),
        writable.display()
    );
    fs::write(directory.path().join("config.d/settings.toml"), settings)?;
    Scenario::new().configuration(&configuration).run(|containerd| {
        let container = containerd.run(SLEEP).flag("--seccomp").start()?;
        settings_act_on_the_host(containerd, container.id())?;
        let inside = "grep ^Seccomp: /proc/self/status; cat /proc/cmdline";
        let inside = container.shell(inside).output()?.success()?;
        ensure!(inside.starts_with("Seccomp:\t0\n"), "{inside}");
        ensure!(inside.contains(" agent.container_pipe_size=65536"), "{inside}");

        let script = "cd /run/kata-containers/shared/containers/sandbox-mounts\n\
                      cat readable/file\necho x > readable/new\necho from the guest > writable/new\n";
        let script = Input::Bytes(script.into());
        let seen = kata_runtime(&["exec", container.id()], script)?.wait()?.success()?;
        ensure!(seen.contains("from the host"), "{seen}");
        ensure!(!readable.join("new").exists(), "the guest has written where it must not: {seen}");
        ensure!(fs::read_to_string(writable.join("new"))? == "from the guest\n", "{seen}");
        container.remove()
    })
}

/// Which cgroup the parts are in, and what VMM and file server were given.
fn settings_act_on_the_host(containerd: &Containerd, id: &str) -> Result<()> {
    let own = format!("/kata_overhead/{id}");
    let part = |part| -> Result<Process> {
        let found = parts_of(containerd.mark(), part)?;
        let only = <[Process; 1]>::try_from(found);
        let [only] = only.map_err(|found| anyhow!("not one {part:?}: {found:?}"))?;
        let places = only.cgroups()?;
        ensure!(!places.is_empty() && places.iter().all(|place| *place == own), "{places:?}");
        Ok(only)
    };
    part(Part::Shim)?;
    let server = part(Part::FileServer)?;
    let told = server.command_line.iter().any(|word| word == "--thread-pool-size=2");
    ensure!(told, "{}", server.describe());
    let vmm = part(Part::Vmm)?;
    let open = fs::read_dir(format!("/proc/{}/fd", vmm.pid))?.flatten();
    let mut open = open.filter_map(|entry| fs::read_link(entry.path()).ok());
    ensure!(open.any(|file| file == Path::new("/dev/random")), "{}", vmm.describe());
    Ok(())
}

#[test]
fn debug_console_that_is_off_or_has_no_shell_is_refused_with_a_sentence() -> Result<()> {
    if !only_a_vm("a debug console") {
        return Ok(());
    }
    let refused = |containerd: &Containerd, words: &str| {
        let container = containerd.run(SLEEP).start()?;
        let output = call(&["exec", container.id()])?;
        ensure!(output.code == 255, "{output}");
        ensure!(output.error_text().contains(words), "{output}");
        container.remove()
    };
    scenario(|containerd| refused(containerd, "set `debug_console_enabled = true`"))?;
    let directory = tempfile::tempdir()?;
    let configuration = configuration(directory.path(), "")?;
    Scenario::new()
        .configuration(&configuration)
        .run(|containerd| refused(containerd, "it takes an image with a shell"))?;
    let output = call(&["exec", "no-such-sandbox"])?;
    ensure!(output.error_text().contains("there is no sandbox no-such-sandbox"), "{output}");
    ensure!(call(&["logs", "../x"])?.failure()?.contains("sandbox id"));
    Ok(())
}

/// A configuration with which the agent logs what it does.
fn with_detailed_log() -> Result<(TempDir, PathBuf)> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("configuration.toml");
    fs::write(&file, "[agent.kata]\nenable_debug = true\n")?;
    Ok((directory, file))
}

/// Whether `text` is what a guest has said, and the agent in it has made this container.
fn is_of_a_guest_with(container: &str, text: &str) -> Result<()> {
    ensure!(text.contains("\nconsole: kata-agent ") || text.starts_with("console: "), "{text}");
    let agent = text.lines().filter_map(|line| line.strip_prefix("agent: "));
    let agent: Vec<serde_json::Value> = agent
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .with_context(|| text.to_owned())?;
    let created = agent.iter().any(|line| line.to_string().contains(container));
    ensure!(created, "{agent:#?}");
    Ok(())
}

#[test]
fn logs_show_what_was_said_and_follow_to_the_end() -> Result<()> {
    if !only_a_vm("a guest's log") {
        return Ok(());
    }
    let (_directory, configuration) = with_detailed_log()?;
    Scenario::new().configuration(&configuration).run(|containerd| {
        let container = containerd.run(SLEEP).start()?;
        is_of_a_guest_with(container.id(), &call(&["logs", container.id()])?.success()?)?;
        let follower = kata_runtime(
            &["logs", "--follow", "--source", "agent", container.id()],
            Input::Nothing,
        )?;
        follower.expect("\"source\":\"agent\"")?;
        ensure!(container.shell("exit 3").output()?.code == 3);
        container.remove()?;
        let followed = follower.wait()?.success()?;
        ensure!(!followed.contains("agent: "), "one source needs no name: {followed}");
        Ok(())
    })
}

#[test]
fn logs_of_the_command_lines_sandbox() -> Result<()> {
    if !only_a_vm("a guest's log") {
        return Ok(());
    }
    let (_directory, configuration) = with_detailed_log()?;
    CommandLine::configured(&configuration, |host| {
        host.run_idle("c")?;
        let id = host.id("c");
        is_of_a_guest_with(&id, &host.succeed(&["logs", &id])?)?;
        let follow = ["logs", "--follow", "--source", "agent", &id];
        let follower = host.attach(&follow, Input::Nothing)?;
        follower.expect("\"source\":\"agent\"")?;
        host.succeed(&["delete", "--force", &id])?;
        follower.wait()?.success().map(drop)
    })
}
