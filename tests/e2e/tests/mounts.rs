//! What of the host a container sees, and what of it it can change.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::PathBuf;

use anyhow::{Result, ensure};
use kata_e2e::{Containerd, hypervisor_under_test, only_a_vm, scenario};

/// Directories and files of the host to mount.
struct Shared {
    writable: PathBuf,
    readonly: PathBuf,
    writable_file: PathBuf,
    readonly_file: PathBuf,
}

impl Shared {
    fn make(containerd: &Containerd) -> Result<Self> {
        let top = containerd.directory().join("shared");
        let shared = Self {
            writable: top.join("rw"),
            readonly: top.join("ro"),
            writable_file: top.join("rw-file"),
            readonly_file: top.join("ro-file"),
        };
        for directory in [&shared.writable, &shared.readonly] {
            fs::create_dir_all(directory.join("below"))?;
            fs::write(directory.join("below/file"), "from the host\n")?;
        }
        fs::write(&shared.writable_file, "writable\n")?;
        fs::write(&shared.readonly_file, "read-only\n")?;
        Ok(shared)
    }
}

#[test]
fn bind_mounts_are_shared_both_ways() -> Result<()> {
    scenario(|containerd| {
        let shared = Shared::make(containerd)?;
        symlink("/etc/hostname", shared.writable.join("link"))?;
        fs::write(shared.writable.join("of-user"), "")?;
        chown(shared.writable.join("of-user"), Some(1000), Some(1001))?;
        let script = "set -e
            cat /rw/below/file /ro/below/file /rw-file /ro-file
            echo from the container > /rw/new; mkdir /rw/dir; chown 1000:1001 /rw/new; chmod 600 /rw/new
            echo changed > /rw-file
            mv /rw/below/file /rw/moved; ln -s moved /rw/symlink; ln /rw/moved /rw/hardlink
            cat /rw/link; stat -c '%u %g' /rw/of-user";
        let output = containerd
            .shell(script)
            .bind(&shared.writable, "/rw", "rbind:rw")
            .bind(&shared.readonly, "/ro", "rbind:ro")
            .bind(&shared.writable_file, "/rw-file", "rbind:rw")
            .bind(&shared.readonly_file, "/ro-file", "rbind:ro")
            .output()?
            .success()?;
        // A link leads to where it leads in the container, never to a file of the host.
        let expected = "from the host\nfrom the host\nwritable\nread-only\nimage\n1000 1001\n";
        assert_eq!(output, expected);

        let new = shared.writable.join("new");
        assert_eq!(fs::read_to_string(&new)?, "from the container\n");
        let metadata = new.metadata()?;
        assert_eq!((metadata.uid(), metadata.gid()), (1000, 1001));
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(&shared.writable_file)?, "changed\n");
        assert_eq!(fs::read_link(shared.writable.join("symlink"))?, PathBuf::from("moved"));
        assert_eq!(shared.writable.join("hardlink").metadata()?.nlink(), 2);
        ensure!(!shared.writable.join("below/file").exists(), "the file was moved away");
        Ok(())
    })
}

/// Tries to change everything under `/ro`, and says what could be done.
const VANDALISM: &str = "
    touch /ro/new 2>/dev/null && echo made a file
    echo x 2>/dev/null >> /ro/below/file && echo wrote a file
    rm /ro/below/file 2>/dev/null && echo removed a file
    mkdir /ro/dir 2>/dev/null && echo made a directory
    chmod 777 /ro/below 2>/dev/null && echo changed a mode
    mv /ro/below /ro/above 2>/dev/null && echo moved a directory
    echo x 2>/dev/null > /ro-file && echo wrote the single file
    :";

#[test]
fn read_only_is_read_only() -> Result<()> {
    scenario(|containerd| {
        let shared = Shared::make(containerd)?;
        let run = |script: &str| {
            containerd.shell(script).bind(&shared.readonly, "/ro", "rbind:ro").bind(
                &shared.readonly_file,
                "/ro-file",
                "rbind:ro",
            )
        };
        assert_eq!(run(VANDALISM).output()?.success()?, "");
        if only_a_vm("a host that does not trust its guest's mount options") {
            let script =
                format!("mount -o remount,rw /ro; mount -o remount,rw /ro-file; {VANDALISM}");
            let changed = run(&script).flag("--privileged").output()?.success()?;
            // What it has in place of shared files is its own, for whoever may remount it.
            if hypervisor_under_test()? != "firecracker" {
                assert_eq!(changed, "");
            }
        }
        assert_eq!(fs::read_to_string(shared.readonly.join("below/file"))?, "from the host\n");
        assert_eq!(fs::read_to_string(&shared.readonly_file)?, "read-only\n");
        Ok(())
    })
}

#[test]
fn read_only_root_file_system_is_read_only() -> Result<()> {
    scenario(|containerd| {
        let script =
            "touch /new 2>&1; echo x > /etc/hostname; touch /tmp/x /dev/shm/y; ls /dev/shm";
        let output = containerd.shell(script).flag("--read-only").output()?;
        assert_eq!(output.text(), "touch: /new: Read-only file system\ny\n", "{output}");
        Ok(())
    })
}

#[test]
fn tmpfs_has_its_size_and_shm_its_own() -> Result<()> {
    scenario(|containerd| {
        let script = "
            dd if=/dev/zero of=/small/file bs=64k count=64 2>&1 | grep -o 'No space left.*'
            stat -c %s /small/file; stat -c '%a' /small
            df -k /dev/shm | awk 'END { print $2, $NF }'
            echo shared > /dev/shm/file && cat /dev/shm/file
            dd if=/dev/zero of=/dev/shm/big bs=1M count=100 2>&1 | grep -o 'No space left.*'";
        let output = containerd
            .shell(script)
            .mount("type=tmpfs,src=tmpfs,dst=/small,options=size=1m:mode=750:nosuid")
            .output()?
            .success()?;
        let no_space = "No space left on device\n";
        let expected = format!("{no_space}1048576\n750\n65536 /dev/shm\nshared\n{no_space}");
        assert_eq!(output, expected);
        Ok(())
    })
}

#[test]
fn resolver_and_hosts_files_are_the_engines() -> Result<()> {
    scenario(|containerd| {
        let files = containerd.directory().join("etc");
        fs::create_dir(&files)?;
        fs::write(files.join("resolv.conf"), "nameserver 203.0.113.7\n")?;
        fs::write(files.join("hosts"), "203.0.113.8 example\n")?;
        let output = containerd
            .shell(
                "cat /etc/resolv.conf /etc/hosts; nslookup example 2>&1 | grep -c 203.0.113.7; :",
            )
            .bind(&files.join("resolv.conf"), "/etc/resolv.conf", "rbind:ro")
            .bind(&files.join("hosts"), "/etc/hosts", "rbind:rw")
            .output()?
            .success()?;
        ensure!(
            output.starts_with("nameserver 203.0.113.7\n203.0.113.8 example\n"),
            "not the engine's files: {output}"
        );
        Ok(())
    })
}

#[test]
fn mounts_lie_over_each_other_in_order() -> Result<()> {
    scenario(|containerd| {
        let shared = Shared::make(containerd)?;
        let output = containerd
            .shell("ls /mnt/a; ls /mnt/a/below; cat /mnt/a/below/deep/one; echo x > /mnt/a/below/x; ls /mnt/a/below")
            .bind(&shared.readonly, "/mnt/a", "rbind:ro")
            .mount("type=tmpfs,src=tmpfs,dst=/mnt/a/below,options=rw")
            .bind(&shared.readonly_file, "/mnt/a/below/deep/one", "rbind:ro")
            .output()?
            .success()?;
        assert_eq!(output, "below\ndeep\nread-only\ndeep\nx\n");
        Ok(())
    })
}

#[test]
fn missing_source_is_named() -> Result<()> {
    scenario(|containerd| {
        let missing = containerd.directory().join("no-such-source");
        let error =
            containerd.run(["true"]).bind(&missing, "/mnt", "rbind:ro").output()?.failure()?;
        ensure!(error.contains("no-such-source"), "{error}");
        ensure!(error.contains("no such file or directory"), "{error}");
        Ok(())
    })
}
