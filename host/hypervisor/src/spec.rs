//! The virtual machine as plain data: what the plan decides and a driver builds.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::HypervisorError;

/// One virtual machine to boot. Paths are on the host and were checked to exist when the plan was
/// made.
#[derive(Debug, Clone)]
pub struct VmSpec {
    /// The sandbox's id: names the VM in process lists and logs, nothing else.
    pub sandbox: String,
    /// Virtual CPUs at boot, at least 1.
    pub vcpus: u32,
    /// The virtual CPUs that it may have while it runs ([`crate::Vm::resize_vcpus`]), more than
    /// `vcpus`; `None` for a VM that keeps those of its boot.
    pub most_vcpus: Option<u32>,
    /// Guest memory in MiB, at least 64.
    pub memory_mib: u32,
    /// The memory in MiB that it may grow to while it runs ([`crate::Vm::resize_memory`]), more
    /// than `memory_mib` by an even number; `None` for a VM whose memory stays as it is.
    pub most_memory_mib: Option<u32>,
    /// The guest kernel, in a form that the driver boots (see its documentation).
    pub kernel: PathBuf,
    /// Where the agent is.
    pub root: GuestRoot,
    /// Guest kernel parameters, appended after the driver's own, so that a later one wins.
    pub kernel_params: Vec<String>,
    /// Directories served to the guest through virtio-fs.
    pub shares: Vec<ShareSpec>,
    /// Its disks at boot, besides that of [`GuestRoot::Image`].
    pub disks: Vec<DiskSpec>,
    /// How many disks may come while it runs ([`crate::Vm::attach_disk`]).
    pub later_disks: LaterDisks,
    /// Its network devices.
    pub nics: Vec<NicSpec>,
    /// Whether network devices may be added while it runs ([`crate::Vm::add_nic`]).
    pub hot_plug: bool,
    /// The network namespace for the VMM; `None` gives it an empty one of its own.
    pub network_namespace: Option<Arc<OwnedFd>>,
    /// Where a template of it may be, from which it then goes on instead of booting; for a driver
    /// with [`Capabilities::templates`]. One that is not of this VM is not used, which is logged.
    pub template: Option<PathBuf>,
    /// A private directory (mode 0700) of this sandbox in which the driver may create sockets and
    /// files. Whoever made it removes it.
    pub run_dir: PathBuf,
    /// The longest that the VMM may take from its execution to its hello; then it is ended, and the
    /// boot fails with [`HypervisorError::Late`].
    pub vmm_deadline: Duration,
    /// Boot verbosely: kernel messages reach the console, the VMM logs what it can.
    pub debug: bool,
}

/// What the guest's kernel starts the agent from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestRoot {
    /// An initial ramdisk, whose `/init` is the agent.
    Initrd(PathBuf),
    /// A disk, whose `/sbin/init` is the agent, or systemd with the agent as a service.
    Image(GuestImage),
}

/// A rootfs image: a raw disk, never written to, whose first partition holds the root file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestImage {
    /// The disk's file.
    pub file: PathBuf,
    /// The file system's name for mount(2).
    pub file_system: String,
    /// How the guest's kernel checks the file system; `None` if it does not.
    pub verity: Option<Verity>,
    /// An initial ramdisk that loads drivers and then goes on to the disk, for a kernel that does
    /// not have them built in.
    pub drivers: Option<PathBuf>,
}

/// The hash tree in the second partition of an image (dm-verity format 1 with SHA-256, without a
/// superblock).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verity {
    /// The root hash, hexadecimal.
    pub root_hash: String,
    /// The salt, hexadecimal.
    pub salt: String,
    /// Number of data blocks.
    pub data_blocks: u64,
    /// Size of a data block in bytes, a multiple of 512.
    pub data_block_size: u32,
    /// Size of a block of the hash tree in bytes.
    pub hash_block_size: u32,
}

/// The longest that a VMM takes to say hello on a busy host.
const VMM_DEADLINE: Duration = Duration::from_secs(30);

/// Size of the sectors that device-mapper counts in.
const SECTOR: u64 = 512;

/// What an image whose init is systemd must be told: start what the agent needs, and leave the
/// network to the agent. Everybody else skips words with a dot.
const SYSTEMD: [&str; 3] = [
    "systemd.unit=kata-containers.target",
    "systemd.mask=systemd-networkd.service",
    "systemd.mask=systemd-networkd.socket",
];

impl VmSpec {
    /// The smallest VM that there is a use for: one processor, 256 MiB, no devices, and 30 s for
    /// the VMM's hello. Whatever else one has is set on top.
    pub fn bare(
        sandbox: impl Into<String>,
        kernel: impl Into<PathBuf>,
        root: GuestRoot,
        run_dir: impl Into<PathBuf>,
    ) -> Self {
        Self {
            sandbox: sandbox.into(),
            vcpus: 1,
            most_vcpus: None,
            memory_mib: 256,
            most_memory_mib: None,
            kernel: kernel.into(),
            root,
            kernel_params: Vec::new(),
            shares: Vec::new(),
            disks: Vec::new(),
            later_disks: LaterDisks::default(),
            nics: Vec::new(),
            hot_plug: false,
            network_namespace: None,
            template: None,
            run_dir: run_dir.into(),
            vmm_deadline: VMM_DEADLINE,
            debug: false,
        }
    }

    /// For drivers whose machines take nothing while they run: refuses a spec that wants room for
    /// network devices.
    pub fn refuse_hot_plug(&self, driver: &'static str) -> Result<(), HypervisorError> {
        let what = "network devices that come after the boot";
        if self.hot_plug { Err(HypervisorError::Unsupported { driver, what }) } else { Ok(()) }
    }

    /// For drivers whose machines have what memory they have: refuses a spec that wants room for
    /// more.
    pub fn refuse_more_memory(&self, driver: &'static str) -> Result<(), HypervisorError> {
        let what = "memory that comes after the boot";
        if self.most_memory_mib.is_some() {
            Err(HypervisorError::Unsupported { driver, what })
        } else {
            Ok(())
        }
    }

    /// For drivers whose machines have what virtual CPUs they have: refuses a spec that wants room
    /// for more.
    pub fn refuse_more_vcpus(&self, driver: &'static str) -> Result<(), HypervisorError> {
        let what = "virtual CPUs that come after the boot";
        if self.most_vcpus.is_some() {
            Err(HypervisorError::Unsupported { driver, what })
        } else {
            Ok(())
        }
    }

    /// For drivers that take no disks: refuses a spec with one, or with room for one.
    pub fn refuse_disks(&self, driver: &'static str) -> Result<(), HypervisorError> {
        if !self.disks.is_empty() {
            return Err(HypervisorError::Unsupported { driver, what: "disks" });
        }
        self.refuse_later_disks(driver)
    }

    /// For drivers whose machines have the disks that they boot with: refuses a spec that wants
    /// room for more.
    pub fn refuse_later_disks(&self, driver: &'static str) -> Result<(), HypervisorError> {
        let what = "disks that come after the boot";
        let refused = self.later_disks != LaterDisks::default();
        if refused { Err(HypervisorError::Unsupported { driver, what }) } else { Ok(()) }
    }
}

impl GuestRoot {
    /// The initial ramdisk that the kernel is given: the one with the agent, or the one that goes
    /// on to the image, if there is any.
    #[must_use]
    pub fn initrd(&self) -> Option<&Path> {
        match self {
            Self::Initrd(initrd) => Some(initrd),
            Self::Image(image) => image.drivers.as_deref(),
        }
    }

    /// The image, if it is one.
    #[must_use]
    pub fn image(&self) -> Option<&GuestImage> {
        match self {
            Self::Initrd(_) => None,
            Self::Image(image) => Some(image),
        }
    }

    /// The kernel parameters that make it the root file system, when the guest sees the disk of an
    /// image as `/dev/<disk>`.
    #[must_use]
    pub fn kernel_params(&self, disk: &str) -> Vec<String> {
        self.image().map_or_else(Vec::new, |image| image.kernel_params(disk))
    }
}

impl GuestImage {
    /// See [`GuestRoot::kernel_params`].
    ///
    /// Where there is a hash tree the kernel itself makes the checked device, before any program
    /// runs, and a block that is not what it was ends the guest in a panic.
    fn kernel_params(&self, disk: &str) -> Vec<String> {
        let mut params = SYSTEMD.map(str::to_owned).to_vec();
        params.extend([format!("rootfstype={}", self.file_system), "ro".to_owned()]);
        let Some(verity) = &self.verity else {
            params.push(format!("root=/dev/{disk}1"));
            return params;
        };
        let Verity { root_hash, salt, data_blocks, data_block_size, hash_block_size } = verity;
        let sectors = data_blocks.saturating_mul(u64::from(*data_block_size) / SECTOR);
        params.push("root=/dev/dm-0".to_owned());
        params.push(format!(
            "dm-mod.create=\"kata-image,,,ro,0 {sectors} verity 1 /dev/{disk}1 /dev/{disk}2 {data_block_size} {hash_block_size} \
             {data_blocks} 0 sha256 {root_hash} {salt} 1 panic_on_corruption\""
        ));
        params
    }
}

/// A disk of the guest's. Its format is raw, and never detected: the guest could write what a guess
/// falls for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSpec {
    /// Tells it apart from the others of the VM, and may be a part of an option: letters and
    /// digits, 20 at most.
    pub id: String,
    /// A regular file or a block device, checked to be one. A file's size is a multiple of 512
    /// bytes.
    pub path: PathBuf,
    /// The guest cannot write to it. Enforced by the VMM, which does not even open it for writing.
    pub readonly: bool,
}

/// Room for disks that come while a VM runs. Some VMMs have to know before it boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LaterDisks {
    /// Read-only disks at a time.
    pub readonly: usize,
    /// Disks that the guest may write to, at a time.
    pub writable: usize,
}

impl LaterDisks {
    /// All of them.
    #[must_use]
    pub fn count(self) -> usize {
        self.readonly + self.writable
    }
}

/// Where the guest finds a disk, in the agent's words (the agent protocol's storages and devices).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestDisk {
    /// The agent's driver: `blk` for an address on the PCI bus, `mmioblk` for a device node.
    pub driver: &'static str,
    /// The address: slots joined by `/` in hexadecimal, or a path below `/dev`.
    pub address: String,
}

impl GuestDisk {
    /// The virtio disk with this serial number, wherever it is. No two disks of a VM may have the
    /// same.
    #[must_use]
    pub fn with_serial(serial: &str) -> Self {
        Self { driver: "blk", address: format!("/dev/disk/by-id/virtio-{serial}") }
    }
}

/// When a driver takes disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disks {
    /// Never.
    None,
    /// At boot: [`VmSpec::disks`].
    AtBoot,
    /// At boot, and while the VM runs as far as [`VmSpec::later_disks`] made room:
    /// [`crate::Vm::attach_disk`].
    Later,
}

/// Whether a driver can pause a VM as a whole, and let it go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    /// Never.
    Never,
    /// Whatever the VMM's version.
    Always,
    /// But for this version of the VMM, like `1.16`: [`crate::Vm::pause`] refuses it by name, and
    /// nothing happens to the guest. Which version it is shows only when the VMM runs.
    Except(&'static str),
}

/// A directory that the guest may mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareSpec {
    /// The mount tag under which the guest finds it, 1 to 36 bytes (virtio 1.2 §5.11.4).
    pub tag: String,
    /// Who serves it; the driver's [`Capabilities::shared_file_system`] says which of them it
    /// takes.
    pub source: ShareSource,
}

/// Who serves a shared directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShareSource {
    /// A file server (vhost-user back end) that listens on this unix socket.
    Server(PathBuf),
    /// The VMM itself serves this directory, with what is mounted below it now and later, and does
    /// not write where a mount is read-only.
    Directory(PathBuf),
}

/// How directories of the host reach the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SharedFileSystem {
    /// Not at all.
    None,
    /// By a file server beside the VMM: [`ShareSource::Server`].
    Server,
    /// By the VMM itself: [`ShareSource::Directory`].
    Inline,
}

/// A network device whose other end is a tap.
#[derive(Debug, Clone)]
pub struct NicSpec {
    /// Tells it apart from the others of the VM, and may be a part of an option: letters and
    /// digits.
    pub id: String,
    /// Its MAC address, as in `02:42:ac:11:00:02`.
    pub mac: String,
    /// The most that a frame may carry, in bytes; the guest is told.
    pub mtu: u32,
    /// The tap. Frames have a virtio-net header (IFF_VNET_HDR).
    pub tap: Tap,
    /// An open vhost-net device that is to move its frames, for a driver with
    /// [`Capabilities::vhost_net`]; `None` leaves that to the VMM.
    pub vhost: Option<Arc<OwnedFd>>,
}

/// A tap, as the VMM is given it.
#[derive(Debug, Clone)]
pub enum Tap {
    /// Open: the VMM gets a copy.
    Open(Arc<OwnedFd>),
    /// By its name in [`VmSpec::network_namespace`], where nobody has it open.
    Named(String),
}

impl Tap {
    /// The open tap, for drivers that pass descriptors on; [`HypervisorError::Unsupported`] for one
    /// that is only named.
    pub fn descriptor(&self, driver: &'static str) -> Result<&Arc<OwnedFd>, HypervisorError> {
        match self {
            Self::Open(tap) => Ok(tap),
            Self::Named(_) => {
                Err(HypervisorError::Unsupported { driver, what: "taps that are not open" })
            }
        }
    }
}

/// What a driver can do. Everything that it cannot is refused at planning time, with a sentence;
/// what the host lacks, at boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Whether it runs guests without KVM, too, by emulation.
    pub emulation: bool,
    /// Whether the agent may be in a disk: [`GuestRoot::Image`].
    pub image: bool,
    /// How directories can be shared.
    pub shared_file_system: SharedFileSystem,
    /// When it takes disks.
    pub disks: Disks,
    /// Most virtual CPUs that a VM of this driver may have.
    pub max_vcpus: u32,
    /// Whether the VM can be paused and resumed as a whole.
    pub pause: Pause,
    /// Whether the host's kernel can move the frames of a network device: [`NicSpec::vhost`].
    pub vhost_net: bool,
    /// Whether it opens taps itself, by their names ([`Tap::Named`]), in the sandbox's network
    /// namespace, and takes no open ones: the user id that it has then, and that the taps must
    /// belong to, since it has no capability (linux/drivers/net/tun.c, tun_capable).
    pub named_taps: Option<u32>,
    /// Whether it takes network devices while it runs: [`VmSpec::hot_plug`]. A machine of the
    /// driver's may still have no place for them.
    pub hot_plug: bool,
    /// Whether its memory can grow and shrink while it runs: [`VmSpec::most_memory_mib`].
    pub more_memory: bool,
    /// Whether virtual CPUs can come and go while it runs: [`VmSpec::most_vcpus`].
    pub more_vcpus: bool,
    /// Whether a VM can go on from a template: [`VmSpec::template`].
    pub templates: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(verity: Option<Verity>) -> GuestImage {
        GuestImage { file: "/image".into(), file_system: "erofs".into(), verity, drivers: None }
    }

    #[test]
    fn plain_image_is_mounted_from_its_first_partition() {
        let params = image(None).kernel_params("vda");
        assert_eq!(params[..SYSTEMD.len()], SYSTEMD);
        assert_eq!(params[SYSTEMD.len()..], ["rootfstype=erofs", "ro", "root=/dev/vda1"]);
    }

    #[test]
    fn image_with_a_hash_tree_is_mounted_through_device_mapper() {
        let verity = Verity {
            root_hash: "ab".into(),
            salt: "cd".into(),
            data_blocks: 10,
            data_block_size: 4096,
            hash_block_size: 4096,
        };
        assert_eq!(
            image(Some(verity)).kernel_params("vda")[SYSTEMD.len() + 2..],
            [
                "root=/dev/dm-0",
                "dm-mod.create=\"kata-image,,,ro,0 80 verity 1 /dev/vda1 /dev/vda2 4096 4096 10 0 sha256 ab cd 1 panic_on_corruption\"",
            ]
        );
    }
}
