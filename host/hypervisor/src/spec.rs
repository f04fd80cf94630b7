//! The virtual machine as plain data: what the plan decides and a driver builds.

use std::path::PathBuf;

/// One virtual machine to boot. Paths are on the host and were checked to exist when the plan was made.
#[derive(Debug, Clone, PartialEq, Eq)]
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
