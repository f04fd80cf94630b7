//! The virtual machine as plain data: what the plan decides and a driver builds.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

/// One virtual machine to boot. Paths are on the host and were checked to exist when the plan was made.
#[derive(Debug, Clone)]
pub struct VmSpec {
    /// The sandbox's id: names the VM in process lists and logs, nothing else.
    pub sandbox: String,
    /// Virtual CPUs at boot, at least 1.
    pub vcpus: u32,
    /// Guest memory in MiB, at least 64.
    pub memory_mib: u32,
    /// The guest kernel, in a form that the driver boots (see its documentation).
    pub kernel: PathBuf,
    /// The initial ramdisk that holds the agent.
    pub initrd: PathBuf,
    /// Guest kernel parameters, appended after the driver's own, so that a later one wins.
    pub kernel_params: Vec<String>,
    /// Directories served to the guest through virtio-fs.
    pub shares: Vec<ShareSpec>,
    /// Its network devices.
    pub nics: Vec<NicSpec>,
    /// Whether network devices may be added while it runs ([`crate::Vm::add_nic`]).
    pub hot_plug: bool,
    /// The network namespace for the VMM; `None` gives it an empty one of its own.
    pub network_namespace: Option<Arc<OwnedFd>>,
    /// A private directory (mode 0700) of this sandbox in which the driver may create sockets and files. Whoever
    /// made it removes it.
    pub run_dir: PathBuf,
    /// Boot verbosely: kernel messages reach the console, the VMM logs what it can.
    pub debug: bool,
}

/// A directory that a vhost-user file server offers to the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareSpec {
    /// The mount tag under which the guest finds it, 1 to 36 bytes (virtio 1.2 §5.11.4).
    pub tag: String,
    /// The unix socket on which the file server listens (vhost-user back end).
    pub socket: PathBuf,
}

/// A network device whose other end is a tap.
#[derive(Debug, Clone)]
pub struct NicSpec {
    /// Tells it apart from the others of the VM, and may be a part of an option: letters and digits.
    pub id: String,
    /// Its MAC address, as in `02:42:ac:11:00:02`.
    pub mac: String,
    /// The most that a frame may carry, in bytes; the guest is told.
    pub mtu: u32,
    /// The open tap. Frames have a virtio-net header (IFF_VNET_HDR). The VMM gets a copy.
    pub tap: Arc<OwnedFd>,
    /// An open vhost-net device that is to move its frames; `None` leaves that to the VMM.
    pub vhost: Option<Arc<OwnedFd>>,
}

/// What a driver can do. Everything that is false here is refused at planning time, with a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Directories can be shared through a vhost-user virtio-fs server.
    pub shared_file_system: bool,
    /// Most virtual CPUs that a VM of this driver may have.
    pub max_vcpus: u32,
    /// Whether the VM can be paused and resumed as a whole.
    pub pause: bool,
}
