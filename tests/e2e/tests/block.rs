//! Root file systems on block devices (containerd's snapshotters blockfile and devicemapper), and
//! block devices that a container uses as such, of containers that are alone and of those of a pod.
//! The VM gets the device as a disk; the host does not even mount it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kata_e2e::{
    Configuration, Container, Containerd, Image, LoopDevice, Part, Run, Scenario, Spec, ThinPool,
    has_loop_devices, hypervisor_under_test, only_a_vm, parts_of, scenario,
};
use rustix::process::Signal;
use serde_json::json;

const BLOCKFILE: &str = "
[plugins.'io.containerd.snapshotter.v1.blockfile']
root_path = '{directory}/blockfile'
scratch_file = '{directory}/scratch'
fs_type = 'ext4'
mount_options = []
recreate_scratch = true
";

/// Whether the engine on this machine has the snapshotter, which came with containerd 1.7.
fn has_blockfile() -> Result<bool> {
    let output = Command::new("containerd").args(["config", "default"]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).contains("snapshotter.v1.blockfile"))
}

/// The scratch file is what all root file systems begin as; some releases make it by themselves,
/// others take it as it is.
fn with_blockfile(test: impl FnOnce(&Containerd) -> Result<()>) -> Result<()> {
    if !has_loop_devices() {
        eprintln!(
            "left out, for this machine has no loop devices: containerd's blockfile snapshotter"
        );
        return Ok(());
    }
    if !has_blockfile()? {
        eprintln!("left out, for this machine's containerd has no blockfile snapshotter");
        return Ok(());
    }
    if !only_a_vm("a disk of a container's own") {
        return Ok(());
    }
    let scratch = tempfile::NamedTempFile::new()?;
    scratch.as_file().set_len(64 << 20)?;
    let made = Command::new("mkfs.ext4").arg("-q").arg(scratch.path()).status()?;
    ensure!(made.success(), "mkfs.ext4 has failed");
    let tables = BLOCKFILE
        .replace("{directory}/scratch", &scratch.path().display().to_string())
        .replace("recreate_scratch = true\n", "");
    Scenario::new().plugins(&tables).run(test)
}

/// Nothing of the container's root file system is mounted on the host, and the container can use
/// and change it.
fn is_a_disk(containerd: &Containerd, snapshotter: &str) -> Result<()> {
    let script = "grep -E '^/dev/vd[a-z]+ / ext4 ' /proc/mounts >/dev/null && cat /etc/hostname
        echo kept > /etc/hostname && cat /etc/hostname && exec sleep 1000";
    let (client, container) =
        containerd.shell(script).snapshotter(snapshotter).attach_and_keep()?;
    client.expect("image\nkept\n")?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let bundles = containerd.directory().join("state/io.containerd.runtime.v2.task");
    let mounted = mounts.lines().find(|line| line.contains(bundles.to_str().unwrap_or_default()));
    ensure!(mounted.is_none(), "the host has it mounted: {mounted:?}");
    let many = "dd if=/dev/zero of=/large bs=1M count=8 2>/dev/null; sync; stat -c %s /large";
    assert_eq!(container.shell(many).output()?.success()?, "8388608\n");
    container.kill("KILL")?;
    assert_eq!(client.wait()?.code, 137);
    // What was written is there for whoever runs the same root file system again.
    container.remove()
}

#[test]
fn blockfile_becomes_a_disk() -> Result<()> {
    with_blockfile(|containerd| is_a_disk(containerd, "blockfile"))
}

#[test]
fn read_only_root_on_a_disk_is_read_only() -> Result<()> {
    with_blockfile(|containerd| {
        let run = containerd.shell("cat /etc/hostname; echo x > /new").snapshotter("blockfile");
        let output = run.flag("--read-only").output()?;
        assert_eq!(output.text(), "image\n", "{output}");
        ensure!(String::from_utf8_lossy(&output.stderr).contains("Read-only"), "{output}");
        Ok(())
    })
}

fn with_thin_devices(
    scenario: Scenario,
    test: impl FnOnce(&Containerd) -> Result<()>,
) -> Result<()> {
    if !only_a_vm("a disk of a container's own") {
        return Ok(());
    }
    let Some(pool) = ThinPool::make()? else {
        eprintln!(
            "left out, for this machine has no thin devices: containerd's devicemapper snapshotter"
        );
        return Ok(());
    };
    let tables = format!(
        "[plugins.'io.containerd.snapshotter.v1.devmapper']\n\
         root_path = '{{directory}}/devmapper'\n\
         pool_name = '{}'\n\
         base_image_size = '128MB'\n",
        pool.name()
    );
    scenario.plugins(&tables).run(test)
}

#[test]
fn device_mappers_thin_device_becomes_a_disk() -> Result<()> {
    with_thin_devices(Scenario::new(), |containerd| is_a_disk(containerd, "devmapper"))
}

#[test]
fn thin_device_is_shared_where_the_configuration_says_so() -> Result<()> {
    let hypervisor = hypervisor_under_test()?;
    if !["qemu", "clh"].contains(&hypervisor.as_str()) {
        eprintln!("left out, for {hypervisor} has no key for it: root file systems in no disk");
        return Ok(());
    }
    let keys = format!("[hypervisor.{hypervisor}]\ndisable_block_device_use = true\n");
    let configuration = Configuration::with(&keys)?;
    with_thin_devices(Scenario::new().configuration(&configuration.file()), |containerd| {
        let script = "cat /etc/hostname; grep -c '^/dev/vd' /proc/mounts";
        let output = containerd.shell(script).snapshotter("devmapper").output()?;
        assert_eq!((output.text().as_str(), output.code), ("image\n0\n", 1), "{output}");
        Ok(())
    })
}

/// Whether there can be block devices, and a guest to have them.
fn can_pass_devices() -> bool {
    let can = has_loop_devices();
    if !can {
        eprintln!("left out, for this machine has no loop devices: devices of containers");
    }
    can && only_a_vm("a disk in place of the host's device")
}

#[test]
fn block_device_that_is_named_reaches_the_container() -> Result<()> {
    if !can_pass_devices() {
        return Ok(());
    }
    scenario(|containerd| {
        let device = device(containerd, "disk", "from the host\n")?;
        let node = device.node();
        let script = format!(
            "head -c 14 {node}; echo 'from the guest' | dd of={node} seek=8 conv=notrunc,fsync 2>/dev/null; ls /dev/vd* 2>/dev/null; :"
        );
        let output = containerd.shell(&script).option("--device", node).output()?;
        assert_eq!(output.success()?, "from the host\n");
        let written = fs::read(node)?;
        assert_eq!(&written[4096..4111], b"from the guest\n");
        // What is not named as a device is none: neither is a bind mount.
        let bound = containerd.shell("true").bind(node.as_ref(), "/disk", "rbind:rw").output()?;
        ensure!(bound.failure()?.contains("pass it as a device"), "a bind mount of a device");
        device.is_released()
    })
}

/// A megabyte in a second. Two more pass at once: the bucket is full in the beginning, and filled
/// for the time since then when it is first found empty.
#[test]
fn disk_of_firecracker_is_read_no_faster_than_it_may() -> Result<()> {
    if hypervisor_under_test()? != "firecracker" || !can_pass_devices() {
        return Ok(());
    }
    let lines = "[hypervisor.firecracker]\ndisk_rate_limiter_bw_max_rate = 8000000\n";
    let configuration = Configuration::with(lines)?;
    Scenario::new().configuration(&configuration.file()).run(|containerd| {
        let device = device_of(containerd, "disk", &vec![b'x'; 8 << 20])?;
        let node = device.node();
        let container = containerd.run(["sleep", "1000"]).option("--device", node).start()?;
        let started = Instant::now();
        let read = container.shell(&format!("cat {node} | wc -c")).output()?;
        assert_eq!(read.success()?, "8388608\n");
        let taken = started.elapsed();
        ensure!(taken > Duration::from_secs(6), "8 MiB took {taken:?}");
        container.remove()?;
        device.is_released()
    })
}

/// What is true of a VMM's descriptors when its disk is used as asked.
type Shown = fn(&OpenFile) -> bool;

/// Ways for QEMU to read and write disks, and what shows each.
const WAYS: [(&str, &str, Shown); 3] = [
    ("io_uring", "block_device_aio = \"io_uring\"", OpenFile::is_io_uring),
    (
        "native",
        "block_device_aio = \"native\"\nblock_device_cache_set = true\nblock_device_cache_direct = true",
        |file| file.is_loop_device() && file.flags & O_DIRECT != 0,
    ),
    (
        "without flushes",
        "block_device_cache_set = true\nblock_device_cache_noflush = true",
        OpenFile::is_loop_device,
    ),
];

/// open(2), on x86-64.
const O_DIRECT: u32 = 0o40000;
const O_ACCMODE: u32 = 0o3;

#[test]
fn disks_of_qemu_are_read_and_written_as_configured() -> Result<()> {
    if hypervisor_under_test()? != "qemu" {
        eprintln!("left out, for only QEMU has a choice: ways to read and write disks");
        return Ok(());
    }
    if !can_pass_devices() {
        return Ok(());
    }
    for (way, keys, shown) in WAYS {
        let configuration = Configuration::with(&format!("[hypervisor.qemu]\n{keys}\n"))?;
        Scenario::new().configuration(&configuration.file()).run(|containerd| {
            let device = device(containerd, "disk", "from the host\n")?;
            let node = device.node();
            let script = format!(
                "head -c 14 {node}; echo guest | dd of={node} seek=8 conv=notrunc,fsync 2>/dev/null; echo written; exec sleep 1000"
            );
            let run = containerd.shell(&script).option("--device", node);
            let (client, container) = run.attach_and_keep()?;
            client.expect("from the host\nwritten\n")?;
            let files = open_files(containerd)?;
            ensure!(files.iter().any(shown), "{way}: {files:?}");
            container.kill("KILL")?;
            client.wait()?;
            container.remove()?;
            assert_eq!(&fs::read(node)?[4096..4101], b"guest", "{way}");
            device.is_released()
        })?;
    }
    Ok(())
}

const KIND: &str = "io.kubernetes.cri.container-type";
const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";

/// As CRI makes a pod: the sandbox's container first.
fn pod(run: Run<'_>) -> Run<'_> {
    run.option("--annotation", &format!("{KIND}=sandbox"))
}

/// A container for a pod that exists.
fn member<'a>(run: Run<'a>, pod: &Container<'_>) -> Run<'a> {
    run.option("--annotation", &format!("{KIND}=container"))
        .option("--annotation", &format!("{SANDBOX}={}", pod.id()))
}

/// Whether the hypervisor under test takes disks while its VM runs; a member of a pod with a disk
/// is refused elsewhere.
fn takes_disks_later() -> Result<bool> {
    Ok(["qemu", "firecracker", "clh"].contains(&hypervisor_under_test()?.as_str()))
}

/// A block device in a file of a megabyte that begins with these words.
fn device(containerd: &Containerd, name: &str, words: &str) -> Result<LoopDevice> {
    device_of(containerd, name, &[words.as_bytes(), &vec![0; 1 << 20]].concat())
}

/// A block device with this content.
fn device_of(containerd: &Containerd, name: &str, content: &[u8]) -> Result<LoopDevice> {
    let file = containerd.directory().join(name);
    fs::write(&file, content)?;
    LoopDevice::of(&file)
}

/// A file that a process has open.
#[derive(Debug)]
struct OpenFile {
    /// What it is (proc_pid_fd(5)), by the name that the process has opened it by.
    target: PathBuf,
    /// Which file it is, whatever its name.
    file: FileNumber,
    /// Which device, if it is the node of one.
    device: u64,
    /// As of open(2).
    flags: u32,
}

impl OpenFile {
    fn is_loop_device(&self) -> bool {
        self.target.to_string_lossy().starts_with("/dev/loop")
    }

    fn is_io_uring(&self) -> bool {
        self.target.to_string_lossy().ends_with("[io_uring]")
    }
}

/// File system and inode.
type FileNumber = (u64, u64);

fn number(file: &fs::Metadata) -> FileNumber {
    (file.dev(), file.ino())
}

/// Whether the VMM has the device of this node open.
fn has_device_open(containerd: &Containerd, node: &str) -> Result<bool> {
    let device = fs::metadata(node)?.rdev();
    Ok(open_files(containerd)?.iter().any(|file| file.device == device))
}

/// What the VMM has open.
fn open_files(containerd: &Containerd) -> Result<Vec<OpenFile>> {
    let mut open = Vec::new();
    for vmm in parts_of(containerd.mark(), Part::Vmm)? {
        let entries = fs::read_dir(format!("/proc/{}/fd", vmm.pid))?;
        // What is closed by now is not open.
        open.extend(entries.flatten().filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            let metadata = fs::metadata(entry.path()).ok()?;
            let (file, device) = (number(&metadata), metadata.rdev());
            let number = entry.file_name().into_string().ok()?;
            let info = fs::read_to_string(format!("/proc/{}/fdinfo/{number}", vmm.pid)).ok()?;
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
            Some(OpenFile {
                target,
                file,
                device,
                flags: u32::from_str_radix(flags.trim(), 8).ok()?,
            })
        }));
    }
    Ok(open)
}

#[test]
fn containers_of_a_pod_share_a_device_that_goes_with_the_last_of_them() -> Result<()> {
    if !can_pass_devices() {
        return Ok(());
    }
    scenario(|containerd| {
        let pod = pod(containerd.run(["sleep", "1000"])).start()?;
        let device = device(containerd, "disk", "from the host\n")?;
        let node = device.node();
        let with_device =
            || member(containerd.run(["sleep", "2000"]), &pod).option("--device", node);
        if !takes_disks_later()? {
            let refused = with_device().output()?.failure()?;
            ensure!(refused.contains("choose qemu, clh or firecracker"), "{refused}");
            return pod.remove();
        }
        let (one, other) = (with_device().start()?, with_device().start()?);
        let reads = format!("head -c 14 {node}");
        assert_eq!(one.shell(&reads).output()?.success()?, "from the host\n");
        let writes = format!("printf 'from the guest' | dd of={node} conv=notrunc 2>/dev/null");
        one.shell(&writes).output()?.success()?;
        assert_eq!(other.shell(&reads).output()?.success()?, "from the guest");
        pod.shell(&reads).output()?.failure().context("who was not given it has it")?;
        end(one)?;
        assert_eq!(other.shell(&reads).output()?.success()?, "from the guest");
        let has_it = || has_device_open(containerd, node);
        ensure!(has_it()?, "the VMM has not opened what its guest reads");
        end(other)?;
        ensure!(!has_it()?, "the VMM keeps what was taken away");
        assert_eq!(&fs::read(containerd.directory().join("disk"))?[..14], b"from the guest");
        device.is_released()?;
        pod.remove()
    })
}

/// All files of a directory and those below it.
fn files_in(directory: &Path) -> Result<BTreeSet<FileNumber>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.is_dir() {
            found.append(&mut files_in(&path)?);
        } else {
            found.insert(number(&metadata));
        }
    }
    Ok(found)
}

/// A member of a pod that may read a device, and not write to it.
fn reader(containerd: &Containerd, pod: &Container<'_>, node: &str) -> Result<Spec> {
    let rootfs = containerd.directory().join("rootfs");
    Image::unpack(&rootfs)?;
    let number = fs::metadata(node)?.rdev();
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let device = json!({ "path": "/dev/data", "type": "b", "major": major, "minor": minor });
    let rule = json!({ "allow": true, "type": "b", "major": major, "minor": minor, "access": "r" });
    Ok(Spec::new(&rootfs, &["sleep", "2000"])
        .set("/annotations", json!({ KIND: "container", SANDBOX: pod.id() }))
        .set("/linux/devices", json!([device]))
        .push("/linux/resources/devices", rule))
}

#[test]
fn read_only_device_comes_into_a_pod_whose_root_is_on_a_disk() -> Result<()> {
    if !can_pass_devices() || !takes_disks_later()? {
        return Ok(());
    }
    with_thin_devices(Scenario::new(), |containerd| {
        let pod = pod(containerd.run(["sleep", "1000"]).snapshotter("devmapper")).start()?;
        let device = device(containerd, "disk", "from the host\n")?;
        let node = Path::new(device.node());
        let spec = reader(containerd, &pod, device.node())?;
        let container = containerd.shell("").spec(spec).start()?;
        let script = "head -c 14 /dev/data; echo x 2>/dev/null >/dev/data || echo no";
        assert_eq!(container.shell(script).output()?.success()?, "from the host\nno\n");
        let files = open_files(containerd)?;
        let number = fs::metadata(node)?.rdev();
        let flags: Vec<_> =
            files.iter().filter(|file| file.device == number).map(|file| file.flags).collect();
        let is_for_reading = |flags: &u32| flags & O_ACCMODE == 0;
        ensure!(!flags.is_empty() && flags.iter().all(is_for_reading), "{flags:?}");
        end(container)?;
        device.is_released()?;
        pod.remove()
    })
}

/// Kills and removes a container.
fn end(container: Container<'_>) -> Result<()> {
    container.kill("KILL")?;
    assert_eq!(container.wait()?, 137);
    container.remove()
}

#[test]
fn devices_come_and_go_as_often_as_wanted_but_not_too_many_at_a_time() -> Result<()> {
    if !can_pass_devices() || !takes_disks_later()? {
        return Ok(());
    }
    scenario(|containerd| {
        let pod = pod(containerd.run(["sleep", "1000"])).start()?;
        for round in 0..6 {
            let words = format!("disk number {round}\n");
            let device = device(containerd, &format!("disk{round}"), &words)?;
            let reads = containerd.shell(&format!("head -c 14 {}", device.node()));
            let output = member(reads, &pod).option("--device", device.node()).output()?;
            assert_eq!(output.success()?, words);
            device.is_released()?;
        }
        let devices = ["a", "b", "c", "d", "e"].map(|name| device(containerd, name, name));
        let devices = devices.into_iter().collect::<Result<Vec<_>>>()?;
        let all = |devices: &[LoopDevice]| {
            devices.iter().fold(member(containerd.run(["true"]), &pod), |run, device| {
                run.option("--device", device.node())
            })
        };
        let refused = all(&devices).output()?.failure()?;
        ensure!(refused.contains("no room for the disk"), "{refused}");
        all(&devices[..4]).output()?.success()?;
        devices.iter().try_for_each(LoopDevice::is_released)?;
        pod.remove()
    })
}

#[test]
fn device_is_free_when_vmm_or_shim_was_killed() -> Result<()> {
    if !can_pass_devices() || !takes_disks_later()? {
        return Ok(());
    }
    for part in [Part::Vmm, Part::Shim] {
        scenario(|containerd| {
            let pod = pod(containerd.run(["sleep", "1000"])).start()?;
            let device = device(containerd, "disk", "from the host\n")?;
            let busy = format!("while :; do cat {} >/dev/null; done", device.node());
            let busy = member(containerd.shell(&busy), &pod).option("--device", device.node());
            let busy = busy.start()?;
            for victim in parts_of(containerd.mark(), part)? {
                victim.signal(Signal::KILL)?;
            }
            busy.wait()?;
            busy.remove()?;
            pod.remove()?;
            device.is_released()
        })?;
    }
    Ok(())
}

#[test]
fn members_of_a_pod_have_root_file_systems_on_disks_of_their_own() -> Result<()> {
    with_blockfile(|containerd| {
        let on_disk = |script: &str| containerd.shell(script).snapshotter("blockfile");
        if !["qemu", "clh"].contains(&hypervisor_under_test()?.as_str()) {
            let pod = pod(containerd.run(["sleep", "1000"])).start()?;
            let refused = member(on_disk("true"), &pod).output()?.failure()?;
            let words = ["loop device", "as the blockfile snapshotter has them, in pods"];
            ensure!(words.iter().any(|words| refused.contains(words)), "{refused}");
            return pod.remove();
        }
        let pod = pod(on_disk("exec sleep 1000")).start()?;
        let root = "grep -E '^/dev/vd[a-z]+ / ext4 ' /proc/mounts | cut -d ' ' -f 1";
        let first = member(on_disk("echo first > /file; exec sleep 1000"), &pod).start()?;
        let second = member(on_disk("echo second > /file; exec sleep 1000"), &pod).start()?;
        let disk = |container: &Container<'_>| container.shell(root).output()?.success();
        ensure!(disk(&first)? != disk(&second)? && disk(&first)? != disk(&pod)?);
        for (container, word) in [(&first, "first\n"), (&second, "second\n")] {
            assert_eq!(container.shell("cat /file").output()?.success()?, word);
        }
        let roots = containerd.directory().join("blockfile");
        let open = || {
            let roots = files_in(&roots)?;
            let open: BTreeSet<_> =
                open_files(containerd)?.into_iter().map(|file| file.file).collect();
            anyhow::Ok(open.intersection(&roots).count())
        };
        assert_eq!(open()?, 3);
        end(first)?;
        assert_eq!(open()?, 2);
        let third = member(on_disk("cat /etc/hostname; ls /file"), &pod).output()?;
        assert_eq!(third.text(), "image\n", "{third}");
        assert_eq!(second.shell("cat /file").output()?.success()?, "second\n");
        end(second)?;
        pod.remove()
    })
}
