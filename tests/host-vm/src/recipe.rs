//! What the machine is made of.

use sha2::{Digest, Sha256};

/// The system. All of it but `systemd` starts nothing by itself.
const SYSTEM: &[&str] = &[
    "linux-image-cloud-amd64",
    "initramfs-tools",
    "systemd-sysv",
    "dbus",
    "udev",
    "kmod",
    "iproute2",
    "iptables",
    "nftables",
    "procps",
    "e2fsprogs",
    "dmsetup",
    "thin-provisioning-tools",
    "ca-certificates",
];

/// What runs containers and virtual machines, and what the tests' images are made of.
const ENGINES: &[&str] = &[
    "qemu-system-x86",
    "containerd",
    "runc",
    "crun",
    "podman",
    "netavark",
    "aardvark-dns",
    "conmon",
    "docker.io",
    "docker-cli",
    "containernetworking-plugins",
    "busybox-static",
];

/// What engines and tests call, where there is no machine around them.
const TOOLS: &[&str] =
    &["iproute2", "iptables", "nftables", "procps", "e2fsprogs", "dmsetup", "ca-certificates"];

/// The packages of the machine.
pub(crate) fn packages() -> Vec<&'static str> {
    [SYSTEM, ENGINES].concat()
}

/// The packages of a root file system whose engines run on a machine that is there already.
pub(crate) fn packages_of_root() -> Vec<&'static str> {
    [TOOLS, ENGINES].concat()
}

/// A file of the machine's own: path, mode and content.
pub(crate) struct File {
    pub(crate) path: &'static str,
    pub(crate) mode: u32,
    pub(crate) content: &'static str,
}

/// Written before the packages are installed, since the initial ramdisk is made then.
pub(crate) const FILES: &[File] = &[
    // Two drivers reach the disk; the kernel has everything else that it needs to mount it.
    text("etc/initramfs-tools/conf.d/host-vm", "MODULES=list\nCOMPRESS=zstd\n"),
    text("etc/initramfs-tools/modules", "virtio_pci\nvirtio_blk\n"),
    text("etc/fstab", "/dev/vda / ext4 defaults 0 0\n"),
    text("etc/hostname", "host-vm\n"),
    text("etc/systemd/system/host-vm.target", include_str!("../files/host-vm.target")),
    text("etc/systemd/system/jobs.service", include_str!("../files/jobs.service")),
    text(
        "etc/systemd/system/serial-getty@ttyS0.service.d/root-login.conf",
        include_str!("../files/root-login.conf"),
    ),
    File {
        path: "usr/local/lib/host-vm/jobs",
        mode: 0o755,
        content: include_str!("../files/jobs"),
    },
];

const fn text(path: &'static str, content: &'static str) -> File {
    File { path, mode: 0o644, content }
}

/// Changes when the machine does. The packages' versions are those of the day on which it was
/// built.
pub(crate) fn digest() -> String {
    let mut hash = Sha256::new();
    // Counts changes of what is done with the packages and files.
    hash.update("1\0");
    for package in packages() {
        hash.update(package);
        hash.update("\0");
    }
    for file in FILES {
        for part in [file.path, file.content] {
            hash.update(part);
            hash.update("\0");
        }
    }
    digits(hash)
}

/// As [`digest`], of the root file system.
pub(crate) fn digest_of_root() -> String {
    let mut hash = Sha256::new();
    hash.update("1\0");
    hash.update(packages_of_root().join("\0"));
    digits(hash)
}

fn digits(hash: Sha256) -> String {
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
