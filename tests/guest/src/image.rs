//! What the machine boots: the staged kernel and initrd, with busybox added for the guest itself
//! and as a container's root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use kata_initrd::{Archive, Entry};
use tempfile::TempDir;

/// Where a statically linked busybox may be.
const BUSYBOX: [&str; 3] = ["/usr/bin/busybox", "/bin/busybox", "/usr/sbin/busybox"];

/// A container's root file system in the guest.
pub(crate) const ROOTFS: &str = "/rootfs";

/// The machine's first process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum First {
    /// The agent.
    Agent,
    /// Busybox's init, which starts the agent as one of its children.
    BusyboxInit,
}

impl First {
    /// Its program, as a parameter of the kernel.
    pub(crate) fn parameter(self) -> &'static str {
        match self {
            Self::Agent => "rdinit=/init",
            Self::BusyboxInit => "rdinit=/etc/first",
        }
    }
}

/// An initramfs cannot be pivoted away from, which the root of a bigger image can.
const FIRST: &str = "#!/bin/sh
mkdir /.root
mount -o bind / /.root
cd /.root
mount -o move . /
exec chroot . /bin/busybox init
";

const INITTAB: &str = "::sysinit:/etc/rcS
::once:/etc/agent
";

/// What the system of a bigger image does before services start.
const RCS: &str = "#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
while read -r module parameters; do insmod $module $parameters; done </etc/kata-modules
ip link set lo up
";

/// As `kata-agent.service` does: the machine has no other purpose.
const AGENT: &str = "#!/bin/sh
/init >/dev/console 2>&1
sync
reboot -f
";

const PASSWD: &str = "root:x:0:0::/root:/bin/sh\nseven:x:7:7::/home/seven:/bin/sh\n";

/// Which kernel the machine boots, with the initrd that belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GuestKernel {
    /// The one that is installed.
    Staged,
    /// The distribution's.
    Distribution,
}

impl GuestKernel {
    /// Its file with this name.
    pub(crate) fn file(self, name: &str) -> Result<PathBuf> {
        match self {
            Self::Staged => staged(name),
            Self::Distribution => built(&format!("guest/distribution/{name}")),
        }
    }
}

/// The staged file of the guest with this name.
fn staged(name: &str) -> Result<PathBuf> {
    built(&format!("stage/usr/local/share/kata-containers/{name}"))
}

fn built(name: &str) -> Result<PathBuf> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    let top = top.context("this crate is two folders down")?;
    let path = top.join("build").join(name);
    let shown = path.display();
    ensure!(path.exists(), "there is no {shown}; run `make` and `make distribution-guest`");
    Ok(path)
}

/// The rootfs image that `kata-image rootfs` makes as ext4 with these arguments, in a directory
/// that is removed with the value.
///
/// # Errors
///
/// When `make` was not called before, or the image cannot be made; packages are downloaded.
pub fn image_with(arguments: &[&str]) -> Result<(TempDir, PathBuf)> {
    let tests = std::env::current_exe()?;
    let target = tests.ancestors().nth(3).context("tests are three folders down")?;
    let program = target.join("release/kata-image");
    let directory = tempfile::tempdir()?;
    let image = directory.path().join("rootfs.img");
    let output = Command::new(&program)
        .args(["rootfs", "--file-system=ext4", "--agent"])
        .arg(staged("guest/kata-agent")?)
        .arg("--output")
        .arg(&image)
        .args(arguments)
        .output()
        .with_context(|| format!("cannot run {}; run `make`", program.display()))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok((directory, image))
}

/// The kernel's initrd, and what this module adds if it is `wanted`. Of several archives the kernel
/// unpacks one after the other.
pub(crate) fn initrd(kernel: GuestKernel, wanted: bool) -> Result<Vec<u8>> {
    let mut bytes = fs::read(kernel.file("kata-containers-initrd.img")?)?;
    if !wanted {
        return Ok(bytes);
    }
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    let busybox = BUSYBOX.iter().find(|path| Path::new(path).exists());
    let busybox = busybox.context("there is no busybox; install the package busybox-static")?;
    let applets = Command::new(busybox).arg("--list").output().context("cannot run busybox")?;
    let applets = String::from_utf8(applets.stdout).context("busybox lists what is not UTF-8")?;
    let program = fs::read(busybox)?;

    let mut archive = Archive::default();
    for root in ["", "rootfs/"] {
        if !root.is_empty() {
            archive.add("rootfs", 0o755, Entry::Directory);
        }
        for directory in ["bin", "dev", "etc", "proc", "root", "sys", "tmp"] {
            archive.add(&format!("{root}{directory}"), 0o755, Entry::Directory);
        }
        archive.add(&format!("{root}bin/busybox"), 0o755, Entry::File(&program));
        for applet in applets.lines().filter(|applet| *applet != "busybox") {
            archive.add(&format!("{root}bin/{applet}"), 0o777, Entry::Symlink("busybox"));
        }
    }
    let scripts = [("first", FIRST), ("inittab", INITTAB), ("rcS", RCS), ("agent", AGENT)];
    for (name, text) in scripts {
        archive.add(&format!("etc/{name}"), 0o755, Entry::File(text.as_bytes()));
    }
    archive.add("rootfs/etc/passwd", 0o644, Entry::File(PASSWD.as_bytes()));
    archive.add("rootfs/noshebang", 0o755, Entry::File(b"no program\n"));
    bytes.extend(archive.finish());
    Ok(bytes)
}
