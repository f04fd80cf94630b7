//! Drives an agent that runs somewhere, through its whole protocol, and says what held and how long
//! it took: `drive <socket> <rootfs in the guest> [no-limits] [check ...]`.
//!
//! The socket is the host's end of the guest's serial port, or with `unix://` before it the one that
//! an agent serves on which was run by hand. **The agent must be in a virtual machine**, for its clock,
//! network and routes are changed. The root file system must have busybox
//! as `/bin/busybox` and its applets' links.

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use kata_agent_api::agent::*;
use kata_agent_api::agent_ttrpc::AgentServiceClient;
use kata_agent_api::convert::{process_to_wire, spec_to_wire};
use kata_agent_api::health::CheckRequest;
use kata_agent_api::health_ttrpc::HealthClient;
use kata_channel::{AGENT_PORT, ChannelStream, DEBUG_CONSOLE_PORT, LOG_PORT, SerialDialer};
use oci_spec::runtime::{Process, Spec};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::Context;

/// Long enough for an emulated guest on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn context() -> Context {
    ttrpc::context::with_duration(PATIENCE)
}

struct Guest {
    agent: AgentServiceClient,
    rootfs: String,
    /// Whether the guest has cgroup controllers.
    limits: bool,
}

struct Output {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    status: i32,
}

impl Output {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

impl Guest {
    fn spec(&self, id: &str, process: &serde_json::Value) -> Result<Spec> {
        let mut spec = json!({
            "ociVersion": "1.0.2",
            "root": {"path": self.rootfs},
            "hostname": "box",
            "process": process,
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                    "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                    "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
                {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                    "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs",
                    "options": ["nosuid", "noexec", "nodev", "ro"]},
                {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                    "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}
            ],
            "linux": {
                "cgroupsPath": format!("/default/{id}"),
                "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                    {"type": "cgroup"}, {"type": "network"}],
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
                "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"],
                "resources": {"memory": {"limit": 64 << 20}, "pids": {"limit": 100},
                    "cpu": {"shares": 1024, "quota": 200_000, "period": 100_000}}
            }
        });
        spec["process"]["capabilities"] = capabilities();
        if !self.limits {
            spec["linux"]["resources"] = json!({});
        }
        Ok(serde_json::from_value(spec)?)
    }

    async fn create_with(&self, id: &str, change: impl FnOnce(&mut Spec)) -> Result<()> {
        let mut spec = self.spec(id, &process(&["true"]))?;
        change(&mut spec);
        let mut request = CreateContainerRequest::new();
        (request.container_id, request.exec_id) = (id.into(), id.into());
        request.OCI = Some(spec_to_wire(&spec)?).into();
        self.agent.create_container(context(), &request).await?;
        Ok(())
    }

    async fn create(&self, id: &str, process: serde_json::Value) -> Result<()> {
        let process: Process = serde_json::from_value(process)?;
        let capabilities = serde_json::from_value(capabilities())?;
        self.create_with(id, |spec| {
            let mut process = process;
            process.set_capabilities(Some(capabilities));
            spec.set_process(Some(process));
        })
        .await
    }

    async fn start(&self, id: &str) -> Result<()> {
        let request = StartContainerRequest { container_id: id.into(), ..Default::default() };
        self.agent.start_container(context(), &request).await?;
        Ok(())
    }

    async fn exec(&self, id: &str, exec_id: &str, process: serde_json::Value) -> Result<()> {
        let mut process: Process = serde_json::from_value(process)?;
        process.set_capabilities(Some(serde_json::from_value(capabilities())?));
        let mut request = ExecProcessRequest::new();
        (request.container_id, request.exec_id) = (id.into(), exec_id.into());
        request.process = Some(process_to_wire(&process)?).into();
        self.agent.exec_process(context(), &request).await?;
        Ok(())
    }

    async fn signal(&self, id: &str, exec_id: &str, signal: u32) -> Result<()> {
        let mut request = SignalProcessRequest::new();
        (request.container_id, request.exec_id, request.signal) =
            (id.into(), exec_id.into(), signal);
        self.agent.signal_process(context(), &request).await?;
        Ok(())
    }

    async fn wait(&self, id: &str, exec_id: &str) -> Result<i32> {
        let mut request = WaitProcessRequest::new();
        (request.container_id, request.exec_id) = (id.into(), exec_id.into());
        Ok(self.agent.wait_process(context(), &request).await?.status)
    }

    async fn write(&self, id: &str, exec_id: &str, data: &[u8]) -> Result<()> {
        let mut request = WriteStreamRequest::new();
        (request.container_id, request.exec_id) = (id.into(), exec_id.into());
        request.data = data.to_vec();
        self.agent.write_stdin(context(), &request).await?;
        Ok(())
    }

    async fn read(&self, id: &str, exec_id: &str, stderr: bool) -> Result<Vec<u8>> {
        let mut request = ReadStreamRequest::new();
        (request.container_id, request.exec_id) = (id.into(), exec_id.into());
        request.len = 1 << 20;
        let response = if stderr {
            self.agent.read_stderr(context(), &request).await?
        } else {
            self.agent.read_stdout(context(), &request).await?
        };
        Ok(response.data)
    }

    async fn read_all(&self, id: &str, exec_id: &str, stderr: bool) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            let data = self.read(id, exec_id, stderr).await?;
            if data.is_empty() {
                return Ok(all);
            }
            all.extend(data);
        }
    }

    async fn output(&self, id: &str, exec_id: &str) -> Result<Output> {
        let (stdout, stderr, status) = tokio::join!(
            self.read_all(id, exec_id, false),
            self.read_all(id, exec_id, true),
            self.wait(id, exec_id)
        );
        Ok(Output { stdout: stdout?, stderr: stderr?, status: status? })
    }

    async fn remove(&self, id: &str) -> Result<()> {
        let request = RemoveContainerRequest { container_id: id.into(), ..Default::default() };
        self.agent.remove_container(context(), &request).await?;
        Ok(())
    }

    /// A container from creation to removal.
    async fn run(&self, id: &str, process: serde_json::Value) -> Result<Output> {
        self.create(id, process).await?;
        self.start(id).await?;
        let output = self.output(id, id).await?;
        self.remove(id).await?;
        Ok(output)
    }

    async fn exec_output(&self, id: &str, exec_id: &str, args: &[&str]) -> Result<Output> {
        self.exec(id, exec_id, process(args)).await?;
        self.output(id, exec_id).await
    }
}

fn process(args: &[&str]) -> serde_json::Value {
    json!({"args": args, "cwd": "/", "env": ["PATH=/bin:/sbin", "B=1", "A=2"],
        "user": {"uid": 0, "gid": 0}, "noNewPrivileges": true})
}

fn sh(script: &str) -> serde_json::Value {
    process(&["sh", "-c", script])
}

fn capabilities() -> serde_json::Value {
    let set = json!(["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_SETUID", "CAP_SETGID"]);
    json!({"bounding": set, "effective": set, "permitted": set})
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

/// The sentence of a refusal.
fn sentence(error: &anyhow::Error) -> String {
    match error.downcast_ref::<ttrpc::Error>() {
        Some(ttrpc::Error::RpcStatus(status)) => status.message().to_owned(),
        _ => error.to_string(),
    }
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
    println!("    bad root: {}", sentence(&error));
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

    guest.create("t", sh("sleep 1000")).await?;
    guest.start("t").await?;
    let mut process = sh("tty; test -t 0 && test -t 2 && echo yes; ls -l $(tty)");
    process["terminal"] = json!(true);
    guest.exec("t", "x", process).await?;
    let output = guest.output("t", "x").await?;
    ensure!(output.text().starts_with("/dev/pts/0\r\nyes\r\ncrw--w----"), "{:?}", output.text());
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
    let mut update = UpdateContainerRequest { container_id: "p".into(), ..Default::default() };
    let resources =
        json!({"memory": {"limit": 32 << 20}, "pids": {"limit": 50}, "cpu": {"shares": 512}});
    let resources = serde_json::from_value(resources)?;
    update.resources = Some(kata_agent_api::convert::resources_to_wire(&resources)?).into();
    guest.agent.update_container(context(), &update).await?;
    let output = guest.exec_output("p", "x", &["sh", "-c", &limits]).await?;
    ensure!(output.text() == "33554432\n50\n200000 100000\n20\n", "{}", output.text());

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
    let begin = Instant::now();
    let (output, written) = tokio::join!(guest.output("s", "s"), writer);
    let output = output?;
    written?;
    let elapsed = begin.elapsed().as_secs_f64();
    println!("    {:.1} MiB/s", 2.0 * size as f64 / f64::from(1 << 20) / elapsed);
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

async fn bulk(guest: &Guest) -> Result<()> {
    let size = 16 << 20;
    let rate = |begin: Instant| f64::from(16) / begin.elapsed().as_secs_f64();
    guest.create("b", process(&["dd", "if=/dev/zero", "bs=65536", "count=256"])).await?;
    guest.start("b").await?;
    let begin = Instant::now();
    ensure!(guest.output("b", "b").await?.stdout.len() == size);
    println!("    out: {:.1} MiB/s", rate(begin));
    guest.remove("b").await?;
    guest.create("b", process(&["sh", "-c", "cat > /dev/null"])).await?;
    guest.start("b").await?;
    let chunk = vec![b'x'; 64 << 10];
    let begin = Instant::now();
    for _ in 0..size / chunk.len() {
        guest.write("b", "b", &chunk).await?;
    }
    guest.write("b", "b", b"").await?;
    ensure!(guest.output("b", "b").await?.status == 0);
    println!("    in: {:.1} MiB/s", rate(begin));
    guest.remove("b").await
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

async fn guest_calls(guest: &Guest) -> Result<()> {
    let agent = &guest.agent;
    let mut ask = GuestDetailsRequest::new();
    (ask.mem_block_size, ask.mem_hotplug_probe) = (true, true);
    let details = agent.get_guest_details(context(), &ask).await?;
    // An agent that is not PID 1 may run on somebody's own machine, of which nothing may be changed.
    ensure!(details.agent_details.init_daemon, "not PID 1");
    let mut date = SetGuestDateTimeRequest::new();
    date.Sec = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
    agent.set_guest_date_time(context(), &date).await?;
    let mut seed = ReseedRandomDevRequest::new();
    seed.data = vec![7; 64];
    agent.reseed_random_dev(context(), &seed).await?;
    let metrics = agent.get_metrics(context(), &GetMetricsRequest::new()).await?.metrics;
    let memory = metrics.lines().find(|line| line.contains("rss")).unwrap_or_default();
    println!("    {memory}");
    let online = OnlineCPUMemRequest::new();
    agent.online_cpu_mem(context(), &online).await?;
    let interfaces = agent.list_interfaces(context(), &ListInterfacesRequest::new()).await?;
    println!(
        "    interfaces: {}",
        interfaces
            .Interfaces
            .iter()
            .map(|i| format!("{} {} ", i.name, i.hwAddr))
            .collect::<String>()
    );
    if let Some(nic) = interfaces.Interfaces.iter().find(|interface| interface.name != "lo") {
        network(agent, &nic.hwAddr).await?;
    }
    let path = "/run/kata-containers/shared/containers/c/etc/hosts";
    for (path, good) in [(path, true), ("/etc/passwd", false), (&format!("{path}/../../x"), false)]
    {
        let mut copy = CopyFileRequest::new();
        (copy.path, copy.file_size, copy.data) = (path.into(), 3, b"abc".to_vec());
        (copy.file_mode, copy.dir_mode) = (0o100_644, 0o755);
        ensure!(agent.copy_file(context(), &copy).await.is_ok() == good, "copy to {path}");
    }
    let refused = agent.set_policy(context(), &SetPolicyRequest::new()).await;
    println!("    SetPolicy: {}", refused.err().context("a policy was taken")?);
    Ok(())
}

async fn network(agent: &AgentServiceClient, address: &str) -> Result<()> {
    use kata_agent_api::types::{ARPNeighbor, IPAddress, Interface, Route};

    let ip = |address: &str, mask: &str| IPAddress {
        address: address.into(),
        mask: mask.into(),
        ..Default::default()
    };
    let mut interface = Interface::new();
    (interface.name, interface.hwAddr, interface.mtu) = ("net7".into(), address.into(), 1400);
    interface.IPAddresses = vec![ip("10.1.2.3", "24"), ip("fd00::7", "64")];
    let mut request = UpdateInterfaceRequest::new();
    request.interface = Some(interface).into();
    let updated = agent.update_interface(context(), &request).await?;
    ensure!(updated.name == "net7" && updated.mtu == 1400, "{updated:?}");
    ensure!(updated.IPAddresses.iter().any(|ip| ip.address == "10.1.2.3"), "{updated:?}");

    let mut routes = Routes::new();
    routes.Routes = vec![
        Route { gateway: "10.1.2.1".into(), device: "net7".into(), ..Default::default() },
        Route {
            dest: "10.9.0.0/16".into(),
            device: "net7".into(),
            scope: 253,
            ..Default::default()
        },
    ];
    let mut request = UpdateRoutesRequest::new();
    request.routes = Some(routes).into();
    let routes = agent.update_routes(context(), &request).await?.Routes;
    ensure!(
        routes.iter().any(|route| route.dest.is_empty() && route.gateway == "10.1.2.1"),
        "{routes:?}"
    );
    ensure!(routes.iter().any(|route| route.dest == "10.9.0.0/16"), "{routes:?}");

    let mut neighbour = ARPNeighbor::new();
    (neighbour.device, neighbour.lladdr) = ("net7".into(), "02:00:00:00:00:01".into());
    neighbour.toIPAddress = Some(ip("10.1.2.1", "")).into();
    let mut neighbours = ARPNeighbors::new();
    neighbours.ARPNeighbors = vec![neighbour];
    let mut request = AddARPNeighborsRequest::new();
    request.neighbors = Some(neighbours).into();
    agent.add_arp_neighbors(context(), &request).await?;
    Ok(())
}

async fn many(guest: &Guest) -> Result<()> {
    guest.create("m", sh("sleep 1000")).await?;
    guest.start("m").await?;
    let count = 50;
    let begin = Instant::now();
    for _ in 0..count {
        let ask = GuestDetailsRequest::new();
        guest.agent.get_guest_details(context(), &ask).await?;
    }
    println!("    rpc: {:.1} ms each", begin.elapsed().as_secs_f64() * 1000.0 / f64::from(count));
    let mut made = 0.0;
    for number in 0..count {
        let begin = Instant::now();
        guest.exec("m", &format!("w{number}"), process(&["true"])).await?;
        made += begin.elapsed().as_secs_f64() * 1000.0;
        guest.output("m", &format!("w{number}")).await?;
    }
    println!("    exec alone: {:.1} ms each", made / f64::from(count));
    let begin = Instant::now();
    for number in 0..count {
        let output = guest.exec_output("m", &format!("x{number}"), &["echo", "complete"]).await?;
        ensure!(output.text() == "complete\n" && output.status == 0, "number {number}");
    }
    println!("    exec: {:.1} ms each", begin.elapsed().as_secs_f64() * 1000.0 / f64::from(count));
    let begin = Instant::now();
    let runs = (0..10).map(|number| {
        guest.exec_output(
            "m",
            ["p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7", "p8", "p9"][number],
            &["echo", "complete"],
        )
    });
    for output in futures::future::join_all(runs).await {
        ensure!(output?.text() == "complete\n");
    }
    println!("    10 at once: {:.1} ms", begin.elapsed().as_secs_f64() * 1000.0);
    let signals = guest.exec_output("m", "sig", &["grep", "Sig", "/proc/self/status"]).await?;
    ensure!(signals.text().contains("SigIgn:\t0000000000000000"), "{}", signals.text());
    guest.remove("m").await?;
    let (mut created, mut started, mut ran, mut removed) = (0.0, 0.0, 0.0, 0.0);
    for _ in 0..10 {
        let mut begin = Instant::now();
        let mut lap = || {
            let elapsed = begin.elapsed().as_secs_f64() * 100.0;
            begin = Instant::now();
            elapsed
        };
        guest.create("m", process(&["true"])).await?;
        created += lap();
        guest.start("m").await?;
        started += lap();
        guest.output("m", "m").await?;
        ran += lap();
        guest.remove("m").await?;
        removed += lap();
    }
    println!(
        "    create {created:.1} start {started:.1} output+wait {ran:.1} remove {removed:.1} ms"
    );
    Ok(())
}

macro_rules! check {
    ($failed:ident, $wanted:ident, $guest:ident, $($name:ident),+) => {$(
        if $wanted.is_empty() || $wanted.iter().any(|name| name == stringify!($name)) {
        let begin = Instant::now();
        let result = tokio::time::timeout(PATIENCE, $name(&$guest)).await;
        let elapsed = begin.elapsed().as_secs_f64() * 1000.0;
        match result {
            Ok(Ok(())) => println!("ok   {:20} {elapsed:8.1} ms", stringify!($name)),
            Ok(Err(error)) => {
                $failed = true;
                println!("FAIL {:20} {elapsed:8.1} ms: {error:#}", stringify!($name));
            }
            Err(_) => {
                $failed = true;
                println!("FAIL {:20} took too long", stringify!($name));
            }
        }
        }
    )+};
}

/// A guest that has its debug console switched on and a shell offers it.
async fn debug_console(mut shell: ChannelStream) -> Result<()> {
    shell.write_all(b"echo sum $((40 + 2)); tty\n").await?;
    shell.flush().await?;
    let mut text = String::new();
    let mut buffer = [0; 1024];
    while !text.contains("/dev/pts/") {
        let length = shell.read(&mut buffer).await?;
        ensure!(length > 0, "the shell ended: {text:?}");
        text.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    ensure!(text.contains("sum 42"), "{text:?}");
    println!("ok   debug console");
    Ok(())
}

/// Dials the agent through the serial port's socket, and prints its log meanwhile.
async fn dial(socket: &str) -> Result<ChannelStream> {
    let begin = Instant::now();
    let carrier = loop {
        match UnixStream::connect(socket).await {
            Ok(carrier) => break carrier,
            // The machine that makes the socket is only being started.
            Err(_) if begin.elapsed() < PATIENCE => tokio::task::yield_now().await,
            Err(error) => return Err(error.into()),
        }
    };
    let dialer = SerialDialer::new(carrier);
    let stream = dialer.dial(AGENT_PORT).await?;
    if let Ok(shell) = dialer.dial(DEBUG_CONSOLE_PORT).await {
        debug_console(shell).await?;
    }
    tokio::spawn(async move {
        let Ok(mut log) = dialer.dial(LOG_PORT).await else { return };
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = log.read(&mut buffer).await {
            eprint!("{}", String::from_utf8_lossy(&buffer[..length]));
        }
    });
    Ok(stream)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    let socket = arguments.next().context("usage: drive <socket> <rootfs>")?;
    let rootfs = arguments.next().context("usage: drive <socket> <rootfs>")?;
    let begin = Instant::now();
    let stream: ChannelStream = match socket.strip_prefix("unix://") {
        Some(path) => Box::new(UnixStream::connect(path).await?),
        None => dial(&socket).await?,
    };
    println!("dialled after {:.0} ms", begin.elapsed().as_secs_f64() * 1000.0);
    let client = ttrpc::r#async::Client::new(Socket::new(stream));
    let version =
        HealthClient::new(client.clone()).version(context(), &CheckRequest::new()).await?;
    println!(
        "agent {} after {:.0} ms",
        version.agent_version,
        begin.elapsed().as_secs_f64() * 1000.0
    );
    let mut wanted: Vec<String> = arguments.collect();
    let limits = !wanted.iter().any(|word| word == "no-limits");
    wanted.retain(|word| word != "no-limits");
    let guest = Guest { agent: AgentServiceClient::new(client), rootfs, limits };
    let begin = Instant::now();
    let mut request = CreateSandboxRequest::new();
    (request.sandbox_id, request.hostname) = ("s1".into(), "sandbox".into());
    request.dns = vec!["nameserver 10.0.0.1".into()];
    guest.agent.create_sandbox(context(), &request).await?;
    println!("ok   create_sandbox       {:8.1} ms", begin.elapsed().as_secs_f64() * 1000.0);

    let mut failed = false;
    check!(
        failed,
        wanted,
        guest,
        lifecycle,
        environment,
        command_errors,
        exec,
        terminal,
        pause_and_limits,
        out_of_memory,
        streams,
        bulk,
        seccomp,
        guest_calls,
        many
    );
    let begin = Instant::now();
    guest.agent.destroy_sandbox(context(), &DestroySandboxRequest::new()).await?;
    println!("ok   destroy_sandbox      {:8.1} ms", begin.elapsed().as_secs_f64() * 1000.0);
    Ok(ExitCode::from(u8::from(failed)))
}
