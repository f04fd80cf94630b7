//! The hypervisors beside each other: who is asked for runs the VM, or the refusal says why not.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use anyhow::{Result, ensure};
use kata_e2e::{Containerd, Deadline, Part, Scenario, Wire, only_a_vm, parts_of};
use kata_hypervisor::kvm_obstacle;

/// Runs a container under `io.containerd.kata-HYPERVISOR.v2`, whose one VMM must be `program`, and
/// whose guest has no network interfaces but its own.
fn name_chooses(hypervisor: &'static str, program: &str) -> Result<()> {
    if !only_a_vm("the choice of a hypervisor") {
        return Ok(());
    }
    Scenario::unconfigured().run(|containerd| {
        let run = containerd.run(["sleep", "1000"]).under_hypervisor(hypervisor);
        let container = run.start()?;
        vmm_is(containerd, program)?;
        let interfaces = container.exec(["ls", "/sys/class/net"]).output()?.success()?;
        assert_eq!(interfaces, "lo\n");
        container.remove()
    })
}

/// There is one VMM, whose program's name begins so.
fn vmm_is(containerd: &Containerd, program: &str) -> Result<()> {
    let vmms = parts_of(containerd.mark(), Part::Vmm)?;
    let [vmm] = vmms.as_slice() else { anyhow::bail!("not exactly one VMM: {vmms:?}") };
    let name = vmm.program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    ensure!(name.starts_with(program), "the VMM is {}", vmm.describe());
    Ok(())
}

#[test]
fn no_choice_is_krun_where_that_can_run_the_sandbox_and_qemu_elsewhere() -> Result<()> {
    if !only_a_vm("the choice of a hypervisor") {
        return Ok(());
    }
    Scenario::unconfigured().run(|containerd| {
        let wire = Wire::new(containerd)?;
        let run = containerd.run(["sleep", "1000"]).option("--with-ns", &wire.with_ns());
        let container = run.start()?;
        vmm_is(containerd, if kvm_obstacle().is_none() { "kata-krun" } else { "qemu-system-" })?;
        container.exec(["ping", "-c", "1", "-w", "10", "10.99.0.1"]).output()?.success()?;
        container.remove()?;
        // Its namespace may be filled until it starts.
        let container = containerd.run(["sleep", "1000"]).start()?;
        vmm_is(containerd, "qemu-system-")?;
        container.remove()
    })
}

#[test]
fn runtimes_name_chooses_qemu() -> Result<()> {
    name_chooses("qemu", "qemu-system-")
}

#[test]
fn runtimes_name_chooses_krun_or_tells_what_it_lacks_here() -> Result<()> {
    if kvm_obstacle().is_none() {
        return name_chooses("krun", "kata-krun");
    }
    is_refused("krun", "cannot set up krun for the VM: KVM does not work here")
}

#[test]
fn cloud_hypervisor_and_firecracker_are_refused_where_there_is_no_kvm() -> Result<()> {
    if kvm_obstacle().is_none() {
        eprintln!("left out, for KVM works here: what is said where it does not");
        return Ok(());
    }
    for hypervisor in ["clh", "fc"] {
        is_refused(hypervisor, "or use QEMU, which does without")?;
    }
    Ok(())
}

#[test]
fn driver_says_as_much_as_the_configuration_wants() -> Result<()> {
    if !only_a_vm("what a driver logs") {
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("configuration.toml");
    fs::write(&file, "[hypervisor.qemu]\nlog_level = \"debug\"\n")?;
    Scenario::new().configuration(&file).run(|containerd| {
        containerd.run(["true"]).output()?.success()?;
        let command_line = "level=debug msg=\"/usr/bin/qemu-system-";
        containerd.log().expect(command_line, Deadline::for_command())
    })
}

/// Everything that a guest asks of a file server is among the calls that its filter lets through.
#[test]
fn krun_serves_files_from_behind_its_walls() -> Result<()> {
    if kvm_obstacle().is_some() {
        eprintln!("left out, for KVM does not work here: krun's walls");
        return Ok(());
    }
    if !only_a_vm("a VMM") {
        return Ok(());
    }
    Scenario::unconfigured().run(|containerd| {
        let shared = containerd.directory().join("shared");
        fs::create_dir(&shared)?;
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o777))?;
        let run = containerd.run(["sleep", "1000"]).under_hypervisor("krun");
        let container = run.bind(&shared, "/shared", "rbind:rw").start()?;
        container.shell(FILES).cwd("/shared").output()?.success()?;
        let theirs = "set -e; echo own > theirs; mkdir -m 700 private; mv theirs private/; cat private/theirs";
        let users = container.shell(theirs).user("1000:1000").cwd("/shared").output()?;
        assert_eq!(users.success()?, "own\n");
        assert_eq!(fs::metadata(shared.join("private"))?.uid(), 1000);

        let vmms = parts_of(containerd.mark(), Part::Vmm)?;
        let [vmm] = vmms.as_slice() else { anyhow::bail!("not exactly one VMM: {vmms:?}") };
        for task in fs::read_dir(format!("/proc/{}/task", vmm.pid))? {
            let status = fs::read_to_string(task?.path().join("status"))?;
            for line in ["NoNewPrivs:\t1", "Seccomp:\t2", "NSpid:"] {
                ensure!(status.contains(line), "{line:?} is not in: {status}");
            }
        }
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", vmm.pid))?;
        let writable: Vec<_> = mounts.lines().filter_map(writable_mount).collect();
        ensure!(
            writable.contains(&"/vsock")
                && writable.iter().all(|at| at.starts_with("/share/") || *at == "/vsock"),
            "more can be changed than the guest's own: {mounts}"
        );
        for kind in ["mnt", "net", "ipc", "uts", "pid"] {
            let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}"));
            ensure!(namespace("self")? != namespace(&vmm.pid.to_string())?, "it has the host's {kind}");
        }
        container.remove()
    })
}

/// Where a line of /proc/PID/mountinfo (proc_pid_mountinfo(5)) says that files can be changed.
fn writable_mount(line: &str) -> Option<&str> {
    let mut fields = line.split(' ').skip(4);
    let (at, options) = (fields.next()?, fields.next()?);
    options.split(',').all(|option| option != "ro").then_some(at)
}

/// Each of these is another request of FUSE's.
const FILES: &str = "set -e
    mkdir -p dir/sub; echo one > dir/file; cat dir/file; ln dir/file dir/sub/hard; ln -s file dir/soft; readlink dir/soft
    mv dir/file moved; mv moved dir/sub/; chmod 4750 dir/sub/moved; chown 12:34 dir/sub/moved; touch -d 2001-02-03 dir/sub/moved
    mkfifo pipe; mknod null c 1 3; mknod socket p; stat pipe null; ls -la . dir; find . >/dev/null; df . >/dev/null
    dd if=/dev/zero of=big bs=64k count=32 conv=fsync 2>/dev/null; truncate -s 12345 big; fallocate -l 100000 big
    dd if=big of=/dev/null bs=4k 2>/dev/null; echo more >> big; cp -a dir copy; sync
    rm -r dir copy; rm pipe null socket big; test -z \"$(ls)\"";

fn is_refused(hypervisor: &'static str, sentence: &str) -> Result<()> {
    if !only_a_vm("what a hypervisor lacks") {
        return Ok(());
    }
    Scenario::unconfigured().run(|containerd| {
        let run = containerd.run(["true"]).under_hypervisor(hypervisor);
        let error = run.output()?.failure()?;
        ensure!(error.contains(sentence), "{sentence:?} is not in: {error}");
        Ok(())
    })
}
