//! Several containers in one sandbox, as Kubernetes makes them: the engine names the sandbox by
//! annotation.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use kata_e2e::{Container, Containerd, Run, only_a_vm, scenario};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

const KIND: &str = "io.kubernetes.cri.container-type";
const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";
/// Made anew by every kernel that boots.
const BOOT_ID: [&str; 2] = ["cat", "/proc/sys/kernel/random/boot_id"];

#[test]
fn members_of_a_pod_share_a_vm_and_nothing_else() -> Result<()> {
    if !only_a_vm("one VM for a whole pod") {
        return Ok(());
    }
    scenario(|containerd| {
        let pod = containerd
            .run(["sleep", "1000"])
            .option("--annotation", &format!("{KIND}=sandbox"))
            .start()?;
        let member = containerd
            .shell("echo mine > /tmp/file; exec sleep 1000")
            .option("--annotation", &format!("{KIND}=container"))
            .option("--annotation", &format!("{SANDBOX}={}", pod.id()))
            .start()?;
        assert_eq!(member.pid()?, pod.pid()?, "both are the one VMM to the host");
        let boot_id = pod.exec(BOOT_ID).output()?.success()?;
        assert_eq!(member.exec(BOOT_ID).output()?.success()?, boot_id);
        assert_eq!(member.exec(["cat", "/tmp/file"]).output()?.success()?, "mine\n");
        pod.exec(["cat", "/tmp/file"]).output()?.failure()?;
        let processes = member.exec(["ps", "-o", "args"]).output()?.success()?;
        assert_eq!(processes.matches("sleep 1000").count(), 1, "{processes}");

        // A member comes and goes, and the sandbox stays.
        member.kill("KILL")?;
        assert_eq!(member.wait()?, 137);
        member.remove()?;
        assert_eq!(pod.exec(["echo", "still here"]).output()?.success()?, "still here\n");
        pod.remove()
    })
}

/// As CRI makes a pod: the sandbox's container first.
fn start_pod(containerd: &Containerd) -> Result<Container<'_>> {
    pod(containerd.shell("trap exit TERM; while :; do sleep 1000 & wait $!; done")).start()
}

fn pod(run: Run<'_>) -> Run<'_> {
    run.option("--annotation", &format!("{KIND}=sandbox"))
}

/// A container for a pod that exists.
fn member<'a>(run: Run<'a>, pod: &Container<'_>) -> Run<'a> {
    run.option("--annotation", &format!("{KIND}=container"))
        .option("--annotation", &format!("{SANDBOX}={}", pod.id()))
}

/// Names a namespace of the pod as CRI does, by the process id that the engine knows.
fn namespace(pod: &Container<'_>, kind: &str) -> Result<String> {
    Ok(format!("{kind}:/proc/{}/ns/{kind}", pod.pid()?))
}

#[test]
fn process_ids_are_shared_by_those_that_want_it() -> Result<()> {
    if !only_a_vm("process ids in a pod") {
        return Ok(());
    }
    scenario(|containerd| {
        let pod = start_pod(containerd)?;
        let alone = member(containerd.run(["sleep", "2000"]), &pod).start()?;
        let with = |run| {
            Ok::<_, anyhow::Error>(member(run, &pod).option("--with-ns", &namespace(&pod, "pid")?))
        };
        let first = with(containerd.shell("sleep 3000 & exec sleep 3001"))?.start()?;
        let second = with(containerd.run(["sleep", "4000"]))?.start()?;

        let seen = |container: &Container<'_>| -> Result<String> {
            container.exec(["ps", "-o", "args"]).output()?.success()
        };
        for container in [&pod, &first, &second] {
            let processes = seen(container)?;
            for process in ["while :", "sleep 3000", "sleep 3001", "sleep 4000"] {
                assert!(processes.contains(process), "no {process} among: {processes}");
            }
            assert!(!processes.contains("sleep 2000"), "another's: {processes}");
        }
        assert!(!seen(&alone)?.contains("sleep 4000"));
        // Init is the sandbox's, and what is shared is also within reach of signals.
        let init = second.shell("tr '\\0' ' ' </proc/1/cmdline").output()?.success()?;
        assert!(init.contains("while :"), "{init}");
        let kill = "kill $(ps -o pid,args | awk '$2 == \"sleep\" && $3 == 3001 { print $1 }')";
        second.shell(kill).output()?.success()?;
        // Its other process does not outlive it, although the init of the namespace does.
        let gone = "while ps -o args | grep -q '^sleep 300'; do sleep 0.1; done";
        second.shell(gone).output()?.success()?;
        assert_eq!(first.wait()?, 143);
        first.remove()?;
        second.remove()?;
        alone.remove()?;
        pod.remove()
    })
}

/// A tmpfs of two MiB on the host, for as long as this lives.
struct SharedMemory(PathBuf);

impl SharedMemory {
    fn mount(containerd: &Containerd) -> Result<Self> {
        let directory = containerd.directory().join("shm");
        fs::create_dir(&directory)?;
        mount("shm", &directory, "tmpfs", MountFlags::NOEXEC, c"size=2m")
            .context("cannot mount")?;
        Ok(Self(directory))
    }

    fn give<'a>(&self, run: Run<'a>) -> Run<'a> {
        run.bind(&self.0, "/dev/shm", "rbind:rw")
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // If it fails, the leak check tells.
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn host_name_ipc_and_shared_memory_are_the_pods() -> Result<()> {
    if !only_a_vm("what the containers of a pod share") {
        return Ok(());
    }
    scenario(|containerd| {
        // CRI makes a tmpfs for a pod, and gives it to each container.
        let memory = SharedMemory::mount(containerd)?;
        let pod = pod(memory.give(containerd.run(["sleep", "1000"]))).start()?;
        let first = member(memory.give(containerd.run(["sleep", "1000"])), &pod).start()?;
        let second = member(memory.give(containerd.run(["sleep", "1000"])), &pod).start()?;
        let own = member(containerd.run(["sleep", "1000"]), &pod).start()?;

        let hostname = |container: &Container<'_>| container.exec(["hostname"]).output()?.success();
        assert_eq!(hostname(&first)?, hostname(&pod)?);
        let ipc = |container: &Container<'_>| {
            let namespaces = "readlink /proc/self/ns/ipc; readlink /proc/self/ns/uts";
            container.shell(namespaces).output()?.success()
        };
        assert_eq!(ipc(&first)?, ipc(&pod)?);
        assert_eq!(ipc(&second)?, ipc(&pod)?);

        first.shell("echo from the first > /dev/shm/word").output()?.success()?;
        assert_eq!(second.exec(["cat", "/dev/shm/word"]).output()?.success()?, "from the first\n");
        let filling = "dd if=/dev/zero of=/dev/shm/large bs=1M count=3 2>&1 | grep 'No space left'";
        second.shell(filling).output()?.success()?;
        own.exec(["cat", "/dev/shm/word"]).output()?.failure()?;
        // It stays for as long as any container has it.
        first.remove()?;
        assert_eq!(second.exec(["cat", "/dev/shm/word"]).output()?.success()?, "from the first\n");
        for container in [own, second, pod] {
            container.remove()?;
        }
        Ok(())
    })
}
