//! Containers of a hypervisor that shares no files: their root file systems are images on disks,
//! and what they see of the host are copies. They run with a configuration (`KATA_E2E_CONFIG`) that
//! chooses Firecracker, and are left out with any other.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use anyhow::{Result, ensure};
use kata_e2e::{Container, Containerd, Deadline, Run, await_link, scenario};

const KIND: &str = "io.kubernetes.cri.container-type";
const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";

/// A pod's containers, its first one among them, that there is room for at a time.
const ROOM: usize = 8;

/// Where the runtime has the image of a container that is alone, in a directory of its sandbox's.
const IMAGES: &str = "/var/lib/kata-containers";

/// Where it keeps images for the next container.
const KEPT: &str = "/var/lib/kata-containers/.cache";

/// Runs the test if it is one for the configuration.
fn without_share(test: impl FnOnce(&Containerd) -> Result<()>) -> Result<()> {
    let file = std::env::var_os("KATA_E2E_CONFIG");
    let configuration = file.map(fs::read_to_string).transpose()?.unwrap_or_default();
    if !configuration.contains("hypervisor_name = \"firecracker\"") {
        eprintln!("left out, for it is not Firecracker that is tested: copies and images");
        return Ok(());
    }
    scenario(test)
}

#[test]
fn root_file_system_is_the_images_and_can_be_changed() -> Result<()> {
    without_share(|containerd| {
        let script = "set -e
            cat /etc/hostname; stat -c '%a %U' /tmp; [ -x /bin/sh ]
            echo mine > /tmp/new; echo changed > /etc/hostname; rm /bin/ls; mkdir -p /a/b; ln -s b /a/link; chmod 1777 /a
            cat /tmp/new /etc/hostname; readlink /a/link; [ ! -e /bin/ls ]; mount | grep -c ' / '";
        for _ in 0..2 {
            let output = containerd.shell(script).output()?.success()?;
            assert_eq!(output, "image\n1777 root\nmine\nchanged\nb\n1\n");
        }
        let refused = containerd.shell("echo x > /new").flag("--read-only").output()?;
        ensure!(refused.failure()?.contains("Read-only"), "a read-only root was written to");
        Ok(())
    })
}

#[test]
fn second_container_has_the_image_of_the_first_and_nothing_of_what_that_wrote() -> Result<()> {
    without_share(|containerd| {
        if containerd.directory().metadata()?.created().is_err() {
            eprintln!("left out, for snapshots here do not tell when they were made: kept images");
            return Ok(());
        }
        let image = |one: &Container<'_>| Path::new(IMAGES).join(one.id()).join("1");
        let start = || containerd.run(["sleep", "1000"]).start();
        let first = start()?;
        let script = "echo mine > /tmp/new; echo changed > /etc/hostname; rm /bin/ls
            cat /tmp/new /etc/hostname";
        assert_eq!(first.shell(script).output()?.success()?, "mine\nchanged\n");
        let is_kept = await_link(&image(&first), Path::new(KEPT), Deadline::for_command())?;
        ensure!(is_kept, "no image is kept");
        let inode = fs::metadata(image(&first))?.ino();
        first.remove()?;

        let second = start()?;
        assert_eq!(fs::metadata(image(&second))?.ino(), inode);
        let script = "cat /etc/hostname; [ -x /bin/ls ] && [ ! -e /tmp/new ] && echo whole";
        assert_eq!(second.shell(script).output()?.success()?, "image\nwhole\n");
        second.remove()
    })
}

#[test]
fn mounts_are_copies_of_what_there_was() -> Result<()> {
    without_share(|containerd| {
        let shared = containerd.directory().join("shared");
        fs::create_dir_all(shared.join("below"))?;
        fs::write(shared.join("below/file"), "from the host\n")?;
        fs::set_permissions(shared.join("below/file"), fs::Permissions::from_mode(0o640))?;
        chown(shared.join("below/file"), Some(1000), Some(1001))?;
        symlink("below/file", shared.join("link"))?;
        let large = vec![b'x'; (3 << 20) + 17];
        let file = containerd.directory().join("single");
        fs::write(&file, &large)?;
        let container = containerd
            .run(["sleep", "1000"])
            .bind(&shared, "/shared", "rbind:rw")
            .bind(&shared, "/read-only", "rbind:ro")
            .bind(&file, "/single", "rbind:ro")
            .start()?;
        let script = "cat /shared/link; stat -c '%a %u %g' /shared/below/file; wc -c < /single
            echo new > /shared/new && cat /shared/new; echo x 2>/dev/null > /read-only/new || echo refused";
        let output = container.shell(script).output()?.success()?;
        let length = large.len();
        assert_eq!(output, format!("from the host\n640 1000 1001\n{length}\nnew\nrefused\n"));
        ensure!(!shared.join("new").exists(), "a copy has changed what it is a copy of");
        fs::write(shared.join("below/file"), "later\n")?;
        let again = container.exec(["cat", "/shared/below/file"]).output()?.success()?;
        assert_eq!(again, "from the host\n");
        container.remove()
    })
}

/// Writes a version of a volume as the kubelet does, with these keys and no others.
fn publish(volume: &Path, version: &str, keys: &[&str]) -> Result<()> {
    let files = volume.join(version);
    fs::create_dir_all(&files)?;
    for key in keys {
        fs::write(files.join(key), format!("{version}\n"))?;
    }
    let before = fs::read_link(volume.join("..data")).ok();
    symlink(version, volume.join("..data_tmp"))?;
    fs::rename(volume.join("..data_tmp"), volume.join("..data"))?;
    for key in keys.iter().filter(|key| !volume.join(key).exists()) {
        symlink(format!("..data/{key}"), volume.join(key))?;
    }
    let Some(before) = before.map(|before| volume.join(before)) else { return Ok(()) };
    for entry in fs::read_dir(&before)? {
        let key = entry?.file_name();
        if !files.join(&key).exists() {
            fs::remove_file(volume.join(&key))?;
        }
    }
    Ok(fs::remove_dir_all(before)?)
}

#[test]
fn updates_of_a_volume_of_kubernetes_are_followed() -> Result<()> {
    without_share(|containerd| {
        let volume = containerd.directory().join("volume");
        publish(&volume, "..1", &["kept", "old"])?;
        let container =
            containerd.run(["sleep", "1000"]).bind(&volume, "/config", "rbind:ro").start()?;
        let all = "cd /config; ls -A; cat kept";
        let output = container.shell(all).output()?.success()?;
        assert_eq!(output, "..1\n..data\nkept\nold\n..1\n");
        for (version, new) in [("..2", "new"), ("..3", "newer")] {
            publish(&volume, version, &["kept", new])?;
            let arrived =
                format!("[ \"$(ls -A /config | xargs)\" = '{version} ..data kept {new}' ]");
            let script = format!("until {arrived}; do sleep 0.1; done; {all}");
            let output = container.shell(&script).output()?.success()?;
            assert_eq!(output, format!("{version}\n..data\nkept\n{new}\n{version}\n"));
        }
        container.remove()
    })
}

#[test]
fn what_has_no_copy_is_refused_in_one_sentence() -> Result<()> {
    without_share(|containerd| {
        let refused = |path: &str, words: &str| {
            let source = containerd.directory().join(path);
            let run = containerd.run(["true"]).bind(&source, "/data", "rbind:ro");
            let error = run.output()?.failure()?;
            ensure!(
                error.contains("/data") && error.contains(words),
                "{words:?} is not in: {error}"
            );
            anyhow::Ok(())
        };
        let file = fs::File::create(containerd.directory().join("large"))?;
        file.set_len((16 << 20) + 1)?;
        refused("large", "more than 16 MiB")?;
        let _socket = UnixListener::bind(containerd.directory().join("socket"))?;
        refused("socket", "socket, fifo or device")
    })
}

fn member<'a>(run: Run<'a>, pod: &Container<'_>) -> Run<'a> {
    run.option("--annotation", &format!("{KIND}=container"))
        .option("--annotation", &format!("{SANDBOX}={}", pod.id()))
}

#[test]
fn empty_dir_is_one_directory_for_all_containers_of_a_pod() -> Result<()> {
    without_share(|containerd| {
        let volume = containerd.directory().join("pods/1/volumes/kubernetes.io~empty-dir/data");
        fs::create_dir_all(&volume)?;
        fs::set_permissions(&volume, fs::Permissions::from_mode(0o2777))?;
        let sandbox = containerd.run(["sleep", "1000"]);
        let pod = sandbox.option("--annotation", &format!("{KIND}=sandbox")).start()?;
        let start = |options| {
            member(containerd.run(["sleep", "1000"]).bind(&volume, "/data", options), &pod).start()
        };
        let (one, other) = (start("rbind:rw")?, start("rbind:ro")?);
        let says = |container: &Container<'_>, script: &str, expected: &str| {
            assert_eq!(container.shell(script).output()?.success()?, expected);
            anyhow::Ok(())
        };
        says(&one, "stat -c %a /data; echo one > /data/file; chmod 1777 /data", "2777\n")?;
        says(&other, "cat /data/file; echo two 2>/dev/null > /data/file || echo no", "one\nno\n")?;
        one.remove()?;
        // What it has made of it stays, and is what others find.
        let later = start("rbind:rw")?;
        says(&later, "cat /data/file; stat -c %a /data; echo three > /data/file", "one\n1777\n")?;
        says(&other, "cat /data/file", "three\n")?;
        ensure!(fs::read_dir(&volume)?.next().is_none(), "the host has it, too");
        later.remove()?;
        other.remove()?;
        pod.remove()
    })
}

#[test]
fn pods_members_come_and_go_and_too_many_at_a_time_are_refused() -> Result<()> {
    without_share(|containerd| {
        let sandbox = containerd.run(["sleep", "1000"]);
        let pod = sandbox.option("--annotation", &format!("{KIND}=sandbox")).start()?;
        let start = |word: &str| {
            let script = format!("echo {word} > /tmp/mine; exec sleep 1000");
            member(containerd.shell(&script), &pod).start()
        };
        let has = |one: &Container<'_>, word: &str| {
            assert_eq!(one.exec(["cat", "/tmp/mine"]).output()?.success()?, format!("{word}\n"));
            anyhow::Ok(())
        };
        let members = (1..ROOM).map(|number| start(&number.to_string()));
        let mut members = members.collect::<Result<Vec<_>>>()?;
        for (number, one) in (1..ROOM).zip(&members) {
            has(one, &number.to_string())?;
        }
        let one_more = member(containerd.run(["true"]), &pod).output()?.failure()?;
        ensure!(one_more.contains("no room for the disk"), "{one_more}");
        members.remove(2).remove()?;
        // In the place of the one that has gone, with a root file system of its own.
        members.push(start("late")?);
        has(&members[ROOM - 2], "late")?;
        has(&members[0], "1")?;
        for one in members {
            one.remove()?;
        }
        pod.remove()
    })
}
