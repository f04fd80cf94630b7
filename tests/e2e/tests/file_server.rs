//! A virtio-fs server that is not ours, by `virtio_fs_daemon`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use kata_e2e::{Containerd, Scenario, only_a_vm};

/// Where distributions have one: QEMU's own up to its version 7, and the one written in Rust.
const PLACES: [&str; 3] =
    ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd", "/usr/lib/virtiofsd"];

#[test]
fn another_file_server_serves_as_well() -> Result<()> {
    if !only_a_vm("a virtio-fs server") {
        return Ok(());
    }
    let server = PLACES.iter().map(Path::new).find(|place| place.is_file());
    let server = server.context("there is no virtiofsd; install the package of that name")?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("configuration.toml");
    let text =
        format!("[hypervisor.qemu]\nvirtio_fs_daemon = {server:?}\nvirtio_fs_cache = 'never'\n");
    fs::write(&file, text)?;
    Scenario::new().configuration(&file).run(|containerd| {
        let shared = containerd.directory().join("shared");
        fs::create_dir(&shared)?;
        fs::write(shared.join("file"), "from the host\n")?;
        let script = "
            cat /ro/file; echo x 2>/dev/null > /ro/file || echo refused
            head -c 8000000 /bin/busybox > /rw/copy; cmp /bin/busybox /bin/sh && mv /rw/copy /rw/moved
            echo made > /home/file; chown 5:6 /home/file; stat -c '%u %g' /home/file; sync; exec sleep 1000";
        let container = containerd
            .shell(script)
            .bind(&shared, "/ro", "rbind:ro")
            .bind(&shared, "/rw", "rbind:rw");
        let (client, container) = container.attach_and_keep()?;
        client.expect("from the host\nrefused\n5 6\n")?;
        ensure!(serves(containerd, server)?, "it is not {} that serves", server.display());
        let here = fs::read("/bin/busybox").or_else(|_| fs::read("/usr/bin/busybox"))?;
        let there = container.exec(["md5sum", "/rw/moved", "/bin/busybox"]).output()?.success()?;
        let sums: Vec<_> = there.split_whitespace().step_by(2).collect();
        ensure!(sums.len() == 2 && sums[0] == sums[1], "not the same: {there}");
        ensure!(fs::read(shared.join("moved"))? == here, "the copy differs on the host");

        container.kill("KILL")?;
        ensure!(client.wait()?.code == 137, "another exit code");
        container.remove()
    })
}

/// Whether a process of this sandbox runs that program.
fn serves(containerd: &Containerd, program: &Path) -> Result<bool> {
    let processes = fs::read_dir("/proc")?.flatten().map(|entry| entry.path());
    let mut of_program = processes
        .filter(|process| fs::read_link(process.join("exe")).is_ok_and(|exe| exe == program));
    Ok(of_program.any(|process| {
        fs::read(process.join("cmdline")).is_ok_and(|line| containerd.mark().is_in(&line))
    }))
}
