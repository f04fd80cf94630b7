//! Networks that an engine, or a hand, has prepared in a network namespace.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kata_e2e::{
    Client, CommandLine, Configuration, Container, Containerd, Deadline, Image, Input, Part, Run,
    Runtime, Scenario, Spec, Wire, has_macvtap, hypervisor_under_test, only_a_vm, parts_of,
    picture_of_this_machine, scenario,
};
use rustix::process::Signal;
use serde_json::json;

/// A configuration of the runtime under test with one model, and a scenario that uses it.
fn with_model(model: &str, test: impl FnOnce(&Containerd) -> Result<()>) -> Result<()> {
    let lines = format!("[runtime]\ninternetworking_model = \"{model}\"\n");
    let configuration = Configuration::with(&lines)?;
    Scenario::new().configuration(&configuration.file()).run(test)
}

/// What every model has to carry: both directions, both families, a large transfer.
fn carries_everything(containerd: &Containerd) -> Result<()> {
    let wire = Wire::new(containerd)?;
    wire.inside("ip link set eth0 mtu 1400")?;
    wire.world("ip link set w0 mtu 1400")?;
    wire.inside("ip neighbour add 10.99.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent")?;
    wire.inside("ip route add 192.0.2.0/24 dev eth0 scope link src 10.99.0.2")?;
    wire.inside("ip route add 198.51.100.0/24 via 203.0.113.9 dev eth0 onlink")?;
    wire.inside("ip neighbour add fd99::77 lladdr 02:00:00:00:00:78 dev eth0 nud permanent")?;
    wire.inside("ip route add 2001:db8:1::/48 dev eth0")?;
    wire.inside("ip route add 2001:db8:2::/48 via fd99::9 dev eth0")?;
    wire.inside("ip route add 2001:db8:3::/48 via 2001:db8:ffff::9 dev eth0 onlink")?;
    let before = wire.picture()?;

    let container = run_in(containerd, &wire)?;
    let sees = |script: &str| container.shell(script).output()?.success();
    let address = sees("ip address show eth0")?;
    let mac = wire.inside("cat /sys/class/net/eth0/address")?;
    for part in ["mtu 1400", "10.99.0.2/24", "fd99::2/64", mac.trim(), "LOWER_UP"] {
        assert!(address.contains(part), "{part} is missing in: {address}");
    }
    let routes = sees("ip route; ip -6 route; ip neigh show")?;
    for part in [
        "default via 10.99.0.1 dev eth0",
        "192.0.2.0/24 dev eth0 scope link  src 10.99.0.2",
        "198.51.100.0/24 via 203.0.113.9 dev eth0 onlink",
        "default via fd99::1 dev eth0",
        "2001:db8:1::/48 dev eth0",
        "2001:db8:2::/48 via fd99::9 dev eth0",
        "2001:db8:3::/48 via 2001:db8:ffff::9 dev eth0",
        "10.99.0.77 dev eth0 lladdr 02:00:00:00:00:77",
        "fd99::77 dev eth0 lladdr 02:00:00:00:00:78",
    ] {
        assert!(routes.contains(part), "{part} is missing in: {routes}");
    }
    sees("ping -c 1 -w 10 10.99.0.1 && ping6 -c 1 -w 10 fd99::1")?;
    wire.world("busybox ping -c 1 -w 10 10.99.0.2 && busybox ping6 -c 1 -w 10 fd99::2")?;

    // 16 MiB each way, over IPv4 out of the guest and over IPv6 into it. The receiver's input stays
    // open, for a sender gives up when the other side has no more to say.
    let script = "head -c 16777216 /dev/urandom > /tmp/file; nc 10.99.0.1 7000 < /tmp/file; sha256sum < /tmp/file";
    let received = wire.start_in_world("busybox nc -l -p 7000 | sha256sum", Input::Pipe)?;
    let sent = sees(script)?;
    assert_eq!(received.wait()?.success()?, sent);
    let received = container.shell("nc -l -p 7001 | sha256sum").stdin(Input::Pipe).attach()?;
    let sent = wire.world(
        "head -c 16777216 /dev/urandom > /tmp/$$; until busybox nc fd99::2 7001 < /tmp/$$; do :; done; sha256sum < /tmp/$$; rm /tmp/$$",
    )?;
    assert_eq!(received.wait()?.success()?, sent);

    container.remove()?;
    wire.becomes(&before)
}

/// With the container's network in place of `eth0`, and what `ctr` says of it.
fn run_in<'a>(containerd: &'a Containerd, wire: &Wire) -> Result<Container<'a>> {
    containerd.run(["sleep", "1000"]).option("--with-ns", &wire.with_ns()).start()
}

#[test]
fn container_has_the_network_of_its_namespace() -> Result<()> {
    if !only_a_vm("a guest's interfaces") {
        return Ok(());
    }
    scenario(carries_everything)
}

#[test]
fn macvtap_carries_the_same() -> Result<()> {
    if !only_a_vm("the model macvtap") || !has_macvtap("the model macvtap")? {
        return Ok(());
    }
    with_model("macvtap", carries_everything)
}

/// The kernel moves the frames with it, and without it the VMM does.
#[test]
fn vhost_net_is_used_unless_it_is_switched_off() -> Result<()> {
    const DEVICE: &str = "/dev/vhost-net";
    if !only_a_vm("vhost-net") || hypervisor_under_test()? != "qemu" {
        return Ok(());
    }
    if File::options().read(true).write(true).open(DEVICE).is_err() {
        eprintln!("left out, for this host has no vhost-net");
        return Ok(());
    }
    for switched_off in [false, true] {
        let lines = format!("[hypervisor.qemu]\ndisable_vhost_net = {switched_off}\n");
        let configuration = Configuration::with(&lines)?;
        Scenario::new().configuration(&configuration.file()).run(|containerd| {
            let wire = Wire::new(containerd)?;
            let container = run_in(containerd, &wire)?;
            let ping = ["ping", "-c", "1", "-w", "10", "10.99.0.1"];
            container.exec(ping).output()?.success()?;
            let vmms = parts_of(containerd.mark(), Part::Vmm)?;
            let [vmm] = &vmms[..] else { bail!("not exactly one VMM: {vmms:?}") };
            let open = fs::read_dir(format!("/proc/{}/fd", vmm.pid))?.flatten();
            let uses = open
                .filter_map(|entry| fs::read_link(entry.path()).ok())
                .any(|file| file == Path::new(DEVICE));
            assert_eq!(uses, !switched_off);
            container.remove()
        })?;
    }
    Ok(())
}

/// 100 kB in a second, and as much at once in the beginning.
#[test]
fn guest_of_firecracker_sends_no_faster_than_it_may() -> Result<()> {
    if hypervisor_under_test()? != "firecracker" {
        return Ok(());
    }
    let lines = "[hypervisor.firecracker]\ntx_rate_limiter_max_rate = 800000\n";
    let configuration = Configuration::with(lines)?;
    Scenario::new().configuration(&configuration.file()).run(|containerd| {
        let wire = Wire::new(containerd)?;
        let container = run_in(containerd, &wire)?;
        let received = wire.start_in_world("busybox nc -l -p 7000 | wc -c", Input::Pipe)?;
        let started = Instant::now();
        let send = "head -c 300000 /dev/zero | nc 10.99.0.1 7000";
        container.shell(send).output()?.success()?;
        assert_eq!(received.wait()?.success()?, "300000\n");
        let taken = started.elapsed();
        ensure!(taken > Duration::from_millis(1500), "300 kB took {taken:?}");
        container.remove()
    })
}

/// As Docker has one in each container's namespace, whatever its version and however it calls the
/// runtime.
#[test]
fn name_server_of_the_namespace_is_asked() -> Result<()> {
    scenario(|containerd| {
        let wire = Wire::new(containerd)?;
        let before = wire.picture()?;
        let (name, address) = ("www.example.org", Ipv4Addr::new(203, 0, 113, 7));
        let server = wire.name_server(Ipv4Addr::new(127, 0, 0, 11), name, address)?;
        let file = containerd.directory().join("resolv.conf");
        fs::write(&file, "nameserver 127.0.0.11\noptions ndots:0\n")?;
        let lookup = format!(
            "nslookup {name} | grep {address}; nslookup other > /dev/null || echo no other"
        );
        let run = containerd.shell(&lookup).option("--with-ns", &wire.with_ns());
        let told = run.bind(&file, "/etc/resolv.conf", "rbind:ro").output()?;
        assert_eq!(told.text(), format!("Address: {address}\nno other\n"), "{told}");
        drop(server);
        wire.becomes(&before)
    })
}

#[test]
fn pod_has_two_interfaces_and_one_localhost() -> Result<()> {
    scenario(|containerd| {
        let wire = Wire::new(containerd)?;
        wire.plug("net1", 1)?;
        wire.inside("ip link set net1 mtu 9000")?;
        wire.world("ip link set w1 mtu 9000")?;
        let annotated = |kind: &str| {
            let run = containerd.run(["sleep", "1000"]).option("--with-ns", &wire.with_ns());
            run.option("--annotation", &format!("io.kubernetes.cri.container-type={kind}"))
        };
        let pod = annotated("sandbox").start()?;
        let sandbox = format!("io.kubernetes.cri.sandbox-id={}", pod.id());
        let member = annotated("container").option("--annotation", &sandbox).start()?;

        for number in [0, 1] {
            let world = format!("10.99.{number}.1");
            member.exec(["ping", "-c", "1", "-w", "10", &world]).output()?.success()?;
        }
        // In one packet, where the MTU allows that.
        member
            .exec(["ping", "-s", "8900", "-c", "1", "-w", "10", "10.99.1.1"])
            .output()?
            .success()?;
        let server = pod.shell("echo over localhost | nc -l -p 7002").attach()?;
        let client = member.shell("until nc 127.0.0.1 7002; do :; done").output()?;
        assert_eq!(client.success()?, "over localhost\n");
        server.wait()?.success()?;
        member.remove()?;
        pod.remove()
    })
}

#[test]
fn model_none_leaves_the_namespace_alone() -> Result<()> {
    if !only_a_vm("the model none") {
        return Ok(());
    }
    with_model("none", |containerd| {
        let wire = Wire::new(containerd)?;
        let before = wire.picture()?;
        let container = run_in(containerd, &wire)?;
        assert_eq!(wire.picture()?, before);
        let devices = container.exec(["ls", "/sys/class/net"]).output()?.success()?;
        assert_eq!(devices, "lo\n");
        container.remove()
    })
}

fn namespace_survives_the_death_of(part: Part) -> Result<()> {
    if !only_a_vm(&format!("death of {part:?}")) {
        return Ok(());
    }
    scenario(|containerd| is_left_clean_by_the_death_of(part, containerd))
}

fn is_left_clean_by_the_death_of(part: Part, containerd: &Containerd) -> Result<()> {
    let wire = Wire::new(containerd)?;
    let before = wire.picture()?;
    let container = run_in(containerd, &wire)?;
    assert_ne!(wire.picture()?, before, "nothing was joined");
    for process in parts_of(containerd.mark(), part)? {
        process.signal(Signal::KILL)?;
    }
    container.wait()?;
    container.remove()?;
    // The engine's cleaning up after a dead shim goes on when the container is deleted already.
    wire.becomes(&before)?;

    // And it can be used again.
    let container = run_in(containerd, &wire)?;
    container.exec(["ping", "-c", "1", "-w", "10", "10.99.0.1"]).output()?.success()?;
    container.remove()
}

#[test]
fn namespace_survives_the_death_of_the_vmm() -> Result<()> {
    namespace_survives_the_death_of(Part::Vmm)
}

#[test]
fn namespace_survives_the_death_of_the_shim() -> Result<()> {
    namespace_survives_the_death_of(Part::Shim)
}

#[test]
fn namespace_with_a_macvtap_survives_the_same_deaths() -> Result<()> {
    if !only_a_vm("the model macvtap") || !has_macvtap("the model macvtap")? {
        return Ok(());
    }
    for part in [Part::Vmm, Part::Shim] {
        with_model("macvtap", |containerd| is_left_clean_by_the_death_of(part, containerd))
            .with_context(|| format!("{part:?} is killed"))?;
    }
    Ok(())
}

/// Where it is the next `delete` that takes away what a dead proxy has left.
#[test]
fn namespace_survives_the_same_deaths_by_hand() -> Result<()> {
    if !only_a_vm("parts of a sandbox") {
        return Ok(());
    }
    for part in [Part::Proxy, Part::Vmm] {
        CommandLine::scenario(Runtime::Kata, |host| {
            let wire = Wire::by_hand(host)?;
            let before = wire.picture()?;
            host.run_idle_with("c", |spec| spec.in_network(&wire.path()))?;
            assert_ne!(wire.picture()?, before, "nothing was joined");
            host.await_part(part)?.signal(Signal::KILL)?;
            host.ends("c")?;
            host.succeed(&["delete", &host.id("c")])?;
            assert_eq!(wire.picture()?, before);
            Ok(())
        })
        .with_context(|| format!("{part:?} is killed"))?;
    }
    Ok(())
}

#[test]
fn hosts_namespace_is_refused_in_one_sentence() -> Result<()> {
    if !only_a_vm("the refusal of the host's network") {
        return Ok(());
    }
    scenario(|containerd| {
        let before = picture_of_this_machine()?;
        let refused = |run: Run<'_>| run.output()?.failure();
        let flag = refused(containerd.run(["true"]).flag("--net-host"))?;
        assert!(flag.contains("host's network"), "{flag}");
        let path = &format!("network:/proc/{}/ns/net", containerd.pid());
        let path = refused(containerd.run(["true"]).option("--with-ns", path))?;
        assert!(path.contains("is the host's own"), "{path}");
        assert_eq!(picture_of_this_machine()?, before);
        Ok(())
    })
}

/// By hand, where the host's is the one that the runtime is called in.
#[test]
fn hosts_namespace_is_refused_by_the_command_line_and_nothing_in_it_is_touched() -> Result<()> {
    if !only_a_vm("the refusal of the host's network") {
        return Ok(());
    }
    CommandLine::scenario(Runtime::Kata, |host| {
        let wire = Wire::by_hand(host)?;
        let pictures = || anyhow::Ok([wire.picture()?, picture_of_this_machine()?]);
        let before = pictures()?;
        let without = |spec: Spec| spec.set("/linux/namespaces", json!([{ "type": "mount" }]));
        for (bundle, why) in [
            (host.bundle("a", "true", without)?, "the host's network cannot be shared with a VM"),
            (host.bundle("b", "true", |spec| spec.in_network(&wire.path()))?, "is the host's own"),
        ] {
            let bundle = bundle.display().to_string();
            let create = host.command(&["create", "--bundle", &bundle, &host.id("c")]);
            let mut inside = Command::new("nsenter");
            inside.arg(format!("--net={}", wire.path()));
            inside.arg(create.get_program()).args(create.get_args());
            let refusal = Client::spawn(inside, Input::Nothing)?.wait()?.failure()?;
            assert!(refusal.contains(why), "{refusal}");
            assert_eq!(refusal.trim().lines().count(), 1, "{refusal}");
            assert_eq!(host.status("c")?, "gone");
            assert_eq!(pictures()?, before, "{why}");
        }
        Ok(())
    })
}

#[test]
fn namespace_of_another_sandbox_is_refused_while_that_lives() -> Result<()> {
    if !only_a_vm("two VMs in one namespace") {
        return Ok(());
    }
    scenario(|containerd| {
        let wire = Wire::new(containerd)?;
        let first = run_in(containerd, &wire)?;
        let joined = wire.picture()?;
        let second = containerd.run(["true"]).option("--with-ns", &wire.with_ns());
        let refusal = second.output()?.failure()?;
        assert!(refusal.contains(first.id()) && refusal.contains("give each its own"), "{refusal}");
        assert_eq!(wire.picture()?, joined, "the first one's network was touched");
        first.exec(["ping", "-c", "1", "-w", "10", "10.99.0.1"]).output()?.success()?;
        first.remove()
    })
}

#[test]
fn empty_namespace_is_told_and_so_is_an_interface_that_comes_late() -> Result<()> {
    if !only_a_vm("what the shim says of an empty namespace") {
        return Ok(());
    }
    scenario(|containerd| {
        let wire = Wire::without_cable(containerd)?;
        let container = run_in(containerd, &wire)?;
        let says = |text: &str| containerd.log().expect(text, Deadline::for_command());
        says(&format!(
            "no interface but lo is in the network namespace /run/netns/{}",
            wire.container()
        ))?;
        wire.plug("late0", 0)?;
        says("the network interface late0 came after the first container had started")?;
        container.remove()
    })
}

/// What is added to the interface that was there at boot, and one more interface.
const ADDED: &str = "ip address add 10.99.0.3/24 dev eth0 && \
    ip route add 192.0.2.0/24 via 10.99.0.1 dev eth0 && ip link set eth0 mtu 1300";
const ONE_MORE: &str = "ip link add net1 type veth peer name far && ip address add 10.97.0.2/24 dev net1 && ip link set net1 up";

const SHOW: &str = "ip address show eth0; ip route; ping -c 1 -w 10 10.99.0.1";

const TAKEN_BACK: &str = "ip address del 10.99.0.3/24 dev eth0; ip route del 192.0.2.0/24; \
    ip link set eth0 mtu 1500";

fn may_ping(spec: Spec) -> Spec {
    ["bounding", "effective", "permitted"].into_iter().fold(spec, |spec, set| {
        spec.push(&format!("/process/capabilities/{set}"), json!("CAP_NET_RAW"))
    })
}

fn shows_what_was_added(output: &str) {
    for part in [
        "10.99.0.2/24",
        "10.99.0.3/24",
        "mtu 1300",
        "192.0.2.0/24 via 10.99.0.1",
        "1 packets received",
    ] {
        assert!(output.contains(part), "{part} is missing in: {output}");
    }
}

/// As an engine's hook may do it: it runs when the VM has booted.
#[test]
fn what_a_hook_adds_to_an_interface_is_taken_along() -> Result<()> {
    scenario(|containerd| {
        let wire = Wire::new(containerd)?;
        let before = wire.picture()?;
        let rootfs = containerd.directory().join("rootfs");
        Image::unpack(&rootfs)?;
        let script = format!("ip netns exec {} sh -c '{ADDED}'", wire.container());
        let hook = json!([{
            "path": "/bin/sh", "args": ["sh", "-c", script],
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        }]);
        let spec = Spec::new(&rootfs, &["sh", "-c", SHOW]).set("/hooks/createRuntime", hook);
        let spec = may_ping(spec.in_network(&wire.path()));
        shows_what_was_added(&containerd.shell("").spec(spec).output()?.success()?);
        wire.inside(TAKEN_BACK)?;
        wire.becomes(&before)
    })
}

/// By hand, between create and start.
#[test]
fn what_comes_beside_an_interface_is_taken_along_or_refused() -> Result<()> {
    CommandLine::scenario(Runtime::under_test(), |host| {
        let wire = Wire::by_hand(host)?;
        let before = wire.picture()?;
        let bundle = host.bundle("c", SHOW, |spec| may_ping(spec.in_network(&wire.path())))?;
        host.create("c", &bundle)?;
        wire.inside(ADDED)?;
        host.succeed(&["start", &host.id("c")])?;
        host.ends("c")?;
        shows_what_was_added(&host.output_of("c"));
        host.succeed(&["delete", &host.id("c")])?;
        wire.inside(TAKEN_BACK)?;
        wire.becomes(&before)?;

        if only_a_vm("a VM that has booted with its interfaces") {
            host.create("c", &bundle)?;
            wire.inside(ONE_MORE)?;
            let started = host.call(&["start", &host.id("c")])?;
            let said = started.failure()?;
            let sentence = "the network interface net1 came after the VM had booted";
            assert!(said.contains(sentence), "{said}");
            host.succeed(&["delete", "--force", &host.id("c")])?;
        }
        Ok(())
    })
}

/// Or, with a hypervisor that takes none any more, refused. `ctr run --cni` fills the namespace
/// between create and start, through the process id that it was told, like Docker.
#[test]
fn interface_that_comes_before_the_start_is_plugged_in() -> Result<()> {
    scenario(|containerd| {
        let wire = Wire::without_cable(containerd)?;
        let script = "ip address show eth0; ip route; ping -c 1 -w 10 10.98.0.1";
        let output = wire.ctr_with_cni(containerd, script)?;
        if ["krun", "firecracker"].contains(&hypervisor_under_test()?.as_str()) {
            let error = output.failure()?;
            let sentence = "the network interface eth0 came after the VM had booted, and its hypervisor takes no network devices then";
            assert!(error.contains(sentence), "{error}");
            // ctr leaves what it could not start.
            let id = containerd.ctr(["task", "ls", "-q"])?.success()?;
            containerd.ctr(["task", "delete", "--force", id.trim()])?.success()?;
            containerd.ctr(["container", "delete", id.trim()])?.success()?;
            return Ok(());
        }
        let output = output.success()?;
        for part in ["10.98.0.2/24", "default via 10.98.0.1 dev eth0", "1 packets received"] {
            assert!(output.contains(part), "{part} is missing in: {output}");
        }
        Ok(())
    })
}
