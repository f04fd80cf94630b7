//! Root file systems on block devices: containerd's snapshotters blockfile and devicemapper. The VM gets the device as a disk; the host does not
//! even mount it.

use std::fs;
use std::process::Command;

use anyhow::{Result, ensure};
use kata_e2e::{Containerd, LoopDevice, Scenario, ThinPool, has_loop_devices, only_a_vm, scenario};

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

/// The scratch file is what all root file systems begin as; some releases make it by themselves, others take it as it is.
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

/// Nothing of the container's root file system is mounted on the host, and the container can use and change it.
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

#[test]
fn device_mappers_thin_device_becomes_a_disk() -> Result<()> {
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
    Scenario::new().plugins(&tables).run(|containerd| is_a_disk(containerd, "devmapper"))
}

#[test]
fn block_device_that_is_named_reaches_the_container() -> Result<()> {
    if !has_loop_devices() || !only_a_vm("a disk in place of the host's device") {
        eprintln!("left out, for this machine has no loop devices: devices of a container");
        return Ok(());
    }
    scenario(|containerd| {
        let file = containerd.directory().join("disk");
        fs::write(&file, [b"from the host\n".as_slice(), &vec![0; 1 << 20]].concat())?;
        let device = LoopDevice::of(&file)?;
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
        Ok(())
    })
}
