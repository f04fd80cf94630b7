//! What requests and responses hold: of the published description's schemas those, and of their
//! fields those, that this driver needs. Names and defaults are the description's.
//! `tests/description.rs` holds them against it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The machine's size (`MachineConfiguration`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MachineConfiguration {
    /// Processors, 1 to 32.
    pub vcpu_count: u32,
    /// Memory in MiB.
    pub mem_size_mib: u32,
}

/// What is booted (`BootSource`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BootSource {
    /// The kernel: an ELF image.
    pub kernel_image_path: PathBuf,
    /// The initial ramdisk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<PathBuf>,
    /// The kernel's command line.
    pub boot_args: String,
}

/// A disk (`Drive`). The guest finds disks as `vda`, `vdb`, … in the order of the requests, but for
/// the root device, which is the first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Drive {
    /// By which it is patched: letters, digits and `_`.
    pub drive_id: String,
    /// A file or a block device.
    pub path_on_host: PathBuf,
    /// Whether the VMM tells the kernel to boot from it.
    pub is_root_device: bool,
    /// Whether the guest must not write.
    pub is_read_only: bool,
    /// How much it may do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// Another file for a disk (`PartialDrive`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PartialDrive {
    /// The disk.
    pub drive_id: String,
    /// Its file or block device from now on.
    pub path_on_host: PathBuf,
}

/// A network device (`NetworkInterface`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkInterface {
    /// Tells it apart: letters, digits and `_`.
    pub iface_id: String,
    /// The tap's name, in the VMM's network namespace.
    pub host_dev_name: String,
    /// The guest's MAC address, as in `02:42:ac:11:00:02`.
    pub guest_mac: String,
    /// How much it may receive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// How much it may send.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// How much a device may do (`RateLimiter`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct RateLimiter {
    /// In bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucket>,
    /// In operations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucket>,
}

/// A budget that fills up again (`TokenBucket`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TokenBucket {
    /// What it holds.
    pub size: u64,
    /// The time in ms in which it fills up from empty.
    pub refill_time: u64,
    /// What there is once, beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
}

/// The socket device (`Vsock`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Vsock {
    /// The guest's address (vsock(7)), at least 3.
    pub guest_cid: u32,
    /// Where the VMM listens for connections to the guest's ports.
    pub uds_path: PathBuf,
}

/// The source of random numbers (`EntropyDevice`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct EntropyDevice {}

/// Something to do (`InstanceActionInfo`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct InstanceActionInfo {
    /// What.
    pub action_type: ActionType,
}

/// What there is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum ActionType {
    /// Boots the machine.
    InstanceStart,
    /// Writes the metrics out.
    FlushMetrics,
}

/// Where the machine is to go (`Vm`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Vm {
    /// There.
    pub state: TargetState,
}

/// Where a machine that runs can go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum TargetState {
    /// Its processors stand still.
    Paused,
    /// They run.
    Resumed,
}

/// Who is there (`InstanceInfo`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct InstanceInfo {
    /// The VMM's version, as in `1.13.1`.
    pub vmm_version: String,
    /// Where the machine is in its life.
    pub state: InstanceState,
}

/// Where a machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum InstanceState {
    /// Not yet booted.
    #[serde(rename = "Not started")]
    NotStarted,
    /// Running.
    Running,
    /// Its processors stand still.
    Paused,
}
