//! What callers of an OCI runtime trip over: descriptors, children, and flags of runc's.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use kata_e2e::{
    CommandLine, Deadline, IDLE, Input, Installation, Part, Process, Runtime, only_a_vm,
};
use rustix::process::Uid;
use rustix::thread::set_thread_uid;
use serde_json::{Value, json};

/// Engines wait for the end of pipes that they have given to the runtime, and of descriptors that
/// they forgot to close.
#[test]
fn descriptors_of_the_caller_are_held_by_nobody() -> Result<()> {
    if !only_a_vm("processes that live on beside the container's") {
        return Ok(());
    }
    CommandLine::scenario(Runtime::Kata, |host| {
        let bundle = host.bundle("c", IDLE, |spec| spec)?.display().to_string();
        let (open, id) = (host.file("open-in-the-caller"), host.id("c"));
        File::create(&open)?;
        let create = host.command(&["create", "--bundle", &bundle, &id]);
        let exec = host.command(&["exec", "--detach", &id, "sleep", "1000"]);
        let start = host.command(&["start", &id]);
        for command in [create, start, exec] {
            let mut shell = Command::new("sh");
            shell.args(["-c", "exec 9< \"$0\"; exec \"$@\""]).arg(&open);
            shell.arg(command.get_program()).args(command.get_args());
            shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            ensure!(shell.status()?.success(), "{command:?} has failed");
        }
        let processes = host.processes()?;
        ensure!(processes.iter().any(|one| one.is(Part::Vmm)), "there is no VMM");
        for process in &processes {
            for entry in fs::read_dir(format!("/proc/{}/fd", process.pid))?.flatten() {
                let target = fs::read_link(entry.path()).unwrap_or_default();
                ensure!(target != open, "{} has it open", process.describe());
            }
        }
        host.succeed(&["delete", "--force", &id]).map(drop)
    })
}

/// Those of the sandbox's processes whose parent is none of them: children of whoever reaps for the
/// caller.
fn orphans(processes: &[Process]) -> Result<Vec<&Process>> {
    let ours: BTreeSet<u32> = processes.iter().map(|process| process.pid).collect();
    let mut orphans = Vec::new();
    for process in processes {
        let status = fs::read_to_string(format!("/proc/{}/status", process.pid))?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        if !ours.contains(&parent.context("there is no parent")?.trim().parse()?) {
            orphans.push(process);
        }
    }
    Ok(orphans)
}

/// conmon and containerd's shim wait for whatever they inherit: for each process of a container
/// that is the one in its pid file.
#[test]
fn caller_inherits_one_child_for_each_process() -> Result<()> {
    if !only_a_vm("processes beside the container's") {
        return Ok(());
    }
    CommandLine::scenario(Runtime::Kata, |host| {
        let bundle = host.bundle("c", IDLE, |spec| spec)?;
        host.create("c", &bundle)?;
        let processes = host.processes()?;
        let all: Vec<u32> = orphans(&processes)?.iter().map(|process| process.pid).collect();
        assert_eq!(all, [host.pid("c")?]);
        assert!(processes.len() > 2, "{processes:?}");
        host.succeed(&["start", &host.id("c")])?;

        let pid = host.exec_detached("c", &["sleep", "1000"])?;
        let processes = host.processes()?;
        let all: BTreeSet<u32> = orphans(&processes)?.iter().map(|process| process.pid).collect();
        assert_eq!(all, [host.pid("c")?, pid].into());
        host.succeed(&["delete", "--force", &host.id("c")]).map(drop)
    })
}

#[test]
fn run_can_keep_what_has_ended() -> Result<()> {
    CommandLine::scenario(Runtime::under_test(), |host| {
        let bundle = host.bundle("c", "exit 5", |spec| spec)?.display().to_string();
        let id = host.id("c");
        let flags = ["run", "--keep", "--no-pivot", "--no-new-keyring", "--no-subreaper"];
        let args = [&flags[..], &["--bundle", &bundle, &id]].concat();
        assert_eq!(host.attach(&args, Input::Nothing)?.wait()?.code, 5);
        assert_eq!(host.status("c")?, "stopped");
        host.succeed(&["delete", &id]).map(drop)
    })
}

#[test]
fn what_a_vm_cannot_do_is_refused_in_one_sentence() -> Result<()> {
    if !only_a_vm("what it cannot do") {
        return Ok(());
    }
    CommandLine::scenario(Runtime::Kata, |host| {
        let bundle = host.bundle("c", IDLE, |spec| spec)?;
        let path = bundle.display().to_string();
        let id = host.id("c");
        let refusals: [(&[&str], &str); 11] = [
            (
                &["create", "--preserve-fds", "1", "--bundle", &path, &id],
                "cannot be passed into a VM",
            ),
            (&["checkpoint", "--leave-running", "--image-path", "/tmp/x", &id], "be checkpointed"),
            (&["restore", "--detach", "--bundle", &path, &id], "be restored"),
            (&["spec", "--rootless", "--bundle", "/tmp"], "need root"),
            (&["exec", "--preserve-fds", "1", &id, "true"], "cannot be passed into a VM"),
            (&["exec", "--cgroup", "/other", &id, "true"], "no other can be named"),
            (&["update", "--cpu-burst", "5000", &id], "the limit `burst`"),
            (&["update", "--cpu-idle", "1", &id], "the limit `idle`"),
            (&["update", "--cpu-rt-runtime", "5000", &id], "the limit `realtimeRuntime`"),
            (&["update", "--l3-cache-schema", "L3:0=1", &id], "run without --l3-cache-schema"),
            (&["update", "--mem-bw-schema", "MB:0=20", &id], "run without --mem-bw-schema"),
        ];
        host.create("c", &bundle)?;
        for (args, words) in refusals {
            // The first one is refused before anybody asks for the container's id.
            let said = host.call(args)?.failure()?;
            assert!(said.contains(words) && said.trim().lines().count() == 1, "{args:?}: {said}");
        }
        host.succeed(&["delete", "--force", &id]).map(drop)
    })
}

/// Docker and CRI-O read both streams as one JSON document.
#[test]
fn features_are_all_that_is_printed() -> Result<()> {
    if !only_a_vm("kata-runtime's features") {
        return Ok(());
    }
    let program = Installation::under_test().bin().join("kata-runtime");
    let output = Command::new(program).arg("features").env_clear().output()?;
    ensure!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let features: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(features["ociVersionMax"].is_string(), "{features}");
    Ok(())
}

#[test]
fn usage_errors_are_one_object_in_a_json_log_too() -> Result<()> {
    if !only_a_vm("kata-runtime's log") {
        return Ok(());
    }
    CommandLine::scenario(Runtime::Kata, |host| {
        for (words, code) in
            [(&["state", "--no-such-flag", "c"][..], 1), (&["no-such-command"], 3), (&["state"], 1)]
        {
            let log = host.file("log.json");
            let mut command = host.command(&["--log-format=json", "--log"]);
            command.arg(&log).args(words).stderr(Stdio::null());
            assert_eq!(command.status()?.code(), Some(code), "{words:?}");
            let record: Value = serde_json::from_str(&fs::read_to_string(&log)?)?;
            assert_eq!(record["level"], "error", "{words:?}");
            assert!(record["msg"].as_str().is_some_and(|said| said.len() > 5), "{record}");
            fs::remove_file(log)?;
        }
        Ok(())
    })
}

#[test]
fn help_is_a_command_and_rootless_takes_a_word() -> Result<()> {
    CommandLine::scenario(Runtime::under_test(), |host| {
        for words in [&["help"][..], &["h"], &["--rootless", "true", "help"], &["help", "create"]] {
            let said = host.succeed(words)?;
            assert!(said.contains("bundle") || said.contains("checkpoint"), "{words:?}: {said}");
        }
        for value in ["true", "false", "auto"] {
            assert_eq!(host.succeed(&["--rootless", value, "list", "--quiet"])?, "");
        }
        Ok(())
    })
}

/// Docker adds `--systemd-cgroup` to what daemon.json has, and callers in Go write `--debug=false`.
#[test]
fn flags_are_read_as_go_reads_them() -> Result<()> {
    CommandLine::scenario(Runtime::under_test(), |host| {
        for words in [
            &["--systemd-cgroup", "--systemd-cgroup", "list", "--quiet"][..],
            &["--debug=true", "--debug=false", "--systemd-cgroup=0", "list", "--quiet=true"],
            &["--log=/nowhere/log", "--log", "/dev/null", "list", "-f=json", "--f", "table", "-q"],
        ] {
            assert_eq!(host.succeed(words)?, "", "{words:?}");
        }
        let heading = host.succeed(&["list", "--quiet", "--quiet=F"])?;
        assert!(heading.starts_with("ID "), "{heading}");
        let version = host.succeed(&["-v"])?;
        assert!(version.contains(" version ") && version.contains("\nspec: "), "{version}");
        let said = host.call(&["--debug=maybe", "list"])?.failure()?;
        assert!(said.contains("maybe"), "{said}");
        Ok(())
    })
}

#[test]
fn debug_reaches_the_sandboxs_owner() -> Result<()> {
    if !only_a_vm("kata-proxy's log") {
        return Ok(());
    }
    CommandLine::scenario(Runtime::Kata, |host| {
        let bundle = host.bundle("c", IDLE, |spec| spec)?.display().to_string();
        let id = host.id("c");
        let log = host.file(&format!("state/.sandboxes/{id}/proxy.log"));
        for (flags, says) in [(&["--debug"][..], true), (&[], false)] {
            let args = [flags, &["create", "--bundle", &bundle, &id]].concat();
            let mut create = host.command(&args);
            create.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            ensure!(create.status()?.success(), "create has failed");
            let text = fs::read_to_string(&log)?;
            ensure!(text.contains("level=debug") == says, "{flags:?}: {text}");
            host.succeed(&["delete", "--force", &id])?;
        }
        Ok(())
    })
}

/// Podman calls `kill` and `delete` with nothing but XDG_RUNTIME_DIR in the environment, and some
/// give a /dev/null that cannot be written to.
#[test]
fn neither_path_nor_home_nor_streams_to_write_to_are_needed() -> Result<()> {
    CommandLine::scenario(Runtime::under_test(), |host| {
        let bundle = host.bundle("c", "exec sleep 1000", |spec| spec)?.display().to_string();
        let id = host.id("c");
        let call = |args: &[&str]| {
            let mut command = host.command(args);
            let null = || File::open("/dev/null");
            command.env_clear().env("XDG_RUNTIME_DIR", "/run/user/0");
            command.stdin(null()?).stdout(null()?).stderr(null()?);
            anyhow::Ok(command.status()?.code())
        };
        let all: [(&[&str], i32); 8] = [
            (&["start", &id], 1),
            (&["create", "--bundle", &bundle, &id], 0),
            (&["start", &id], 0),
            (&["pause", &id], 0),
            (&["resume", &id], 0),
            (&["exec", "--detach", &id, "true"], 0),
            (&["kill", &id, "9"], 0),
            (&["delete", "--force", &id], 0),
        ];
        for (args, code) in all {
            assert_eq!(call(args)?, Some(code), "{args:?}");
        }
        Ok(())
    })
}

/// As Podman and Docker call it with the cgroup manager systemd. There the group is what systemd
/// would call it, and on a host with the second version of cgroups it accounts for what is in it.
#[test]
fn cgroup_is_where_systemd_would_have_it_and_accounts() -> Result<()> {
    if !only_a_vm("cgroups in systemd's way without systemd") {
        return Ok(());
    }
    CommandLine::scenario(Runtime::Kata, |host| {
        let bundle = host.bundle("c", IDLE, |spec| spec)?;
        let (id, config) = (host.id("c"), bundle.join("config.json"));
        let create = ["--systemd-cgroup", "create", "--bundle", &bundle.display().to_string(), &id];
        let said = host.call(&create)?.failure()?;
        assert!(said.contains("expected cgroupsPath to be of format"), "{said}");

        let mut spec: Value = serde_json::from_str(&fs::read_to_string(&config)?)?;
        spec["linux"]["cgroupsPath"] = format!("system.slice:kata:{id}").into();
        fs::write(&config, spec.to_string())?;
        host.create_with("c", &bundle, &["--systemd-cgroup"])?;
        let scope = format!("system.slice/kata-{id}.scope");
        let groups = fs::read_to_string(format!("/proc/{}/cgroup", host.pid("c")?))?;
        for line in groups.lines() {
            assert!(line.ends_with(&format!(":/{scope}")), "{groups}");
        }
        let root = Path::new("/sys/fs/cgroup");
        if root.join("cgroup.controllers").exists() {
            for file in ["memory.current", "pids.current", "io.stat"] {
                assert!(root.join(&scope).join(file).exists(), "{file} is missing in {scope}");
            }
        }
        host.succeed(&["delete", "--force", &id]).map(drop)
    })
}

/// Others of the host must not reach it.
#[test]
fn socket_of_the_sandboxs_owner_is_roots_alone() -> Result<()> {
    if !only_a_vm("kata-proxy's socket") {
        return Ok(());
    }
    CommandLine::scenario(Runtime::Kata, |host| {
        let bundle = host.bundle("c", IDLE, |spec| spec)?;
        host.create("c", &bundle)?;
        let sandbox = host.file(&format!("state/.sandboxes/{}", host.id("c")));
        for (path, mode) in [(sandbox.join("proxy.sock"), 0o600), (sandbox, 0o700)] {
            let metadata = fs::metadata(&path)?;
            let found = (metadata.mode() & 0o777, metadata.uid());
            assert_eq!(found, (mode, 0), "{}", path.display());
        }
        host.succeed(&["delete", "--force", &host.id("c")]).map(drop)
    })
}

/// Whatever was done to the modes of its sockets and of the directories that they are in.
#[test]
fn owner_of_a_sandbox_answers_root_alone() -> Result<()> {
    if !only_a_vm("kata-proxy's sockets") {
        return Ok(());
    }
    CommandLine::scenario(Runtime::Kata, |host| {
        let bundle = host.bundle("c", IDLE, |spec| spec)?;
        host.create("c", &bundle)?;
        let (root, nobody) = (Uid::ROOT, Uid::from_raw(65534));
        let of_tasks = host.file(&format!("state/.sandboxes/{}/proxy.sock", host.id("c")));
        let of_the_guest = Path::new("/run/kata").join(host.id("c")).join("guest.sock");
        for (socket, question) in
            [(&of_tasks, REQUEST_FOR_NOTHING), (&of_the_guest, b"CONSOLE\n".as_slice())]
        {
            let place = socket.parent().context("a socket is in a directory")?;
            for (path, mode) in [(socket.as_path(), 0o666), (place, 0o755)] {
                fs::set_permissions(path, Permissions::from_mode(mode))?;
            }
            assert!(is_answered(socket, question, root)?, "{}", socket.display());
            assert!(!is_answered(socket, question, nobody)?, "{}", socket.display());
        }
        host.logs("c", "refused a connection of another user")?;
        assert_eq!(host.status("c")?, "created");
        host.succeed(&["delete", "--force", &host.id("c")]).map(drop)
    })
}

/// A frame of ttrpc without a body, on the stream 1. The answer is that there is no such method.
const REQUEST_FOR_NOTHING: &[u8] = &[0, 0, 0, 0, 0, 0, 0, 1, 1, 0];

/// Whether somebody with this user id can connect to the socket, and hears anything. To the kernel
/// each thread has a user of its own.
fn is_answered(socket: &Path, question: &[u8], user: Uid) -> Result<bool> {
    // Entered by a descriptor, so that the modes of the directories above it do not matter.
    let place = File::open(socket.parent().context("a socket is in a directory")?)?;
    let name = socket.file_name().context("a socket has a name")?;
    let path = Path::new("/proc/self/fd").join(place.as_raw_fd().to_string()).join(name);
    let ask = || {
        set_thread_uid(user)?;
        let mut connection = UnixStream::connect(path)?;
        connection.set_read_timeout(Some(Deadline::for_command().remaining()))?;
        // Where nobody listens to it the answer says so.
        let _ = connection.write_all(question);
        match connection.read(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(false),
            read => Ok(read? > 0),
        }
    };
    let answer = thread::scope(|scope| scope.spawn(ask).join());
    answer.unwrap_or_else(|_| bail!("the thread panicked")).with_context(|| format!("as {user:?}"))
}

#[test]
fn written_specification_runs_and_features_are_told_without_a_root() -> Result<()> {
    CommandLine::scenario(Runtime::under_test(), |host| {
        let bundle = host.bundle("c", "true", |spec| spec)?;
        let config = bundle.join("config.json");
        fs::remove_file(&config)?;
        let path = bundle.display().to_string();
        host.succeed(&["spec", "--bundle", &path])?;
        assert!(host.call(&["spec", "--bundle", &path])?.failure()?.contains("Remove it first"));
        let mut spec: Value = serde_json::from_str(&fs::read_to_string(&config)?)?;
        spec["process"]["args"] = json!(["echo", "from a new bundle"]);
        spec["process"]["terminal"] = false.into();
        spec["root"]["path"] = host.file("rootfs").display().to_string().into();
        fs::write(&config, spec.to_string())?;
        let said = host.succeed(&["run", "--bundle", &path, &host.id("c")])?;
        assert_eq!(said, "from a new bundle\n");
        let features: Value = serde_json::from_str(&host.succeed(&["features"])?)?;
        for name in ["ociVersionMin", "ociVersionMax", "hooks", "mountOptions"] {
            assert!(!features[name].is_null(), "{name}: {features}");
        }
        Ok(())
    })
}

/// The names and values of runc's, but for what the reader is told: whose it is, and of which
/// specification. A guest's cgroups are of the second version whatever the host has, and
/// which capabilities are handed on differs among runcs.
#[test]
fn written_specification_is_runcs() -> Result<()> {
    if !only_a_vm("two runtimes") {
        return Ok(());
    }
    let of = |runtime| {
        let mut written = String::new();
        CommandLine::scenario(runtime, |host| {
            let bundle = host.file("written");
            fs::create_dir(&bundle)?;
            host.succeed(&["spec", "--bundle", &bundle.display().to_string()])?;
            written = fs::read_to_string(bundle.join("config.json"))?;
            Ok(())
        })?;
        anyhow::Ok(written)
    };
    let (ours, runcs) = (of(Runtime::Kata)?, of(Runtime::Runc)?);
    let compared = |text: &str| -> Result<Value> {
        let mut spec: Value = serde_json::from_str(text)?;
        for name in ["ociVersion", "hostname"] {
            ensure!(spec[name].take().is_string(), "there is no {name}: {text}");
        }
        let capabilities = spec["process"]["capabilities"].as_object_mut();
        let capabilities = capabilities.context("there are no capabilities")?;
        capabilities.retain(|set, _| set != "inheritable" && set != "ambient");
        for set in capabilities.values_mut() {
            let set = set.as_array_mut().context("a set of capabilities is no list")?;
            set.sort_by_key(Value::to_string);
        }
        let namespaces = spec["linux"]["namespaces"].as_array_mut();
        let namespaces = namespaces.context("there are no namespaces")?;
        namespaces.retain(|namespace| namespace["type"] != "cgroup");
        Ok(spec)
    };
    assert_eq!(compared(&ours)?, compared(&runcs)?);
    Ok(())
}

/// How kata-shim tells engines of a guest that ran out of memory, where the host's cgroups are of
/// the second version: a guest is such a host.
#[test]
fn killer_of_a_second_version_cgroup_takes_the_stand_ins_victim() -> Result<()> {
    if !only_a_vm("a stand-in") {
        return Ok(());
    }
    CommandLine::scenario(Runtime::Kata, |host| {
        let script = "mkdir /cg/own /cg/told && echo 0 > /cg/own/cgroup.procs && \
            echo +memory > /cg/cgroup.subtree_control && \
            /libexec/kata-shim --run-out-of-memory-in /cg/told; echo $?; \
            grep -w oom_kill /cg/told/memory.events";
        let bind = |source: &Path, target: &str| json!({ "destination": target, "type": "bind", "source": source, "options": ["rbind", "ro"] });
        let libexec = Installation::under_test().libexec();
        let bundle = host.bundle("c", script, |spec| {
            let cgroups =
                json!({ "destination": "/cg", "type": "cgroup2", "source": "cgroup2", "options": ["rw"] });
            let libraries = Path::new("/lib").join(format!("{}-linux-gnu", std::env::consts::ARCH));
            let spec = spec.push("/mounts", cgroups).push("/mounts", bind(&libexec, "/libexec"));
            let target = libraries.display().to_string();
            spec.push("/mounts", bind(&libraries, &target))
                .push("/mounts", bind(Path::new("/lib64"), "/lib64"))
        })?;
        let output =
            host.call(&["run", "--bundle", &bundle.display().to_string(), &host.id("c")])?;
        assert!(output.text().starts_with("137\noom_kill 1\n"), "{output}");
        Ok(())
    })
}

/// How the root's mounts spread, which engines say in words that a guest does not know, is the
/// host's matter; devices without hardware are in every guest.
#[test]
fn words_of_the_hosts_and_devices_of_every_kernel_are_taken() -> Result<()> {
    if !only_a_vm("devices that the host may not have") {
        return Ok(());
    }
    CommandLine::scenario(Runtime::Kata, |host| {
        let devices =
            [("/dev/net/tun", 10, 200), ("/dev/loop-control", 10, 237), ("/dev/kmsg", 1, 11)];
        let device = |(path, major, minor): (&str, u32, u32)| json!({ "path": path, "type": "c", "major": major, "minor": minor });
        let rule = |(_, major, minor): (&str, u32, u32)| json!({ "allow": true, "type": "c", "major": major, "minor": minor, "access": "rwm" });
        let script = "test -c /dev/kmsg && : <>/dev/net/tun && : <>/dev/loop-control && echo all there; exec sleep 1000";
        let bundle = host.bundle("c", script, |spec| {
            spec.set("/linux/rootfsPropagation", json!("rslave"))
                .set("/linux/devices", devices.iter().copied().map(device).collect())
                .set("/linux/resources/devices", devices.iter().copied().map(rule).collect())
        })?;
        host.create("c", &bundle)?;
        host.succeed(&["start", &host.id("c")])?;
        host.says("c", "all there")?;
        host.succeed(&["delete", "--force", &host.id("c")]).map(drop)
    })
}
