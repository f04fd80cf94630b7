//! Podman, with kata-runtime from its containers.conf.

use std::fs;

use anyhow::{Context, Result, ensure};
use kata_e2e::{
    CommandLine, Deadline, Engine, Input, Installation, Part, SERVER, hypervisor_under_test,
    only_a_vm, podman,
};
use rustix::process::Signal;

/// Ends well when it runs for the first time with a volume `/count`, and goes on from then on.
const ENDS_ONCE: &str = "echo x >> /count/runs; [ $(wc -l < /count/runs) -gt 1 ] || exit 0";

#[test]
fn run_is_like_any_other_run() -> Result<()> {
    podman(|podman| {
        let kernel = podman.run("--rm", "uname -r; echo err >&2; exit 42").output()?;
        assert_eq!((kernel.code, kernel.error_text().as_str()), (42, "err\n"));
        let host = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        if only_a_vm("a kernel of its own") {
            assert_ne!(kernel.text(), host);
        }
        let private =
            podman.run("--rm --network none --umask 0077", "umask; touch /f; stat -c %a /f");
        assert_eq!(private.output()?.success()?, "0077\n600\n");
        let input = Input::Bytes(b"over stdin".to_vec());
        let echoed = podman.run("--rm --interactive --network none", "cat; ls /sys/class/net");
        assert_eq!(echoed.stdin(input).output()?.success()?, "over stdinlo\n");
        podman.succeed("volume create data").map(drop)?;
        let limits = "--user 1000:1000 --cap-drop ALL --read-only --tmpfs /srv --volume data:/data";
        let script = "id -u; grep CapBnd /proc/self/status; touch /new; touch /tmp/new /data/new && ls /tmp /data; cat /srv/of-user; touch /srv/new || stat -c %a /srv/setuid";
        let output = podman.run(&format!("--rm {limits}"), script).output()?;
        assert_eq!(
            output.text(),
            "1000\nCapBnd:\t0000000000000000\n/data:\nnew\n\n/tmp:\nnew\nuser's\n4755\n"
        );
        assert!(output.error_text().contains("Read-only file system"), "{output}");
        podman.succeed("volume rm data")?;
        let script = "mount -t tmpfs none /srv && echo mounted; ls -l /dev | grep '^b'";
        let privileged = podman.run("--rm --privileged --network none", script).output()?;
        assert_eq!(privileged.text(), "mounted\n", "{privileged}");
        let text = podman.call("run --rm --network none localhost/busybox /srv/of-user")?;
        assert_eq!(text.code, 126, "{text}");
        let missing = podman.call("run --rm --network none localhost/busybox no-such")?;
        assert_eq!(missing.code, 127, "{missing}");
        Ok(())
    })
}

#[test]
fn terminal_has_its_size_and_takes_input() -> Result<()> {
    podman(|podman| {
        let script =
            "until stty size | grep '24 80'; do :; done; read -r line; echo got $line; exit 7";
        let run = podman.run("--rm --interactive --tty --network none", script);
        let mut client = run.stdin(Input::Terminal).attach()?;
        client.expect("24 80")?;
        client.write("hello\n")?;
        client.expect("got hello")?;
        let output = client.wait()?;
        assert_eq!(output.code, 7);
        // Podman has the runtime write to its own terminal. Nobody wanted a network.
        assert!(!output.text().contains("no interface"), "{output}");
        Ok(())
    })
}

#[test]
fn container_is_seen_entered_paused_stopped_and_started_again() -> Result<()> {
    podman(|podman| {
        podman.start("web", "--memory 200m --cpus 1 --pids-limit 100 --tmpfs /scratch", SERVER)?;
        podman.says("web", "up")?;
        assert_eq!(podman.shell("web", "echo inside; id -u")?, "inside\n0");
        let exec =
            podman.call_with(["exec", "--user", "1000", "web", "sh", "-c", "id -u; exit 9"])?;
        assert_eq!((exec.code, exec.text().as_str()), (9, "1000\n"));
        // Podman tells the terminal's size after the start.
        podman.shell("web", "echo \"until stty size | grep '24 80'; do :; done\" > /tmp/script")?;
        let terminal =
            podman.attach("exec --interactive --tty web sh /tmp/script", Input::Terminal)?;
        terminal.expect("24 80")?;
        terminal.wait()?.success()?;

        assert!(podman.succeed("ps")?.contains("web"));
        assert_eq!(
            podman.inspect("web", "{{.State.Status}} {{.HostConfig.PidsLimit}}")?,
            "running 100"
        );
        podman.counts_memory("web")?;
        podman.succeed("update --cpus 0.5 web")?;
        if only_a_vm("a cgroup of the second version whatever the host has") {
            assert_eq!(podman.shell("web", "cat /sys/fs/cgroup/cpu.max")?, "50000 100000");
        }
        // With options of ps(1), older Podmans run the container's own, newer ones the host's in
        // its process id namespace.
        let older = podman.release()? < 5;
        let processes =
            podman.succeed(if older { "top web -o pid,args" } else { "exec web ps" })?;
        assert!(processes.contains("sleep 1000"), "{processes}");
        copies_both_ways(podman, "web")?;

        podman.succeed("pause web")?;
        assert_eq!(podman.inspect("web", "{{.State.Status}}")?, "paused");
        podman.succeed("unpause web")?;
        assert_eq!(podman.shell("web", "echo thawed")?, "thawed");

        podman.succeed("stop web")?;
        assert_eq!(podman.inspect("web", "{{.State.Status}} {{.State.ExitCode}}")?, "exited 3");
        assert_eq!(podman.succeed("logs web")?, "up\nbye");
        podman.succeed("start web")?;
        podman.succeed("kill web")?;
        assert_eq!(podman.succeed("wait web")?, "137");
        podman.succeed("rm web").map(drop)
    })
}

fn copies_both_ways(podman: &Engine, container: &str) -> Result<()> {
    let (there, back) = (podman.file("there"), podman.file("back"));
    fs::write(&there, "from the host\n")?;
    if hypervisor_under_test()? == "firecracker" {
        // Its guest has copies: nothing is lost where the container would not find it.
        let copied = podman.call(&format!("cp {} {container}:/root/file", there.display()))?;
        return copied.failure().map(drop);
    }
    podman.succeed(&format!("cp {} {container}:/root/file", there.display()))?;
    assert_eq!(
        podman.shell(container, "cat /root/file; echo from the guest > /root/file")?,
        "from the host"
    );
    // Memory of the guest's is not reached, and nothing is lost beneath it.
    if only_a_vm("a tmpfs that the host does not see") {
        podman.call(&format!("cp {} {container}:/scratch/file", there.display()))?.failure()?;
        podman.shell(container, "touch /scratch/of-guest")?;
    }
    podman.succeed(&format!("cp {container}:/root/file {}", back.display()))?;
    assert_eq!(fs::read_to_string(back)?, "from the guest\n");
    Ok(())
}

#[test]
fn network_publishes_ports_and_knows_names() -> Result<()> {
    podman(|podman| {
        podman.succeed("network create net")?;
        let serve = "while :; do echo from web | nc -l -p 80; done";
        podman.start("web", "--network net --publish 8080:80", serve)?;
        let asks = "until nc web 80 < /dev/null > /tmp/answer && [ -s /tmp/answer ]; do :; done; cat /tmp/answer";
        let other = podman.run("--rm --network net", asks).output()?;
        assert_eq!(other.success()?, "from web\n");
        let host = "address=$(ip -4 -o address show podman1 | sed 's/.*inet \\([0-9.]*\\).*/\\1/'); \
                    until busybox nc $address 8080 < /dev/null | grep from; do :; done";
        assert_eq!(podman.on_host(host)?.success()?, "from web\n");
        // Who looks for the port in the container's namespace finds the server, too.
        let namespace = podman.inspect("web", "{{.NetworkSettings.SandboxKey}}")?;
        let dial = format!(
            "until nsenter --net={namespace} busybox nc 127.0.0.1 80 < /dev/null | grep from; do :; done"
        );
        assert_eq!(podman.on_host(&dial)?.success()?, "from web\n");
        podman.counts_work("web")?;
        podman.succeed("rm --force --time 0 web")?;
        podman.succeed("network rm net").map(drop)
    })
}

#[test]
fn container_is_in_two_networks() -> Result<()> {
    podman(|podman| {
        let networks = ["one", "other"];
        for network in networks {
            podman.succeed(&format!("network create {network}"))?;
        }
        // Newer Podmans do not let containers ping by default.
        podman.start("web", "--network one,other --cap-add NET_RAW", SERVER)?;
        for network in networks {
            let of_web = format!(
                "{{{{.NetworkSettings.Networks.{network}.IPAddress}}}} {{{{.NetworkSettings.Networks.{network}.Gateway}}}}"
            );
            let told = podman.inspect("web", &of_web)?;
            let (address, gateway) = told.split_once(' ').context("no two words")?;
            let sees = format!(
                "ip -4 -o address | grep -c {address}/ && ping -c 1 -w 10 {gateway} | grep -c ttl="
            );
            assert_eq!(podman.shell("web", &sees)?, "1\n1", "{network}");
        }
        podman.succeed("rm --force --time 0 web")?;
        networks
            .iter()
            .try_for_each(|network| podman.succeed(&format!("network rm {network}")).map(drop))
    })
}

#[test]
fn limits_hold_in_the_guest() -> Result<()> {
    if !only_a_vm("a cgroup of the second version whatever the host has") {
        return Ok(());
    }
    podman(|podman| {
        let flags =
            "--network none --memory 100m --cpus 0.5 --pids-limit 40 --ulimit nofile=2000000";
        let script = "ulimit -n; cd /sys/fs/cgroup; cat memory.max cpu.max pids.max; \
            (i=0; while [ $i -lt 60 ]; do sleep 1000 & i=$((i + 1)); done) 2> /dev/null; cat pids.current";
        // Of forty one has ended then: the inner shell, which could not start the next.
        let said = podman.run(&format!("--rm {flags}"), script).output()?.success()?;
        assert_eq!(said, "2000000\n104857600\n50000 100000\n40\n39\n");
        let greedy = podman.run("--name greedy --network none --memory 64m", "exec tail /dev/zero");
        assert_eq!(greedy.output()?.code, 137);
        assert_eq!(podman.how_it_ended("greedy")?, "137 true");
        podman.succeed("rm greedy")?;
        // One that outlives the greedy one among its processes was short of memory, too; one that
        // is killed by hand was not.
        let survivor =
            podman.run("--name greedy --network none --memory 64m", "tail /dev/zero; exit 7");
        assert_eq!(survivor.output()?.code, 7);
        assert_eq!(podman.how_it_ended("greedy")?, "7 true");
        podman.succeed("rm greedy")?;
        podman.start("modest", "--network none --memory 64m", SERVER)?;
        podman.succeed("kill modest")?;
        podman.succeed("wait modest")?;
        assert_eq!(podman.how_it_ended("modest")?, "137 false");
        podman.succeed("rm modest").map(drop)
    })
}

#[test]
fn hosts_network_is_refused_in_one_sentence() -> Result<()> {
    if !only_a_vm("the refusal of the host's network") {
        return Ok(());
    }
    podman(|podman| {
        // What another container would be given to a VM. Without duplicate address detection, which
        // would change the picture after a second or two.
        let cable = "for f in all default; do echo 0 > /proc/sys/net/ipv6/conf/$f/accept_dad; done
            ip link add eth0 type veth peer name far && ip link set far up && \
            ip address add 10.99.0.2/24 dev eth0 && ip link set eth0 up && \
            until ip link show eth0 | grep -q 'state UP'; do :; done; ip netns identify";
        let host = podman.on_host(cable)?.success()?;
        let before = podman.picture_of_host()?;
        for (network, why) in [
            ("host".to_owned(), "the host's network cannot be shared with a VM"),
            (format!("ns:/run/netns/{}", host.trim()), "is the host's own"),
        ] {
            let run = podman.run(&format!("--rm --network {network}"), "true");
            let refusal = run.output()?.failure()?;
            assert!(refusal.contains(why), "{network}: {refusal}");
            assert_eq!(refusal.trim().lines().count(), 1, "{network}: {refusal}");
            assert_eq!(podman.picture_of_host()?, before, "{network}");
        }
        Ok(())
    })
}

/// Without anything in containers.conf, with flags of its own, and with one that is given twice.
#[test]
fn runtime_is_named_by_its_path() -> Result<()> {
    if !only_a_vm("the path of kata-runtime") {
        return Ok(());
    }
    podman(|podman| {
        let path = Installation::under_test().bin().join("kata-runtime");
        let flags = "--runtime-flag root=/nowhere --runtime-flag root=/run/kata-containers";
        let run = |flags: &str, command: &str| {
            let path = path.display();
            podman.call(&format!(
                "--runtime {path} {flags} run --rm --network none localhost/busybox {command}"
            ))
        };
        assert_eq!(run("", "echo by its path")?.success()?, "by its path\n");
        assert_eq!(run(flags, "echo twice")?.success()?, "twice\n");
        let missing = run("", "no-such")?;
        assert_eq!(missing.code, 127, "{missing}");
        Ok(())
    })
}

/// Who wants that takes a pod.
#[test]
fn namespaces_of_another_container_are_refused_in_one_sentence() -> Result<()> {
    if !only_a_vm("the refusal of another VM's namespaces") {
        return Ok(());
    }
    podman(|podman| {
        podman.start("web", "", SERVER)?;
        for (kind, why) in [
            ("network", "two VMs cannot share one"),
            ("pid", "the container is to join the pid namespace"),
            ("ipc", "the container is to join the ipc namespace"),
        ] {
            let run = podman.run(&format!("--rm --{kind} container:web"), "true");
            let refusal = run.output()?.failure()?;
            assert!(refusal.contains(why), "{kind}: {refusal}");
            assert_eq!(refusal.trim().lines().count(), 1, "{kind}: {refusal}");
        }
        assert_eq!(podman.shell("web", "echo alive")?, "alive");
        podman.succeed("rm --force --time 0 web").map(drop)
    })
}

#[test]
fn overlays_of_directories_and_images_are_mounted() -> Result<()> {
    podman(|podman| {
        let lower = podman.file("lower");
        fs::create_dir(&lower)?;
        fs::write(lower.join("file"), "of the host\n")?;
        let flags = format!(
            "--network none --volume {}:/over:O --mount type=image,source=localhost/busybox,destination=/image,rw=true",
            lower.display()
        );
        let script = "cat /over/file; echo changed > /over/file; cat /over/file; \
            touch /image/new && ls /image/srv/of-user";
        let said = podman.run(&format!("--rm {flags}"), script).output()?.success()?;
        assert_eq!(said, "of the host\nchanged\n/image/srv/of-user\n");
        assert_eq!(fs::read_to_string(lower.join("file"))?, "of the host\n");
        let readonly = "--mount type=image,source=localhost/busybox,destination=/image";
        let said = podman
            .run(
                &format!("--rm --network none {readonly}"),
                "touch /image/new || ls /image/srv/of-user",
            )
            .output()?
            .success()?;
        assert_eq!(said, "/image/srv/of-user\n");
        Ok(())
    })
}

#[test]
fn image_is_built_in_a_vm() -> Result<()> {
    podman(|podman| {
        let build = |name: &str, flags: &str, steps: &str| -> Result<()> {
            let context = podman.file(name);
            fs::create_dir(&context)?;
            let steps = format!("FROM localhost/busybox\n{steps}\n");
            fs::write(context.join("Containerfile"), steps)?;
            let context = context.display();
            podman.succeed(&format!("build {flags} --tag localhost/{name} {context}")).map(drop)
        };
        let gateway = "ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p'";
        build("reaches", "--cap-add NET_RAW", &format!("RUN ping -c 1 -w 10 $({gateway})"))?;
        let steps = "RUN uname -r > /built-by\nCMD [\"cat\", \"/built-by\"]";
        build("built", "--network none", steps)?;
        let built_by = podman.succeed("run --rm --network none localhost/built")?;
        let kernel = podman.run("--rm --network none", "uname -r").output()?.success()?;
        assert_eq!(built_by, kernel.trim_end());
        Ok(())
    })
}

/// What whoever builds and tests with containers in containers asks for (`docker:dind`): a bridge,
/// packet filters, an overlay, cgroups to divide.
#[test]
fn docker_runs_in_a_privileged_container() -> Result<()> {
    if !only_a_vm("a container that has a machine of its own") {
        return Ok(());
    }
    podman(|podman| {
        let script = podman.file("script");
        fs::write(&script, DOCKER_IN_A_CONTAINER)?;
        let volume = format!("{}:/srv", podman.file("").display());
        let flags = ["--rm", "--privileged", "--memory", "1g", "--network", "none"];
        let volumes = ["--volume", &volume, "--volume", "layers:/var/lib/docker"];
        let run = ["run"].into_iter().chain(flags).chain(volumes);
        let said = podman.call_with(run.chain(["--rootfs", "/:O", "sh", "/srv/script"]))?;
        assert_eq!(said.text(), "overlay2\ncontainer 52428800\n", "{said}");
        podman.succeed("volume rm layers").map(drop)
    })
}

/// The machine's root directory is the container's, so that it has Docker and busybox. A cgroup of
/// version 2 that has processes cannot be divided; Docker's own image moves its first process away,
/// and so does this.
const DOCKER_IN_A_CONTAINER: &str = r#"
cd /sys/fs/cgroup && mkdir first
while read -r pid; do echo "$pid" > first/cgroup.procs; done < cgroup.procs
sed 's/^/+/; s/ / +/g' cgroup.controllers > cgroup.subtree_control
mount -t tmpfs none /run
mkfifo /run/log
dockerd > /run/log 2>&1 &
exec 3< /run/log
while read -r line <&3; do case $line in *"API listen"*) break;; *) echo "$line" >&2;; esac; done
cat <&3 > /run/rest &
docker info --format '{{.Driver}}'
mkdir /run/image && cp "$(command -v busybox)" /run/image/ && tar -C /run/image -c . | docker import - image > /run/id
docker run --rm --memory 50m --publish 8080:80 image /busybox sh -c \
    'echo container $(/busybox cat /sys/fs/cgroup/memory.max)'
"#;

#[test]
fn health_is_checked_and_failures_are_started_again() -> Result<()> {
    podman(|podman| {
        let health = "--health-cmd true --health-interval disable";
        podman.start("web", &format!("--network none {health}"), SERVER)?;
        podman.succeed("healthcheck run web")?;
        assert_eq!(podman.inspect("web", "{{.State.Health.Status}}")?, "healthy");
        podman.succeed("rm --force --time 0 web")?;

        podman.succeed("volume create count")?;
        let fails_twice =
            "echo x >> /count/runs; [ $(wc -l < /count/runs) = 3 ] && echo third || exit 1";
        podman.start(
            "again",
            "--network none --restart on-failure:5 --volume count:/count",
            fails_twice,
        )?;
        // Each wait is one for the next end, unless the container is between an end and a start.
        while podman.inspect("again", "{{.RestartCount}}")? != "2" {
            podman.succeed("wait again")?;
        }
        assert_eq!(podman.succeed("wait again")?, "0");
        assert_eq!(podman.succeed("logs again")?, "third");
        podman.succeed("rm again")?;
        podman.succeed("volume rm count").map(drop)
    })
}

/// Also after a good end, unlike with `on-failure`.
#[test]
fn whatever_ends_is_started_again_until_it_is_stopped() -> Result<()> {
    podman(|podman| {
        for policy in ["always", "unless-stopped"] {
            podman.succeed("volume create count")?;
            let flags = format!("--network none --restart {policy} --volume count:/count");
            podman.start("web", &flags, &format!("{ENDS_ONCE}; {SERVER}"))?;
            let events = "events --since 1h --filter container=web --filter event=restart \
                --filter event=start --format {{.Status}}";
            podman.attach(events, Input::Nothing)?.expect("restart\nstart\n")?;
            // Podman 4 follows a log only until the first end of its container.
            CommandLine::until(|| Ok(podman.succeed("logs web")? == "up"))?;

            let monitors = podman.parts_of("web", Part::Monitor)?;
            ensure!(!monitors.is_empty(), "nobody watches it");
            podman.succeed("stop web")?;
            // Whoever watches it decides whether it is started again.
            for monitor in monitors {
                ensure!(monitor.ends(Deadline::for_command())?, "conmon lives on");
            }
            let end = "{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}}";
            assert_eq!(podman.inspect("web", end)?, "exited 3 1", "{policy}");
            assert_eq!(podman.succeed("logs web")?, "up\nbye", "{policy}");
            podman.succeed("rm web")?;
            podman.succeed("volume rm count")?;
        }
        Ok(())
    })
}

#[test]
fn whichever_part_is_killed_podman_sees_the_end() -> Result<()> {
    if !only_a_vm("parts that can be killed") {
        return Ok(());
    }
    podman(|podman| {
        for part in [Part::Proxy, Part::StandIn, Part::Vmm] {
            podman.start("web", "", SERVER)?;
            let found = podman.parts_of("web", part)?;
            ensure!(!found.is_empty(), "there is no process of {part:?}");
            found.iter().try_for_each(|process| process.signal(Signal::KILL))?;
            let code = podman.succeed("wait web")?;
            assert_eq!(code, "137", "{part:?}");
            podman.succeed("rm web").with_context(|| format!("{part:?} was killed"))?;
        }
        Ok(())
    })
}

#[test]
fn killed_conmon_leaves_a_container_that_can_be_removed() -> Result<()> {
    if !only_a_vm("a runtime whose state this test can remove") {
        return Ok(());
    }
    podman(|podman| {
        podman.start("web", "", SERVER)?;
        podman.says("web", "up")?;
        for monitor in podman.parts_of("web", Part::Monitor)? {
            monitor.signal(Signal::KILL)?;
            ensure!(monitor.ends(Deadline::for_command())?, "conmon lives on");
        }
        // It is alive: nobody watches it any more, that is all.
        assert_eq!(podman.shell("web", "echo alive")?, "alive");
        let id = podman.inspect("web", "{{.ID}}")?;
        podman.succeed("rm --force --time 0 web")?;
        // Podman 4.3 does not have the runtime forget it then, runc's neither. Whoever does that
        // may do so twice.
        let runtime = Installation::under_test().bin().join("kata-runtime");
        for _ in 0..2 {
            podman.on_host(&format!("{} delete --force {id}", runtime.display()))?.success()?;
        }
        Ok(())
    })
}

#[test]
fn conmon_killed_while_a_container_is_made_leaves_nothing() -> Result<()> {
    if !only_a_vm("a container that is being made") {
        return Ok(());
    }
    podman(|podman| {
        let client = podman.run("--detach --name web --network none", SERVER).attach()?;
        // Whoever calls the runtime is the conmon that stays, and no parent that is about to leave.
        podman.await_part(Part::CommandLine)?;
        let monitor = podman.await_part(Part::Monitor)?;
        monitor.signal(Signal::KILL)?;
        ensure!(monitor.ends(Deadline::for_command())?, "conmon lives on");
        client.wait()?.failure()?;
        podman.succeed("rm --force --time 0 web").map(drop)
    })
}
