//! Pods as the kubelet makes them.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, ensure};
use kata_e2e::{
    Client, Deadline, Input, LoopDevice, PackageRoot, Part, Suite, has_loop_devices, only_a_vm,
    parts_of,
};
use kata_kubernetes::messages::{
    Capability, HugepageLimit, Int64Value, LinuxContainerResources, NamespaceMode,
};
use kata_kubernetes::{Container, Node, Pod, node, node_under, node_with};

/// Stays until it is asked to end, and says so.
const SERVER: &str =
    "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 1000 & wait $!; done";

/// Made anew by every kernel that boots.
const BOOT_ID: &str = "cat /proc/sys/kernel/random/boot_id";

#[test]
fn containers_of_a_pod_share_its_vm_and_its_network() -> Result<()> {
    node(share_a_vm_and_a_network)
}

#[test]
fn containers_of_a_pod_share_them_under_containerd_2() -> Result<()> {
    let daemon = PackageRoot::fetch(Suite::Sid, &["containerd", "runc"])?.daemon();
    ensure!(daemon.version()?.contains(" 2."), "this is not containerd 2");
    node_with(daemon, share_a_vm_and_a_network)
}

fn share_a_vm_and_a_network(node: &Node<'_>) -> Result<()> {
    let pod = node.pod("web").dns("192.0.2.53", "cluster.local").start()?;
    ensure!(pod.is_ready()?, "the pod is not ready");
    let server = pod.shell("server", "echo hello | nc -l -p 80; exec sleep 9876").start()?;
    let client = pod.shell("client", SERVER).start()?;

    assert_eq!(client.says(BOOT_ID)?, server.says(BOOT_ID)?);
    if only_a_vm("a kernel of the pod's own") {
        ensure!(
            client.says(BOOT_ID)? != fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim()
        );
    }
    assert_eq!(client.says("hostname")?, "web");
    assert_eq!(client.says("cat /etc/resolv.conf")?, "search cluster.local\nnameserver 192.0.2.53");
    assert_eq!(client.exec("ps | grep 'sleep 987[6]'", 0)?.code, 1, "each has its own processes");

    assert_eq!(client.says("until nc 127.0.0.1 80; do :; done")?, "hello");
    let address = pod.address()?;
    ensure!(client.says("ip addr show dev eth0")?.contains(&address));
    node.containerd().on_host(&format!("busybox ping -c 1 -w 10 {address}"))?.success()?;

    logs(&pod, "client", "ready")?;
    assert_eq!(client.stop(10)?, 7);
    logs(&pod, "client", "bye")?;
    client.remove()?;
    let again = pod.shell("client", "echo again; exit 3").attempt(1).start()?;
    logs(&pod, "client", "again")?;
    assert_eq!(again.ends()?, 3);
    pod.remove()
}

/// Waits until a container's log, which the engine writes, has this line of its standard output.
fn logs(pod: &Pod<'_>, name: &str, line: &str) -> Result<()> {
    let mut tail = Command::new("tail");
    tail.args(["--lines=+1", "--follow=name", "--retry"]).arg(pod.log(name));
    Client::spawn(tail, Input::Nothing)?.expect(&format!("stdout F {line}\n"))
}

#[test]
fn ports_of_a_pod_are_forwarded() -> Result<()> {
    node(|node| {
        let pod = node.pod("ports").start()?;
        let page = "echo a page > index.html; exec httpd -f -p 127.0.0.1:8080 -h .";
        let web = pod.shell("web", page).start()?;
        pod.shell("echo", "exec nc -ll -p 8081 -e cat").start()?;
        pod.shell("count", "exec nc -ll -p 8082 -e wc -c").start()?;
        for port in [8080, 8081, 8082] {
            web.says(&format!("until netstat -ltn | grep ':{port} '; do :; done"))?;
        }

        let mut forward = pod.forward(8081)?;
        forward.send("hello\n")?;
        assert_eq!(forward.says()?, "hello");
        let mut second = pod.forward(8080)?;
        second.send("GET / HTTP/1.0\r\n\r\n")?;
        while !second.says()?.ends_with("a page") {}
        forward.send("hello again\n")?;
        assert_eq!(forward.says()?, "hello again");
        drop((forward, second));

        // Both ways at a time, and each ends for itself.
        let mut sent = Vec::new();
        File::open("/dev/urandom")?.take(4 << 20).read_to_end(&mut sent)?;
        assert_eq!(exchange(&pod.dial(8081)?, &sent)?, sent);
        assert_eq!(exchange(&pod.dial(8082)?, &sent)?, format!("{}\n", sent.len()).as_bytes());

        // A port on which nobody listens.
        let error = pod.forward(8079).and_then(|mut nobody| nobody.says()).unwrap_err();
        ensure!(format!("{error:#}").contains("connection re"), "{error:#}");
        let dialled = pod.dial(8079).and_then(|nobody| exchange(&nobody, b""));
        let error = dialled.unwrap_err();
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        let expected = [io::ErrorKind::ConnectionRefused, io::ErrorKind::ConnectionReset];
        ensure!(kind.is_some_and(|kind| expected.contains(&kind)), "{error:#}");
        // So many that no more are carried, until one ends.
        if only_a_vm("a bound for forwarded connections") {
            let held = (0..64).map(|_| pod.dial(8081)).collect::<Result<Vec<_>>>()?;
            held.iter().try_for_each(answers)?;
            answers(&pod.dial(8081)?).unwrap_err();
            drop(held);
            let deadline = Deadline::for_command();
            while answers(&pod.dial(8081)?).is_err() {
                ensure!(!deadline.remaining().is_zero(), "no connection is carried any more");
            }
        }
        pod.remove()
    })
}

#[test]
fn ports_close_with_the_owner_of_the_pod() -> Result<()> {
    if !only_a_vm("an owner of forwarded ports") {
        return Ok(());
    }
    node(|node| {
        let pod = node.pod("ports").start()?;
        let server = pod.shell("server", "exec nc -ll -p 80 -e cat").start()?;
        server.says("until netstat -ltn | grep ':80 '; do :; done")?;
        let open = pod.dial(80)?;
        answers(&open)?;
        for shim in parts_of(node.containerd().mark(), Part::Shim)? {
            shim.signal(rustix::process::Signal::KILL)?;
        }
        answers(&open).unwrap_err();
        let deadline = Deadline::for_command();
        let refused = loop {
            match pod.dial(80) {
                Err(error) => break error,
                Ok(_) => ensure!(!deadline.remaining().is_zero(), "somebody listens still"),
            }
        };
        let kind = refused.downcast_ref::<io::Error>().map(io::Error::kind);
        ensure!(kind == Some(io::ErrorKind::ConnectionRefused), "{refused:#}");
        server.ends()?;
        pod.remove()
    })
}

/// Has one byte come back, and leaves the connection open.
fn answers(mut echo: &TcpStream) -> Result<()> {
    echo.set_read_timeout(Some(Deadline::for_command().remaining()))?;
    echo.write_all(b"?")?;
    Ok(echo.read_exact(&mut [0])?)
}

/// Sends something while it reads, and shuts down when all is sent. What came until the other side
/// did the same.
fn exchange(mut connection: &TcpStream, sent: &[u8]) -> Result<Vec<u8>> {
    connection.set_read_timeout(Some(Deadline::for_command().remaining()))?;
    let mut heard = Vec::new();
    thread::scope(|scope| {
        let sender = scope.spawn(move || {
            let mut connection = connection;
            connection.write_all(sent)?;
            connection.shutdown(Shutdown::Write)
        });
        connection.read_to_end(&mut heard)?;
        sender.join().unwrap_or_else(|_| Err(io::Error::other("the sender panicked")))
    })?;
    Ok(heard)
}

#[test]
fn volumes_of_kubernetes_are_followed() -> Result<()> {
    node(|node| {
        let volumes = node.containerd().directory().join("volumes");
        let (config, empty) =
            (volumes.join("kubernetes.io~configmap/config"), volumes.join("empty"));
        fs::create_dir_all(&empty)?;
        publish(&config, "..1", "first")?;

        let pod = node.pod("volumes").start()?;
        let reader = pod
            .shell("reader", SERVER)
            .mount(&config, "/etc/config", true)
            .mount(&empty, "/shared", false)
            .start()?;
        let writer = pod.shell("writer", SERVER).mount(&empty, "/shared", false).start()?;

        assert_eq!(reader.says("cat /etc/config/key")?, "first");
        // Of files on the share nobody in the guest would be told that they have changed.
        let mount = reader.says("grep ' /etc/config ' /proc/mounts")?;
        ensure!(!mount.contains("virtiofs"), "it is the host's: {mount}");
        publish(&config, "..2", "second")?;
        assert_eq!(reader.says("until grep second /etc/config/key; do :; done")?, "second");
        assert_eq!(reader.exec("echo no > /etc/config/key", 0)?.code, 1, "it is read-only");

        writer.says("echo from-writer > /shared/file")?;
        assert_eq!(reader.says("cat /shared/file")?, "from-writer");
        assert_eq!(fs::read_to_string(empty.join("file"))?, "from-writer\n");
        pod.remove()
    })
}

/// A fifo is one in both containers only if its directory is.
#[test]
fn containers_of_a_pod_meet_in_its_volumes() -> Result<()> {
    node(|node| {
        let plan = node.pod("meeting");
        let volumes = node.containerd().directory().join("pods").join(plan.uid()).join("volumes");
        let (empty, path) = (volumes.join("kubernetes.io~empty-dir/data"), volumes.join("path"));
        fs::create_dir_all(&empty)?;
        fs::create_dir_all(&path)?;
        let pod = plan.start()?;
        let container = |name: &'static str| {
            let reads = name == "reader";
            let plan = pod.shell(name, SERVER).mount(&empty, "/empty", reads);
            plan.mount(&path, "/path", false).start()
        };
        let (writer, reader) = (container("writer")?, container("reader")?);
        writer.says("mkfifo /empty/fifo /path/fifo")?;
        meet(&writer, &reader)?;
        assert_eq!(reader.exec("touch /empty/file", 0)?.code, 1, "it is read-only");

        // Who was there first may leave.
        writer.stop(10)?;
        writer.remove()?;
        let third = container("third")?;
        meet(&third, &reader)?;
        pod.remove()?;
        ensure!(empty.join("fifo").exists() && path.join("fifo").exists(), "the volumes stay");
        Ok(())
    })
}

fn meet(writer: &Container<'_>, reader: &Container<'_>) -> Result<()> {
    for volume in ["/empty", "/path"] {
        let read = format!("cat {volume}/fifo > /heard 2>&1 < /dev/null &");
        assert_eq!(reader.exec(&read, 0)?.code, 0);
        writer.says(&format!("echo {volume} > {volume}/fifo"))?;
        assert_eq!(reader.says(&format!("until grep {volume} /heard; do :; done"))?, volume);
    }
    Ok(())
}

/// Puts a version of a ConfigMap in place, as the kubelet does: the directory is complete before a
/// link is turned to it.
fn publish(volume: &Path, version: &str, text: &str) -> Result<()> {
    let directory = volume.join(version);
    fs::create_dir_all(&directory)?;
    fs::write(directory.join("key"), format!("{text}\n"))?;
    let next = volume.join("..data_tmp");
    symlink(version, &next)?;
    fs::rename(&next, volume.join("..data")).context("cannot turn the link")?;
    let key = volume.join("key");
    if fs::symlink_metadata(&key).is_err() {
        symlink("..data/key", key)?;
    }
    Ok(())
}

#[test]
fn limits_are_those_of_the_pod_specification() -> Result<()> {
    node(|node| {
        let pod = node.pod("limits").start()?;
        // As a kubelet does where the host's cgroups are of the second version alone: no swap, and
        // a container's processes are killed together.
        let files = [("memory.swap.max", "0"), ("memory.oom.group", "1")];
        let unified: HashMap<_, _> = files
            .into_iter()
            .filter(|_| only_a_vm("files of cgroups of version 2 on any host"))
            .map(|(file, value)| (file.to_owned(), value.to_owned()))
            .collect();
        // None, of each size that a host has; its guest may not have all of them.
        let in_a_vm = only_a_vm("a limit for huge pages that there are none of");
        let sizes = if in_a_vm { vec!["2MB", "1GB", "16GB"] } else { Vec::new() };
        let no_huge_pages =
            |size: &str| HugepageLimit { page_size: size.to_owned(), ..Default::default() };
        let limits = |mebibytes: i64, quota| LinuxContainerResources {
            memory_limit_in_bytes: mebibytes << 20,
            cpu_period: 100_000,
            cpu_quota: quota,
            cpu_shares: 512,
            // A processor of the container's own, as the CPU manager's static policy gives it.
            cpuset_cpus: last_processor(),
            cpuset_mems: "0".to_owned(),
            hugepage_limits: sizes.iter().copied().map(no_huge_pages).collect(),
            unified: unified.clone(),
            ..Default::default()
        };
        let container = pod.shell("limited", SERVER).resources(limits(64, 50_000)).start()?;
        assert_eq!(memory_limit(&container)?, 64 << 20);
        container.update(limits(96, 80_000))?;
        assert_eq!(memory_limit(&container)?, 96 << 20);
        if in_a_vm {
            assert_eq!(may_run_on(node)?, last_processor());
        }

        let stats = container.stats()?;
        ensure!(stats.memory.working_set_bytes.value > 0, "no memory in {stats:?}");
        ensure!(stats.cpu.usage_core_nano_seconds.value > 0, "no processor time in {stats:?}");

        if in_a_vm {
            let files = "cd /sys/fs/cgroup; cat memory.swap.max memory.oom.group";
            assert_eq!(container.says(files)?, "0\n1");
        }

        // 40 MiB that a process holds at once. Its shell ends with it only where it is to.
        let hog = "dd if=/dev/zero bs=40M count=1 of=/dev/null; echo dd: $?; exec sleep 1000";
        let mut each_alone = limits(24, 100_000);
        each_alone.unified.remove("memory.oom.group");
        let alone = pod.shell("alone", hog).resources(each_alone).start()?;
        logs(&pod, "alone", "dd: 137")?;
        ensure!(alone.is_running()? && container.is_running()?);
        if in_a_vm {
            let together = pod.shell("together", hog).resources(limits(24, 100_000)).start()?;
            assert_eq!(together.ends()?, 137);
        }
        pod.remove()
    })
}

/// The number of the last processor of this machine.
fn last_processor() -> String {
    let all = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    all.trim().rsplit([',', '-']).next().unwrap_or_default().to_owned()
}

/// Where the pod's VM may run, as the kernel lists it.
fn may_run_on(node: &Node<'_>) -> Result<String> {
    let vmms = parts_of(node.containerd().mark(), Part::Vmm)?;
    let vmm = vmms.first().context("no VMM")?;
    let status = fs::read_to_string(format!("/proc/{}/status", vmm.pid))?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    Ok(list.context("no list of processors")?.trim().to_owned())
}

/// What the container finds as its limit, with either version of cgroups.
fn memory_limit(container: &Container<'_>) -> Result<u64> {
    let limit = container.says(
        "cd /sys/fs/cgroup; cat memory.max 2>/dev/null || cat memory/memory.limit_in_bytes",
    )?;
    limit.parse().context(limit)
}

#[test]
fn security_context_holds() -> Result<()> {
    node(|node| {
        let pod = node.pod("secure").start()?;
        let strict = pod.shell("strict", SERVER).security(|context| {
            context.run_as_user = Some(Int64Value { value: 1000, ..Default::default() }).into();
            context.run_as_group = Some(Int64Value { value: 1000, ..Default::default() }).into();
            context.supplemental_groups = vec![4242];
            context.readonly_rootfs = true;
            context.no_new_privs = true;
            let drop_capabilities = vec!["ALL".to_owned()];
            context.capabilities =
                Some(Capability { drop_capabilities, ..Default::default() }).into();
        });
        let strict = strict.start()?;
        assert_eq!(strict.says("id -u; id -g")?, "1000\n1000");
        ensure!(strict.says("id -G")?.split(' ').any(|group| group == "4242"));
        assert_ne!(strict.exec("echo > /tmp/file", 0)?.code, 0);
        ensure!(strict.says("grep CapEff /proc/self/status")?.ends_with("\t0000000000000000"));
        ensure!(strict.says("grep NoNewPrivs /proc/self/status")?.ends_with("\t1"));

        pod.remove()
    })
}

#[test]
fn privileged_container_is_fenced() -> Result<()> {
    if !only_a_vm("a privileged container that is fenced") {
        return Ok(());
    }
    node(|node| {
        let pod = node.pod("privileged").privileged().start()?;
        let container = pod.shell("server", SERVER).security(|context| context.privileged = true);
        let container = container.start()?;
        container.says("mount -t tmpfs none /mnt")?;
        let disks = container.says("ls /sys/block")?;
        for disk in fs::read_dir("/sys/block").context("cannot list the host's disks")? {
            let name = disk?.file_name();
            let name = name.to_str().context("a disk's name is not text")?;
            let of_every_kernel = name.starts_with("loop") || name.starts_with("ram");
            ensure!(
                of_every_kernel || !disks.lines().any(|disk| disk == name),
                "{name} of the host"
            );
        }
        pod.remove()
    })
}

#[test]
fn volumes_that_are_block_devices_reach_containers_as_such() -> Result<()> {
    if !has_loop_devices() || !only_a_vm("disks in place of the host's devices") {
        eprintln!("left out, for this machine has no loop devices: `volumeDevices`");
        return Ok(());
    }
    // What is chosen without a choice may take disks at boot only.
    node_under("qemu", |node| {
        let volume = |name: &str| {
            let file = node.containerd().directory().join(name);
            fs::write(&file, [b"of the host\n".as_slice(), &vec![0; 1 << 20]].concat())?;
            LoopDevice::of(&file)
        };
        let (data, fixed) = (volume("data")?, volume("fixed")?);
        let pod = node.pod("volumes").start()?;
        let container = |name: &str, attempt| {
            let container = pod.shell(name, SERVER).attempt(attempt);
            container
                .device(data.node(), "/dev/data", false)
                .device(fixed.node(), "/dev/fixed", true)
                .start()
        };
        let first = container("server", 0)?;
        for device in ["/dev/data", "/dev/fixed"] {
            assert_eq!(first.says(&format!("head -n 1 {device}"))?, "of the host");
        }
        first.says("printf 'of the pod_\\n' | dd of=/dev/data conv=notrunc 2>/dev/null")?;
        assert_eq!(first.exec("echo no > /dev/fixed", 0)?.code, 1);
        assert_eq!(first.stop(10)?, 7);
        first.remove()?;
        let second = container("server", 1)?;
        assert_eq!(second.says("head -n 1 /dev/data")?, "of the pod_");
        assert_eq!(second.stop(10)?, 7);
        second.remove()?;
        data.is_released()?;
        fixed.is_released()?;
        pod.remove()
    })
}

#[test]
fn processes_are_shared_where_the_pod_says_so() -> Result<()> {
    node(|node| {
        let pod = node.pod("shared").pid_namespace(NamespaceMode::POD).start()?;
        let first = pod.shell("first", "exec sleep 4321").start()?;
        let second = pod.shell("second", SERVER).start()?;
        second.says("ps -o args | grep -q 'sleep 432[1]'")?;
        second.says("kill -9 $(ps -o pid,args | awk '/sleep 432[1]/ { print $1 }')")?;
        assert_eq!(first.ends()?, 137);
        pod.remove()
    })
}

/// `kubectl debug --target`.
#[test]
fn container_that_is_to_look_into_another_sees_its_processes() -> Result<()> {
    node(|node| {
        let pod = node.pod("debugged").start()?;
        let server = pod.shell("server", "echo of the server > /file; exec sleep 4321").start()?;
        let debugger = pod.shell("debugger", SERVER).target(&server).start()?;
        assert_eq!(debugger.says("cat /proc/1/root/file")?, "of the server");
        let second = pod.shell("second", SERVER).target(&server).start()?;
        second.says("ps -o args | grep -q 'sleep 432[1]'")?;
        server.says("ps -o args | grep -q 'sleep 100[0]'")?;

        let sidecar = pod.shell("sidecar", SERVER).start()?;
        sidecar.says("! ps -o args | grep -q 'sleep 432[1]'")?;
        let third = pod.shell("third", SERVER).target(&server).start();
        if only_a_vm("one pid for all containers of a pod") {
            let refusal = format!("{:#}", third.err().context("it cannot be told which")?);
            ensure!(refusal.contains("leave out `--target`"), "{refusal}");
        }
        server.stop(0)?;
        for ended in [debugger, second] {
            assert_eq!(ended.ends()?, 137);
        }
        ensure!(sidecar.is_running()?);
        pod.remove()
    })
}

#[test]
fn probe_that_takes_too_long_is_ended() -> Result<()> {
    node(|node| {
        let pod = node.pod("probe").start()?;
        let container = pod.shell("server", SERVER).start()?;
        assert_eq!(container.exec("exit 5", 30)?.code, 5);
        let error = container.exec("echo start; exec sleep 5555", 1).unwrap_err();
        ensure!(format!("{error:#}").contains("timeout"), "{error:#}");
        assert_eq!(container.exec("ps | grep 'sleep 555[5]'", 0)?.code, 1, "the probe is gone");
        ensure!(container.is_running()?);
        pod.remove()
    })
}

#[test]
fn engine_that_was_killed_finds_its_pods_again() -> Result<()> {
    node(|node| {
        let pod = node.pod("lasting").start()?;
        let container = pod.shell("server", SERVER).start()?;
        node.containerd().kill_and_restart()?;
        ensure!(pod.is_ready()? && container.is_running()?);
        assert_eq!(container.says("echo alive")?, "alive");
        assert_eq!(container.stop(10)?, 7);
        pod.remove()
    })
}

#[test]
fn pod_whose_vm_was_killed_is_removed() -> Result<()> {
    if !only_a_vm("a VM that is killed") {
        return Ok(());
    }
    node(|node| {
        let pod = node.pod("doomed").start()?;
        let container = pod.shell("server", SERVER).start()?;
        let events = node.containerd().events()?;
        for vmm in parts_of(node.containerd().mark(), Part::Vmm)? {
            vmm.signal(rustix::process::Signal::KILL)?;
        }
        events.expect_exit(pod.id())?;
        assert_eq!(container.ends()?, 137);
        pod.remove()
    })
}
