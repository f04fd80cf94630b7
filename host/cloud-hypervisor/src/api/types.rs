//! What requests and responses hold: of the published description's schemas those, and of their
//! fields those, that this driver needs. Names and defaults are the description's.
//! `tests/description.rs` holds them against it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

/// A machine to create (`VmConfig`).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VmConfig {
    /// Its processors.
    pub cpus: CpusConfig,
    /// Its memory.
    pub memory: MemoryConfig,
    /// What it boots.
    pub payload: PayloadConfig,
    /// Its disks at boot.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskConfig>,
    /// Where its random numbers come from.
    pub rng: RngConfig,
    /// Its file shares. They need [`MemoryConfig::shared`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fs: Vec<FsConfig>,
    /// The serial port, `ttyS0` in the guest.
    pub serial: ConsoleConfig,
    /// The virtio console, `hvc0` in the guest.
    pub console: ConsoleConfig,
    /// The socket device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockConfig>,
    /// Whether there is a device through which the guest's kernel tells that it panics.
    pub pvpanic: bool,
    /// Whether the VMM shuts itself in (landlock(7)): it then opens what the configuration names
    /// and nothing else. Fails where the host's kernel has no landlock of version 3 (Linux 6.2).
    pub landlock_enable: bool,
    /// What it may open besides.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub landlock_rules: Vec<LandlockConfig>,
}

/// Something that the VMM may open (`LandlockConfig`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LandlockConfig {
    /// A file, or a directory with all that is in it, now and later.
    pub path: PathBuf,
    /// `r`, `w` or `rw`.
    pub access: String,
}

/// Processors (`CpusConfig`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CpusConfig {
    /// At boot, at least 1.
    pub boot_vcpus: u32,
    /// Most that there may ever be, at least `boot_vcpus`.
    pub max_vcpus: u32,
}

/// Memory (`MemoryConfig`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemoryConfig {
    /// At boot, in bytes, a multiple of 1 MiB.
    pub size: u64,
    /// Whether a vhost-user back end can map it.
    pub shared: bool,
    /// Most that may come on top while the machine runs, in bytes, a multiple of 128 MiB; `None`
    /// for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hotplug_size: Option<u64>,
    /// How it comes; `None` has the VMM plug in whole modules.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hotplug_method: Option<HotplugMethod>,
}

/// How memory comes to a machine that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum HotplugMethod {
    /// By a device that the guest takes memory from, and gives it back to, in blocks of 2 MiB.
    VirtioMem,
}

/// What is booted (`PayloadConfig`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PayloadConfig {
    /// The kernel: an ELF image with a PVH entry note, or a bzImage.
    pub kernel: PathBuf,
    /// Its command line.
    pub cmdline: String,
    /// The initial ramdisk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<PathBuf>,
}

/// A disk (`DiskConfig`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiskConfig {
    /// By which it can be removed. Unique among all devices.
    pub id: String,
    /// A file or a block device.
    pub path: PathBuf,
    /// Whether the guest must not write.
    pub readonly: bool,
    /// The format. Stated, for a guest could write what a guess falls for.
    pub image_type: ImageType,
    /// Its serial number, by which the guest finds it, at most 20 bytes; `None` has the VMM make
    /// one up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
}

/// A disk's format (`ImageType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum ImageType {
    /// The disk's bytes as they are.
    Raw,
}

/// A network device (`NetConfig`) on a tap whose descriptor goes with the request. Its MTU is left
/// alone: the VMM would set the tap's, for which a jailed one has neither the right nor the network
/// namespace; the guest's agent sets the guest's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetConfig {
    /// By which it can be removed. Unique among all devices.
    pub id: String,
    /// The guest's MAC address, as in `02:42:ac:11:00:02`.
    pub mac: String,
    /// Queues: two for every descriptor.
    pub num_queues: u32,
}

/// Random numbers (`RngConfig`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RngConfig {
    /// A file like `/dev/urandom`.
    pub src: PathBuf,
}

/// A file share (`FsConfig`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FsConfig {
    /// By which it can be removed. Unique among all devices.
    pub id: String,
    /// By which the guest mounts it, 1 to 36 bytes.
    pub tag: String,
    /// Where its file server listens. The VMM connects while it boots the machine.
    pub socket: PathBuf,
    /// Request queues.
    pub num_queues: u32,
    /// Entries of each, a power of two.
    pub queue_size: u32,
}

/// A console (`ConsoleConfig`, `SerialConfig`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ConsoleConfig {
    /// Where it leads.
    pub mode: ConsoleMode,
}

/// Where a console leads (`ConsoleMode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum ConsoleMode {
    /// There is no such device.
    Off,
    /// To the VMM's stdout.
    Tty,
}

/// The socket device (`VsockConfig`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VsockConfig {
    /// The guest's address (vsock(7)), at least 3.
    pub cid: u64,
    /// Where the VMM listens for connections to the guest's ports. It makes the socket when the
    /// machine boots.
    pub socket: PathBuf,
}

/// What the VMM is (`VmmPingResponse`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct VmmPing {
    /// Its version, as in `54.0.0`.
    pub version: String,
}

/// What a machine is to have (`VmResize`). What is `None` stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct VmResize {
    /// Processors, at least 1 and at most [`CpusConfig::max_vcpus`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desired_vcpus: Option<u32>,
    /// Memory altogether in bytes, from [`MemoryConfig::size`] to that and
    /// [`MemoryConfig::hotplug_size`], with [`HotplugMethod::VirtioMem`] a multiple of 2 MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desired_ram: Option<u64>,
}

/// What a machine has (`VmInfo`).
#[derive(Debug, Clone, Deserialize)]
pub struct VmInfo {
    /// The machine as it is to be by now.
    pub config: ConfigInfo,
    /// The memory that the guest has taken, in bytes; `None` before the boot.
    pub memory_actual_size: Option<u64>,
    /// Its devices by their ids; `None` before the boot.
    pub device_tree: Option<BTreeMap<String, IgnoredAny>>,
}

impl VmInfo {
    /// Whether it has a device of this id.
    #[must_use]
    pub fn has_device(&self, id: &str) -> bool {
        self.device_tree.as_ref().is_some_and(|devices| devices.contains_key(id))
    }
}

/// What a machine is to be (`VmConfig`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ConfigInfo {
    /// Its memory.
    pub memory: MemoryInfo,
}

/// How much memory a machine is to have (`MemoryConfig`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct MemoryInfo {
    /// At boot, in bytes.
    pub size: u64,
    /// What is to be there on top, in bytes; `None` for nothing.
    pub hotplugged_size: Option<u64>,
}

impl MemoryInfo {
    /// Altogether, in bytes.
    #[must_use]
    pub fn wanted(&self) -> u64 {
        self.size.saturating_add(self.hotplugged_size.unwrap_or_default())
    }
}

/// A device that is to go (`VmRemoveDevice`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceRef {
    /// The id that it came with.
    pub id: String,
}
