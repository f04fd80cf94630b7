//! Docker, with kata from its daemon.json as the default runtime: as a command line that runc's
//! shim starts, and as a shim of its own.

mod with_shim;

use std::net::Ipv4Addr;
use std::{fs, io};

use anyhow::{Context, Result, ensure};
use kata_e2e::{Client, Deadline, Engine, Input, Installation, Part, SERVER, docker, only_a_vm};
use rustix::process::Signal;
use serde_json::Value;

/// Ends well when it runs for the first time with a volume `/count`, and goes on from then on.
const ENDS_ONCE: &str = "echo x >> /count/runs; [ $(wc -l < /count/runs) -gt 1 ] || exit 0";

/// The first release that calls `features` of each runtime when it starts.
const ASKS_FOR_FEATURES: u32 = 25;

/// The first release that is known to end runc's shims which its predecessor has lost.
const FORGETS_NO_SHIM: u32 = 28;

/// A question for the address of `web` as by TCP, with its length before it (RFC 1035, section 4),
/// in octal for printf(1).
const QUESTION_FOR_WEB: &str =
    r"\000\025\022\064\001\000\000\001\000\000\000\000\000\000\003web\000\000\001\000\001";

#[test]
fn run_is_like_any_other_run() -> Result<()> {
    docker(runs)
}

fn runs(docker: &Engine) -> Result<()> {
    let kernel = docker.run("--rm", "uname -r; echo err >&2; exit 42").output()?;
    assert_eq!((kernel.code, kernel.error_text().as_str()), (42, "err\n"));
    if only_a_vm("a kernel of its own") {
        assert_ne!(kernel.text(), fs::read_to_string("/proc/sys/kernel/osrelease")?);
    }
    let explicit =
        docker.call("run --rm --runtime runc --network none localhost/busybox uname -r")?;
    assert_eq!(explicit.success()?, fs::read_to_string("/proc/sys/kernel/osrelease")?);

    let input = Input::Bytes(b"over stdin".to_vec());
    let echoed = docker.run("--rm --interactive --network none", "cat; ls /sys/class/net");
    assert_eq!(echoed.stdin(input).output()?.success()?, "over stdinlo\n");

    docker.succeed("volume create data")?;
    let limits = "--cap-drop ALL --read-only --tmpfs /tmp --volume data:/data";
    let script =
        "grep CapBnd /proc/self/status; touch /new; touch /tmp/new /data/new && ls /tmp /data";
    let output = docker.run(&format!("--rm {limits}"), script).output()?;
    assert_eq!(output.text(), "CapBnd:\t0000000000000000\n/data:\nnew\n\n/tmp:\nnew\n", "{output}");
    docker.succeed("volume rm data")?;

    let script = "mount -t tmpfs none /srv && echo mounted; ls -l /dev | grep '^b'";
    let privileged = docker.run("--rm --privileged --network none", script).output()?;
    assert_eq!(privileged.text(), "mounted\n", "{privileged}");

    let mut terminal = docker
        .run(
            "--rm --interactive --tty --network none",
            "read -r line; echo got $line; until stty size | grep '24 80'; do :; done; exit 7",
        )
        .stdin(Input::Terminal)
        .attach()?;
    terminal.write("hello\n")?;
    terminal.expect("got hello")?;
    terminal.expect("24 80")?;
    assert_eq!(terminal.wait()?.code, 7);

    let missing = docker.call("run --rm --network none localhost/busybox no-such")?;
    assert_eq!(missing.code, 127, "{missing}");
    let text = docker.call("run --rm --network none localhost/busybox /srv/of-user")?;
    assert_eq!(text.code, 126, "{text}");
    Ok(())
}

#[test]
fn daemon_knows_the_runtime_and_what_it_can() -> Result<()> {
    if !only_a_vm("a runtime with other features than Docker's own") {
        return Ok(());
    }
    docker(|docker| {
        let release = docker.release()?;
        if release < ASKS_FOR_FEATURES {
            eprintln!("left out, for Docker {release} does not ask a runtime what it can");
            return Ok(());
        }
        let told = docker.call_with(["info", "--format", "{{json .Runtimes.kata}}"])?.success()?;
        let told: Value = serde_json::from_str(&told)?;
        ensure!(told["path"].as_str().is_some_and(|path| path.ends_with("kata-runtime")), "{told}");
        let features = told["status"]["org.opencontainers.runtime-spec.features"].as_str();
        let features: Value = serde_json::from_str(features.context("no features")?)?;
        ensure!(features["ociVersionMin"].is_string(), "{features}");
        Ok(())
    })
}

#[test]
fn container_is_seen_entered_paused_stopped_and_started_again() -> Result<()> {
    docker(lives)
}

fn lives(docker: &Engine) -> Result<()> {
    docker.start("web", "--memory 200m --cpus 1 --pids-limit 100", SERVER)?;
    docker.says("web", "up")?;
    let exec = docker.call_with(["exec", "--user", "1000", "web", "sh", "-c", "id -u; exit 9"])?;
    assert_eq!((exec.code, exec.text().as_str()), (9, "1000\n"));
    // Docker tells the terminal's size after the start.
    docker.shell("web", "echo \"until stty size | grep '24 80'; do :; done\" > /tmp/script")?;
    let terminal = docker.attach("exec --interactive --tty web sh /tmp/script", Input::Terminal)?;
    terminal.expect("24 80")?;
    terminal.wait()?.success()?;
    docker.counts_memory("web")?;
    docker.succeed("update --cpus 0.5 web")?;
    if only_a_vm("a cgroup of the second version whatever the host has") {
        assert_eq!(docker.shell("web", "cat /sys/fs/cgroup/cpu.max")?, "50000 100000");
    }
    // Docker shows the host's processes: under a VM, those that stand for the container's.
    let processes = docker.succeed("top web")?;
    assert!(processes.lines().count() > 1, "{processes}");

    let (there, back) = (docker.file("there"), docker.file("back"));
    fs::write(&there, "from the host\n")?;
    docker.succeed(&format!("cp {} web:/root/file", there.display()))?;
    assert_eq!(docker.shell("web", "cat /root/file; echo changed > /root/file")?, "from the host");
    docker.succeed(&format!("cp web:/root/file {}", back.display()))?;
    assert_eq!(fs::read_to_string(back)?, "changed\n");

    docker.succeed("pause web")?;
    assert_eq!(docker.inspect("web", "{{.State.Status}}")?, "paused");
    docker.succeed("unpause web")?;
    docker.succeed("restart web")?;
    assert_eq!(docker.shell("web", "echo again")?, "again");
    docker.succeed("stop web")?;
    assert_eq!(docker.inspect("web", "{{.State.Status}} {{.State.ExitCode}}")?, "exited 3");
    assert_eq!(docker.succeed("logs web")?, "up\nbye\nup\nbye");
    docker.succeed("rm web").map(drop)
}

#[test]
fn networks_publish_ports_and_join_containers() -> Result<()> {
    docker(has_networks)
}

fn has_networks(docker: &Engine) -> Result<()> {
    docker.succeed("network create net")?;
    let serve = "while :; do echo from web | nc -l -p 80; done";
    docker.start("web", "--network net --publish 8080:80", serve)?;
    let address = docker.inspect("web", "{{.NetworkSettings.Networks.net.IPAddress}}")?;
    let asks = format!(
        "until nc {address} 80 < /dev/null > /tmp/answer && [ -s /tmp/answer ]; do :; done; cat /tmp/answer"
    );
    let other = docker.run("--rm --network net", &asks).output()?;
    assert_eq!(other.success()?, "from web\n");
    let host = "until busybox nc 127.0.0.1 8080 < /dev/null | grep from; do :; done";
    assert_eq!(docker.on_host(host)?.success()?, "from web\n");
    // Who looks for the port in the container's namespace finds the server, too.
    let namespace = docker.inspect("web", "{{.NetworkSettings.SandboxKey}}")?;
    let dial = format!(
        "until nsenter --net={namespace} busybox nc 127.0.0.1 80 < /dev/null | grep from; do :; done"
    );
    assert_eq!(docker.on_host(&dial)?.success()?, "from web\n");
    let gateway = docker.run(
        "--rm",
        "ip route | grep -c '^default'; ping -c 1 -w 10 172.17.0.1 > /dev/null && echo reached",
    );
    assert_eq!(gateway.output()?.success()?, "1\nreached\n");
    docker.counts_work("web")?;
    docker.succeed("rm --force web")?;
    docker.succeed("network rm net").map(drop)
}

/// As a compose file has them: each known to the other by its name, with files of the host's.
#[test]
fn two_services_of_a_project_find_each_other_also_after_a_restart() -> Result<()> {
    docker(|docker| {
        let data = docker.file("project");
        fs::create_dir(&data)?;
        fs::write(data.join("greeting"), "hello\n")?;
        docker.succeed("network create net")?;
        let volume = format!("--volume {}:/data:ro", data.display());
        // It reads the file once, so that what it says tells which start it is of.
        let serve =
            "greeting=$(cat /data/greeting); while :; do echo \"$greeting\" | nc -l -p 80; done";
        docker.start("backend", &format!("--network net {volume}"), serve)?;
        let ask = "while :; do timeout 5 nc backend 80 < /dev/null; sleep 0.1; done";
        docker.start("frontend", "--network net", ask)?;
        docker.says("frontend", "hello")?;
        fs::write(data.join("greeting"), "hello again\n")?;
        docker.succeed("restart -t 0 backend")?;
        docker.says("frontend", "hello again")?;
        docker.succeed("rm --force backend frontend")?;
        docker.succeed("network rm net").map(drop)
    })
}

#[test]
fn container_is_in_two_networks() -> Result<()> {
    docker(is_in_two_networks)
}

fn is_in_two_networks(docker: &Engine) -> Result<()> {
    let networks = ["net", "other"];
    for network in networks {
        docker.succeed(&format!("network create {network}"))?;
    }
    docker.succeed("create --name web --network net localhost/busybox sleep 1000")?;
    docker.succeed("network connect other web")?;
    docker.succeed("start web")?;
    for network in networks {
        let address = docker
            .inspect("web", &format!("{{{{.NetworkSettings.Networks.{network}.IPAddress}}}}"))?;
        let gateway = docker.inspect(network, "{{(index .IPAM.Config 0).Gateway}}")?;
        let sees = format!(
            "ip -4 -o address | grep -c {address}/ && ping -c 1 -w 10 {gateway} | grep -c ttl="
        );
        assert_eq!(docker.shell("web", &sees)?, "1\n1", "{network}");
    }
    docker.succeed("rm --force web")?;
    networks
        .iter()
        .try_for_each(|network| docker.succeed(&format!("network rm {network}")).map(drop))
}

#[test]
fn containers_find_each_other_and_the_world_by_name() -> Result<()> {
    docker(knows_names)
}

fn knows_names(docker: &Engine) -> Result<()> {
    docker.succeed("network create net")?;
    let gateway = docker.inspect("net", "{{(index .IPAM.Config 0).Gateway}}")?;
    let (www, its_address) = ("www.example.org", Ipv4Addr::new(203, 0, 113, 7));
    let _world = docker.name_server(gateway.parse()?, www, its_address)?;
    docker.start("web", "--network net --network-alias shop", SERVER)?;
    let address = docker.inspect("web", "{{.NetworkSettings.Networks.net.IPAddress}}")?;

    let looks = docker.run(
        &format!("--rm --network net --dns {gateway}"),
        &format!(
            "grep ^nameserver /etc/resolv.conf
            for name in web shop {www} {address}; do nslookup $name | tail -n +3 | grep -e Address: -e name; done
            nslookup nobody.example.org > /dev/null || echo nobody
            ping -c 1 -w 20 web > /dev/null && echo reached
            printf '{QUESTION_FOR_WEB}' | nc 127.0.0.11 53 | tail -c 4 | od -An -tu1 | xargs"
        ),
    );
    let told = looks.output()?;
    let reverse: Vec<&str> = address.rsplit('.').collect();
    let expected = format!(
        "nameserver 127.0.0.11\nAddress: {address}\nAddress: {address}\nAddress: {its_address}\n\
         {}.in-addr.arpa\tname = web.net\nnobody\nreached\n{}\n",
        reverse.join("."),
        address.replace('.', " "),
    );
    assert_eq!(told.text(), expected, "{told}");

    docker.succeed("rm --force web")?;
    docker.succeed("network rm net").map(drop)
}

#[test]
fn limits_hold_in_the_guest() -> Result<()> {
    if !only_a_vm("a cgroup of the second version whatever the host has") {
        return Ok(());
    }
    docker(holds_limits)
}

fn holds_limits(docker: &Engine) -> Result<()> {
    let flags = "--network none --memory 100m --cpus 0.5 --pids-limit 40";
    let script = "cd /sys/fs/cgroup; cat memory.max cpu.max pids.max; \
        (i=0; while [ $i -lt 60 ]; do sleep 1000 & i=$((i + 1)); done) 2> /dev/null; cat pids.current";
    // Of forty one has ended then: the inner shell, which could not start the next.
    let said = docker.run(&format!("--rm {flags}"), script).output()?.success()?;
    assert_eq!(said, "104857600\n50000 100000\n40\n39\n");
    let greedy = docker.run("--name greedy --network none --memory 64m", "exec tail /dev/zero");
    assert_eq!(greedy.output()?.code, 137);
    assert_eq!(docker.inspect("greedy", "{{.State.ExitCode}} {{.State.OOMKilled}}")?, "137 true");
    docker.succeed("rm greedy").map(drop)
}

#[test]
fn health_is_checked_and_failures_are_started_again() -> Result<()> {
    docker(looks_after_containers)
}

fn looks_after_containers(docker: &Engine) -> Result<()> {
    let health = "--health-cmd cat</srv/of-user --health-interval 1s --health-retries 2";
    docker.start("web", &format!("--network none {health}"), SERVER)?;
    let events = docker.attach("events --since 0 --filter container=web", Input::Nothing)?;
    let is_said_to_be = |health: &str| {
        events.expect(&format!("health_status: {health}"))?;
        assert_eq!(docker.inspect("web", "{{.State.Health.Status}}")?, health);
        anyhow::Ok(())
    };
    is_said_to_be("healthy")?;
    docker.shell("web", "rm /srv/of-user")?;
    is_said_to_be("unhealthy")?;
    docker.succeed("rm --force web")?;

    docker.succeed("volume create count")?;
    let fails_twice =
        "echo x >> /count/runs; [ $(wc -l < /count/runs) = 3 ] && echo third || exit 1";
    let flags = "--network none --restart on-failure:5 --volume count:/count";
    docker.start("again", flags, fails_twice)?;
    // Each wait is one for the next end, unless the container is between an end and a start.
    while docker.inspect("again", "{{.RestartCount}}")? != "2" {
        docker.succeed("wait again")?;
    }
    assert_eq!(docker.succeed("wait again")?, "0");
    assert_eq!(docker.succeed("logs again")?, "third");
    docker.succeed("rm again")?;
    docker.succeed("volume rm count").map(drop)
}

/// Also after a good end, unlike with `on-failure`.
#[test]
fn whatever_ends_is_started_again_until_it_is_stopped() -> Result<()> {
    docker(starts_again)
}

fn starts_again(docker: &Engine) -> Result<()> {
    let policies = ["always", "unless-stopped"];
    // Each is called like its policy.
    for policy in policies {
        docker.succeed(&format!("volume create {policy}"))?;
        let flags = format!("--network none --restart {policy} --volume {policy}:/count");
        docker.start(policy, &flags, &format!("{ENDS_ONCE}; {SERVER}"))?;
    }
    let tells = |policy: &str, events: &str| {
        let words = format!(
            "events --since 0 --filter container={policy} --filter event=die --filter event=start --format {{{{.Action}}}}"
        );
        docker.attach(&words, Input::Nothing)?.expect(events)
    };
    for policy in policies {
        tells(policy, "die\nstart\n")?;
        docker.says(policy, "up")?;
        docker.succeed(&format!("stop {policy}"))?;
        let end = "{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}}";
        assert_eq!(docker.inspect(policy, end)?, "exited 3 1");
    }
    // The first time it finds the container stopped, then it stops it.
    for runs in ["3", "4"] {
        docker.restart_daemon()?;
        tells("always", "start\n")?;
        assert_eq!(docker.shell("always", "wc -l < /count/runs")?, runs);
        assert_eq!(docker.inspect("unless-stopped", "{{.State.Status}}")?, "exited");
    }
    for policy in policies {
        docker.succeed(&format!("rm --force {policy}"))?;
        docker.succeed(&format!("volume rm {policy}"))?;
    }
    Ok(())
}

#[test]
fn namespaces_of_another_container_are_refused_in_one_sentence() -> Result<()> {
    if !only_a_vm("the refusal of another VM's namespaces") {
        return Ok(());
    }
    docker(|docker| {
        docker.start("web", "", SERVER)?;
        for (kind, why) in [
            ("network", "two VMs cannot share one"),
            ("pid", "the container is to join the pid namespace"),
        ] {
            let run = docker.run(&format!("--name other --{kind} container:web"), "true");
            let refusal = run.output()?.failure()?;
            assert!(refusal.contains(why), "{kind}: {refusal}");
            assert_eq!(docker.shell("web", "echo alive")?, "alive");
            docker.succeed("rm other")?;
        }
        docker.succeed("rm --force web").map(drop)
    })
}

#[test]
fn hosts_network_is_refused_in_one_sentence() -> Result<()> {
    if !only_a_vm("the refusal of the host's network") {
        return Ok(());
    }
    docker(refuses_the_hosts_network)
}

fn refuses_the_hosts_network(docker: &Engine) -> Result<()> {
    let before = docker.picture_of_host()?;
    let refusal = docker.run("--rm --network host", "true").output()?.failure()?;
    // Docker 28 names no namespace any more.
    assert!(refusal.contains("cannot be shared with a VM"), "{refusal}");
    assert_eq!(docker.picture_of_host()?, before);
    Ok(())
}

#[test]
fn whichever_part_is_killed_docker_sees_the_end() -> Result<()> {
    if !only_a_vm("parts that can be killed") {
        return Ok(());
    }
    docker(|docker| sees_the_end_of(docker, &[Part::Proxy, Part::StandIn, Part::Vmm]))
}

fn sees_the_end_of(docker: &Engine, parts: &[Part]) -> Result<()> {
    for part in parts {
        docker.start("web", "", SERVER)?;
        let found = docker.parts_of("web", *part)?;
        ensure!(!found.is_empty(), "there is no process of {part:?}");
        found.iter().try_for_each(|process| process.signal(Signal::KILL))?;
        assert_eq!(docker.succeed("wait web")?, "137", "{part:?}");
        docker.succeed("rm web").with_context(|| format!("{part:?} was killed"))?;
    }
    Ok(())
}

#[test]
fn killed_daemon_leaves_containers_that_can_be_removed() -> Result<()> {
    docker(outlives_the_daemon)
}

fn outlives_the_daemon(docker: &Engine) -> Result<()> {
    docker.start("web", "", SERVER)?;
    docker.says("web", "up")?;
    docker.kill_and_restart_daemon()?;
    docker.succeed("rm --force web").map(drop)
}

#[test]
fn daemon_killed_in_the_middle_of_something_leaves_what_can_be_removed() -> Result<()> {
    if !only_a_vm("a container that is being made") {
        return Ok(());
    }
    docker(|docker| loses_the_daemon(docker, Part::CommandLine))
}

/// `maker` is who makes a container at the daemon's order.
fn loses_the_daemon(docker: &Engine, maker: Part) -> Result<()> {
    let is_lost = |client: Client| {
        docker.kill_and_restart_daemon()?;
        client.wait()?.failure().map(drop)
    };
    let making = docker.run("--name web --network none", SERVER).attach()?;
    docker.await_part(maker)?;
    is_lost(making).context("while a container is made")?;
    docker.succeed("rm --force web")?;
    if docker.release()? < FORGETS_NO_SHIM {
        remove_forgotten_shim(docker)?;
    }

    // A daemon that comes back stops what its predecessor has left running.
    docker.start("web", "", SERVER)?;
    docker.shell("web", "echo 'echo in; sleep 1000' > /tmp/script")?;
    let entered = docker.attach("exec web sh /tmp/script", Input::Nothing)?;
    entered.expect("in")?;
    is_lost(entered).context("while somebody is in it")?;
    docker.succeed("rm --force web")?;

    let ignores = "trap 'echo asked' TERM; echo up; while :; do sleep 1000 & wait; done";
    docker.start("web", "", ignores)?;
    docker.says("web", "up")?;
    let stopping = docker.attach("stop web", Input::Nothing)?;
    docker.says("web", "up\nasked")?;
    is_lost(stopping).context("while it is stopped")?;
    docker.succeed("rm --force web").map(drop)
}

/// An older containerd that was killed while runc's shim made a task leaves that shim alone ever
/// after, whatever the runtime. Who ends it by hand has the runtime forget the container, too. If
/// the shim had told its address in time, containerd sees that end, and removes the directory.
fn remove_forgotten_shim(docker: &Engine) -> Result<()> {
    let shim = docker.await_part(Part::Shim)?;
    let id = shim.command_line.iter().skip_while(|word| *word != "-id").nth(1).context("no -id")?;
    shim.signal(Signal::KILL)?;
    ensure!(shim.ends(Deadline::for_command())?, "runc's shim lives on");
    let runtime = Installation::under_test().bin().join("kata-runtime");
    let (runtime, root) = (runtime.display(), docker.file("exec/runtime-runc/moby"));
    docker
        .on_host(&format!("{runtime} --root {} delete --force {id}", root.display()))?
        .success()?;
    let tasks = docker.file("exec/containerd/daemon/io.containerd.runtime.v2.task/moby");
    match fs::remove_dir_all(tasks.join(id)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.context("cannot remove its directory"),
    }
}
