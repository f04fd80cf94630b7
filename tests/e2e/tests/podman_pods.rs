//! Podman's pods: several containers in one VM.

use std::net::Ipv4Addr;

use anyhow::Result;
use kata_e2e::{SERVER, only_a_vm, podman};

const BOOT: &str = "cat /proc/sys/kernel/random/boot_id";

#[test]
fn pod_is_one_vm_with_one_localhost() -> Result<()> {
    podman(|podman| {
        podman.succeed("pod create --name pod")?;
        podman.start(
            "server",
            "--pod pod",
            "echo over localhost | nc -l -p 7000; echo served; sleep 1000",
        )?;
        let client = podman.run(
            "--rm --pod pod",
            "until nc 127.0.0.1 7000; do :; done; cat /proc/sys/kernel/random/boot_id",
        );
        let said = client.output()?.success()?;
        let boot = podman.shell("server", "cat /proc/sys/kernel/random/boot_id")?;
        assert_eq!(said, format!("over localhost\n{boot}\n"));
        podman.says("server", "served")?;
        // Podman mounts the image when the VM is there.
        let image = "--mount type=image,source=localhost/busybox,destination=/image";
        let member = podman.run(&format!("--rm --pod pod {image}"), "cat /image/srv/of-user");
        assert_eq!(member.output()?.success()?, "user's\n");
        let pods = podman.succeed("pod ps --format {{.Status}}")?;
        assert_eq!(pods, "Running");
        podman.succeed("pod rm --force --time 1 pod").map(drop)
    })
}

/// As podman-compose makes them.
#[test]
fn containers_of_a_pod_without_infra_are_alone() -> Result<()> {
    podman(|podman| {
        podman.succeed("network create net")?;
        podman.succeed("pod create --infra=false --name pod")?;
        podman.start("web", "--pod pod --network net", SERVER)?;
        let pings = format!("until ping -c 1 -w 10 web > /dev/null 2>&1; do :; done; {BOOT}");
        let flags = "--rm --pod pod --network net --cap-add NET_RAW";
        let other = podman.run(flags, &pings).output()?.success()?;
        if only_a_vm("a kernel of its own") {
            assert_ne!(other.trim(), podman.shell("web", BOOT)?);
        }
        podman.succeed("restart --time 1 web")?;
        assert_eq!(podman.shell("web", "echo again")?, "again");
        podman.succeed("pod stop --time 1 pod")?;
        podman.succeed("pod rm pod")?;
        podman.succeed("network rm net").map(drop)
    })
}

#[test]
fn pod_is_restarted_with_its_containers() -> Result<()> {
    podman(|podman| {
        podman.succeed("pod create --name pod")?;
        podman.succeed("volume create ends")?;
        let says_goodbye = "trap 'echo bye >> /ends/all; exit 3' TERM; while :; do sleep 0.1; done";
        podman.start("one", "--pod pod --volume ends:/ends", says_goodbye)?;
        podman.start("other", "--pod pod", SERVER)?;
        let before = podman.shell("one", BOOT)?;
        for times in ["1", "2"] {
            podman.succeed("pod restart pod")?;
            assert_eq!(
                podman.shell("one", "wc -l < /ends/all")?,
                times,
                "one was not asked to end"
            );
        }
        let after = podman.shell("one", BOOT)?;
        assert_eq!(podman.shell("other", BOOT)?, after, "two VMs");
        if only_a_vm("a kernel of its own") {
            assert_ne!(before, after);
        }
        podman.succeed("pod stop --time 1 pod")?;
        podman.succeed("pod start pod")?;
        assert_eq!(podman.shell("other", "echo alive")?, "alive");
        podman.succeed("pod rm --force --time 1 pod")?;
        podman.succeed("volume rm ends").map(drop)
    })
}

#[test]
fn pod_is_reached_on_loopback_only_and_asks_a_name_server_outside() -> Result<()> {
    podman(|podman| {
        // Neither the pod's network nor one that it has a route to but by its gateway.
        let (outside, www) = (Ipv4Addr::new(192, 0, 2, 53), "www.example.org");
        podman.on_host(&format!("ip address add {outside}/32 dev lo"))?.success()?;
        let its_address = Ipv4Addr::new(203, 0, 113, 7);
        let _world = podman.name_server(outside, www, its_address)?;
        podman.succeed("network create --disable-dns outer")?;
        let gateway = podman
            .call_with([
                "network",
                "inspect",
                "--format",
                "{{(index .Subnets 0).Gateway}}",
                "outer",
            ])?
            .success()?;
        podman.succeed(&format!(
            "pod create --name pod --network outer --dns {outside} --publish 127.0.0.1:8080:80"
        ))?;
        let serve = "while :; do echo from the pod | nc -l -p 80; done";
        podman.start("web", "--pod pod", serve)?;
        let host = "until busybox nc 127.0.0.1 8080 < /dev/null | grep from; do :; done";
        assert_eq!(podman.on_host(host)?.success()?, "from the pod\n");
        let others = format!("busybox nc {} 8080 < /dev/null", gateway.trim());
        podman.on_host(&others)?.failure()?;
        let asks = format!(
            "nslookup {www} | tail -n +3 | grep Address:; nslookup nobody.example.org > /dev/null || echo nobody"
        );
        let told = podman.run("--rm --pod pod", &asks).output()?;
        assert_eq!(told.text(), format!("Address: {its_address}\nnobody\n"), "{told}");
        podman.succeed("pod rm --force --time 0 pod")?;
        podman.succeed("network rm outer").map(drop)
    })
}

#[test]
fn member_of_a_pod_that_runs_out_of_memory_is_the_one_that_is_told() -> Result<()> {
    if !only_a_vm("a guest that runs out of memory") {
        return Ok(());
    }
    podman(|podman| {
        podman.succeed("pod create --name pod")?;
        podman.start("modest", "--pod pod", SERVER)?;
        let greedy = podman.run("--name greedy --pod pod --memory 64m", "exec tail /dev/zero");
        assert_eq!(greedy.output()?.code, 137);
        assert_eq!(podman.how_it_ended("greedy")?, "137 true");
        assert_eq!(
            podman.inspect("modest", "{{.State.Status}} {{.State.OOMKilled}}")?,
            "running false"
        );
        assert_eq!(podman.shell("modest", "echo alive")?, "alive");
        podman.succeed("pod rm --force --time 1 pod").map(drop)
    })
}
