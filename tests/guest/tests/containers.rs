//! Containers and their processes, as the agent makes them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kata_agent_api::agent::*;
use kata_guest_tests::*;
use oci_spec::runtime::LinuxNamespaceType;
use serde_json::json;

#[test]
fn containers_run_and_tell_how_they_ended() -> Result<()> {
    booted(First::Agent, async |guest| {
        lifecycle(guest).await.context("lifecycle")?;
        environment(guest).await.context("environment")?;
        open_files(guest).await.context("open files")?;
        command_errors(guest).await.context("command errors")?;
        process_ids(guest).await.context("process ids")?;
        exec(guest).await.context("exec")?;
        terminal(guest).await.context("terminal")?;
        seccomp(guest).await.context("seccomp")
    })
}

#[test]
fn limits_hold_and_nothing_of_a_stream_is_lost() -> Result<()> {
    booted(First::Agent, async |guest| {
        pause_and_limits(guest).await.context("pause and limits")?;
        devices(guest).await.context("devices")?;
        out_of_memory(guest).await.context("out of memory")?;
        streams(guest).await.context("streams")?;
        many_at_once(guest).await.context("many at once")?;
        left_to_the_sandbox(guest).await.context("left to the sandbox")
    })
}

async fn lifecycle(guest: &Guest) -> Result<()> {
    let output = guest.run("c1", sh("echo out; echo err >&2; exit 42")).await?;
    ensure!(output.status == 42, "status {}", output.status);
    ensure!(output.stdout == b"out\n" && output.stderr == b"err\n", "{:?}", output.text());
    let error = guest.wait("c1", "c1").await.err().context("a removed container is known")?;
    ensure!(error.to_string().contains("no container"), "{error}");
    Ok(())
}

async fn environment(guest: &Guest) -> Result<()> {
    let mut process = sh(
        "env; id; umask; pwd; hostname; cat /proc/1/cgroup; grep -E 'Cap|NoNew|SigBlk' /proc/self/status",
    );
    process["user"] = json!({"uid": 7, "gid": 8, "additionalGids": [9, 10]});
    process["cwd"] = json!("/made/for/it");
    let text = guest.run("env", process).await?.text();
    for expected in [
        "PATH=/bin:/sbin",
        "HOME=/home/seven",
        "uid=7(seven) gid=8 groups=9,10",
        "0022\n/made/for/it\nsandbox\n0::/\n",
        "SigBlk:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "CapBnd:\t00000000000000e3",
        "NoNewPrivs:\t1",
    ] {
        ensure!(text.contains(expected), "no {expected:?} in {text}");
    }
    Ok(())
}

/// As from an engine whose own limit is high, unless the specification has one.
async fn open_files(guest: &Guest) -> Result<()> {
    let limits = "ulimit -Sn; ulimit -Hn";
    let output = guest.run("files", sh(limits)).await?;
    ensure!(output.text() == "1048576\n1048576\n", "{}", output.text());

    let mut few = sh("ulimit -Sn; ulimit -Hn; read line");
    few["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]);
    guest.create("few", few).await?;
    guest.start("few").await?;
    let exec = guest.exec_output("few", "x", &["sh", "-c", limits]).await?;
    ensure!(exec.text() == "1048576\n1048576\n", "{}", exec.text());
    guest.write("few", "few", b"").await?;
    let output = guest.output("few", "few").await?;
    ensure!(output.text() == "100\n200\n", "{}", output.text());
    guest.remove("few").await
}

async fn command_errors(guest: &Guest) -> Result<()> {
    guest.create("up", sh("sleep 1000")).await?;
    guest.start("up").await?;
    for (command, words) in [
        ("foo", r#"exec: "foo": executable file not found in $PATH"#),
        ("/foo", r#"exec: "/foo": stat /foo: no such file or directory"#),
        ("/etc/passwd", r#"exec: "/etc/passwd": permission denied"#),
    ] {
        let created = guest.create("bad", process(&[command])).await;
        let error = sentence(&created.err().context("a bad command was taken")?);
        ensure!(error == words, "create: {error}");
        let made = guest.exec("up", "bad", process(&[command])).await;
        let error = sentence(&made.err().context("a bad command was taken")?);
        ensure!(error == words, "exec: {error}");
    }
    let output = guest.run("format", process(&["/noshebang"])).await?;
    ensure!(output.status == 1, "status {}", output.status);
    ensure!(output.stderr == b"exec /noshebang: exec format error\n", "{:?}", output.stderr);
    let bad_root = guest.create_with("bad", |spec| {
        let mut root = spec.root().clone().unwrap_or_default();
        root.set_path("/nonexistent".into());
        spec.set_root(Some(root));
    });
    let error = bad_root.await.err().context("a bad root was taken")?;
    ensure!(sentence(&error).contains("/nonexistent"), "{}", sentence(&error));
    guest.remove("up").await
}

async fn exec(guest: &Guest) -> Result<()> {
    guest.create("e", sh("trap 'exit 3' TERM; while :; do sleep 1000 & wait; done")).await?;
    guest.start("e").await?;
    let output = guest.exec_output("e", "x1", &["sh", "-c", "cat; echo $HOME; exit 5"]);
    let (output, _) = tokio::join!(output, async {
        // The reader of standard input may not be there yet.
        while guest.write("e", "x1", b"hello ").await.is_err() {
            tokio::task::yield_now().await;
        }
        guest.write("e", "x1", b"world\n").await?;
        guest.write("e", "x1", b"").await
    });
    let output = output?;
    ensure!(output.status == 5 && output.text() == "hello world\n/root\n", "{:?}", output.text());

    let mounts =
        guest.exec_output("e", "x2", &["sh", "-c", "ps; hostname; ls /proc/self/fd"]).await?;
    ensure!(mounts.text().contains("sleep 1000"), "{}", mounts.text());
    ensure!(mounts.text().ends_with("sandbox\n0\n1\n2\n3\n"), "{}", mounts.text());

    guest.exec("e", "x3", process(&["sleep", "1000"])).await?;
    guest.signal("e", "x3", 15).await?;
    ensure!(guest.wait("e", "x3").await? == 143);
    guest.exec("e", "x4", process(&["sleep", "1000"])).await?;
    guest.signal("e", "x4", 9).await?;
    ensure!(guest.wait("e", "x4").await? == 137);
    guest.signal("e", "e", 15).await?;
    ensure!(guest.wait("e", "e").await? == 3);
    guest.remove("e").await
}

async fn terminal(guest: &Guest) -> Result<()> {
    let mut init = sh("tty; stty size; read line; echo got $line; stty size; exit 9");
    init["terminal"] = json!(true);
    guest.create("t", init).await?;
    let resize = |exec_id: &str, row, column| TtyWinResizeRequest {
        container_id: "t".into(),
        exec_id: exec_id.into(),
        row,
        column,
        ..Default::default()
    };
    guest.agent.tty_win_resize(context(), &resize("t", 30, 100)).await?;
    guest.start("t").await?;
    let mut text = Vec::new();
    while !text.ends_with(b"30 100\r\n") {
        text.extend(guest.read("t", "t", false).await?);
    }
    ensure!(text.starts_with(b"/dev/"), "{}", String::from_utf8_lossy(&text));
    guest.agent.tty_win_resize(context(), &resize("t", 40, 120)).await?;
    guest.write("t", "t", b"line\n").await?;
    let output = guest.output("t", "t").await?;
    ensure!(output.text().contains("got line\r\n40 120\r\n"), "{}", output.text());
    ensure!(output.status == 9);
    guest.remove("t").await?;
    let mut sized = sh("stty size");
    (sized["terminal"], sized["consoleSize"]) = (json!(true), json!({"height": 25, "width": 90}));
    let output = guest.run("t", sized).await?;
    ensure!(output.text() == "25 90\r\n", "{:?}", output.text());

    guest.create("t", sh("sleep 1000")).await?;
    guest.start("t").await?;
    let mut process = sh("stty size; tty; test -t 0 && test -t 2 && echo yes; ls -l $(tty)");
    process["terminal"] = json!(true);
    process["consoleSize"] = json!({"height": 26, "width": 91});
    guest.exec("t", "x", process).await?;
    let text = guest.output("t", "x").await?.text();
    ensure!(text.starts_with("26 91\r\n/dev/pts/0\r\nyes\r\ncrw--w----"), "{text:?}");
    guest.remove("t").await
}

async fn pause_and_limits(guest: &Guest) -> Result<()> {
    guest.create("p", sh("while :; do echo x; sleep 0.01; done")).await?;
    guest.start("p").await?;
    let pause = PauseContainerRequest { container_id: "p".into(), ..Default::default() };
    let resume = ResumeContainerRequest { container_id: "p".into(), ..Default::default() };
    guest.agent.pause_container(context(), &pause).await?;
    ensure!(guest.exec("p", "x", process(&["true"])).await.is_err(), "exec in a paused container");
    ensure!(guest.agent.pause_container(context(), &pause).await.is_err(), "paused twice");
    guest.agent.resume_container(context(), &resume).await?;

    let cgroup = |file: &str| format!("cat /sys/fs/cgroup/{file}");
    let limits = ["memory.max", "pids.max", "cpu.max", "cpu.weight"].map(cgroup).join(";");
    let output = guest.exec_output("p", "x", &["sh", "-c", &limits]).await?;
    ensure!(output.text() == "67108864\n100\n200000 100000\n39\n", "{}", output.text());
    for (resources, expected) in [
        (
            json!({"memory": {"limit": 32 << 20}, "pids": {"limit": 50}, "cpu": {"shares": 512}}),
            "33554432\n50\n200000 100000\n20\n",
        ),
        // What an update does not name stays as it is.
        (json!({"cpu": {"period": 50_000}}), "33554432\n50\n200000 50000\n20\n"),
        (json!({"cpu": {"quota": 30_000}}), "33554432\n50\n30000 50000\n20\n"),
    ] {
        update(guest, "p", resources).await?;
        let output = guest.exec_output("p", "x", &["sh", "-c", &limits]).await?;
        ensure!(output.text() == expected, "{}", output.text());
    }

    let request = StatsContainerRequest { container_id: "p".into(), ..Default::default() };
    let stats =
        guest.agent.stats_container(context(), &request).await?.cgroup_stats.unwrap_or_default();
    ensure!(stats.cpu_stats.cpu_usage.total_usage > 0, "no cpu usage");
    ensure!(stats.memory_stats.usage.limit == 32 << 20, "limit {}", stats.memory_stats.usage.limit);
    ensure!(stats.pids_stats.current >= 1 && stats.pids_stats.limit == 50);
    ensure!(stats.memory_stats.stats.contains_key("anon"));
    guest.signal("p", "", 9).await?;
    ensure!(guest.wait("p", "p").await? == 137);
    guest.remove("p").await
}

async fn out_of_memory(guest: &Guest) -> Result<()> {
    let hog = "head -c 100m /dev/zero | tail -c 100m > /dev/null; echo never";
    guest.create("oom", process(&["sh", "-c", hog])).await?;
    guest.start("oom").await?;
    let event = guest.agent.get_oom_event(context(), &GetOOMEventRequest::new()).await?;
    ensure!(event.container_id == "oom", "{}", event.container_id);
    let request = StatsContainerRequest { container_id: "oom".into(), ..Default::default() };
    let stats = guest.agent.stats_container(context(), &request).await?.cgroup_stats;
    let counted = stats.unwrap_or_default().memory_stats.unwrap_or_default().stats;
    ensure!(counted.get("events.oom_kill").is_some_and(|kills| *kills > 0), "{counted:?}");
    guest.remove("oom").await
}

async fn streams(guest: &Guest) -> Result<()> {
    let size = 8 << 20;
    let script = format!("head -c {size} /dev/zero | tee /dev/stderr | md5sum; md5sum");
    guest.create("s", sh(&script)).await?;
    guest.start("s").await?;
    let chunk = vec![b'x'; 256 << 10];
    let writer = async {
        for _ in 0..size / chunk.len() {
            guest.write("s", "s", &chunk).await?;
        }
        guest.write("s", "s", b"").await
    };
    let (output, written) = tokio::join!(guest.output("s", "s"), writer);
    let output = output?;
    written?;
    ensure!(output.stderr.len() == size, "{} of {size} bytes of stderr", output.stderr.len());
    let sums = "96995b58d4cbf6aaa9041b4f00c7f6ae  -\n";
    ensure!(output.text().starts_with(sums), "{}", output.text());
    guest.remove("s").await?;

    // A background process keeps the pipe open.
    let begin = Instant::now();
    let output = guest.run("bg", sh("sleep 1000 & echo started")).await?;
    ensure!(output.text() == "started\n" && output.status == 0);
    ensure!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    Ok(())
}

/// Kata's runtime takes the namespace out of the specification, and expects the agent to make one.
async fn process_ids(guest: &Guest) -> Result<()> {
    guest
        .create_with("pids", |spec| {
            let mut process = sh("echo $$");
            process["capabilities"] = capabilities();
            spec.set_process(serde_json::from_value(process).ok());
            let mut linux = spec.linux().clone().unwrap_or_default();
            let mut namespaces = linux.namespaces().clone().unwrap_or_default();
            namespaces.retain(|one| one.typ() != LinuxNamespaceType::Pid);
            linux.set_namespaces(Some(namespaces));
            spec.set_linux(Some(linux));
        })
        .await?;
    guest.start("pids").await?;
    let output = guest.output("pids", "pids").await?;
    ensure!(output.text() == "1\n", "it is process {}", output.text());
    guest.remove("pids").await
}

async fn seccomp(guest: &Guest) -> Result<()> {
    for no_new_privileges in [false, true] {
        guest
            .create_with("sec", |spec| {
                let mut process = sh("sleep 1000");
                process["noNewPrivileges"] = json!(no_new_privileges);
                process["capabilities"] = capabilities();
                spec.set_process(serde_json::from_value(process).ok());
                let mut linux = spec.linux().clone().unwrap_or_default();
                let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
                    "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}]});
                linux.set_seccomp(serde_json::from_value(profile).ok());
                spec.set_linux(Some(linux));
            })
            .await?;
        guest.start("sec").await?;
        let mut process = sh("mkdir /tmp/x; grep Seccomp: /proc/1/status /proc/self/status");
        process["noNewPrivileges"] = json!(no_new_privileges);
        guest.exec("sec", "x", process).await?;
        let output = guest.output("sec", "x").await?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(errors.contains("Permission denied"), "{errors}");
        ensure!(output.text().matches("Seccomp:\t2").count() == 2, "{}", output.text());
        guest.remove("sec").await?;
    }
    Ok(())
}

/// Sets limits anew.
async fn update(guest: &Guest, id: &str, resources: serde_json::Value) -> Result<()> {
    let mut request = UpdateContainerRequest { container_id: id.into(), ..Default::default() };
    let resources = serde_json::from_value(resources)?;
    request.resources = Some(kata_agent_api::convert::resources_to_wire(&resources)?).into();
    guest.agent.update_container(context(), &request).await?;
    Ok(())
}

/// Rules hold from the start, and others from an update on, for what runs already too.
async fn devices(guest: &Guest) -> Result<()> {
    let allow_all = json!({"devices": [{"allow": true, "access": "rwm"}]});
    let no_log = json!({"devices": [{"allow": true, "access": "rwm"},
        {"allow": false, "type": "c", "major": 1, "minor": 11, "access": "w"}]});
    guest
        .create_with("d", |spec| {
            let capabilities = json!(["CAP_MKNOD"]);
            let mut process = sh("mknod /dev/log c 1 11; exec sleep 1000");
            process["capabilities"] = json!({"bounding": capabilities, "effective": capabilities, "permitted": capabilities});
            spec.set_process(serde_json::from_value(process).ok());
        })
        .await?;
    guest.start("d").await?;
    let write =
        ["sh", "-c", "while ! test -e /dev/log; do sleep 0.1; done; echo '<7>a test' >/dev/log"];
    let refused = "sh: can't create /dev/log: Operation not permitted\n";
    for (exec_id, rules, expected) in [
        ("x1", None, refused),
        ("x2", Some(allow_all), ""),
        ("x3", Some(no_log), refused),
        ("x4", Some(json!({"pids": {"limit": 50}})), refused),
    ] {
        if let Some(rules) = rules {
            update(guest, "d", rules).await?;
        }
        let output = guest.exec_output("d", exec_id, &write).await?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(errors == expected, "{exec_id}: {errors:?}");
    }
    guest.remove("d").await
}

async fn many_at_once(guest: &Guest) -> Result<()> {
    guest.create("m", sh("sleep 1000")).await?;
    guest.start("m").await?;
    let ids: Vec<_> = (0..10).map(|number| format!("p{number}")).collect();
    let echo = ["echo", "complete"];
    let mut runs = Vec::new();
    for id in &ids {
        guest.exec("m", id, process(&echo)).await?;
        runs.push(guest.output("m", id));
    }
    for run in runs {
        ensure!(run.await?.text() == "complete\n");
    }
    let signals = guest.exec_output("m", "sig", &["grep", "Sig", "/proc/self/status"]).await?;
    ensure!(signals.text().contains("SigIgn:\t0000000000000000"), "{}", signals.text());
    guest.remove("m").await
}

/// With its sandbox every container ends, in whatever state it is: the machine must end by itself
/// afterwards.
async fn left_to_the_sandbox(guest: &Guest) -> Result<()> {
    for id in ["created", "running", "paused"] {
        guest.create(id, sh("trap '' TERM; sleep 1000")).await?;
        if id != "created" {
            guest.start(id).await?;
        }
    }
    let pause = PauseContainerRequest { container_id: "paused".into(), ..Default::default() };
    guest.agent.pause_container(context(), &pause).await?;
    Ok(())
}
