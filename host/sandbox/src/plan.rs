//! Everything that is decided before something happens: plain data, made by the layer above from
//! configuration, OCI spec and the driver's capabilities.

use std::path::PathBuf;
use std::time::Duration;

use kata_agent_client::GuestSandbox;
use kata_hypervisor::VmSpec;
use kata_storage::{BlockRoot, FileServerSpec, GuestMounts, ImageCache, RootfsMount};
use oci_spec::runtime::Spec;

use crate::{NetworkModel, Placement, ResolvConf};

/// A sandbox to boot.
#[derive(Debug, Clone)]
pub struct SandboxPlan {
    /// The sandbox's id, a plain file name.
    pub id: String,
    /// The virtual machine. Its `run_dir` is the sandbox's directory on the host, made at boot and
    /// removed at the end.
    pub vm: VmSpec,
    /// The file server for the shared directory, which is made at boot below `run_dir`; `None`
    /// where the VMM serves it by itself, and where there is none.
    pub file_server: Option<FileServerSpec>,
    /// Where root file systems are packed into images; `None` where the guest gets them through the
    /// shared directory.
    pub images: Option<ImagePlan>,
    /// What the agent is told first.
    pub guest: GuestSandbox,
    /// The cgroup on the host for the VMM, its companions and the calling process, as in the OCI
    /// spec's `cgroupsPath`.
    pub cgroup: String,
    /// Where its network comes from.
    pub network: NetworkPlan,
    /// The resolv.conf(5) of its first container, from which it learns at the first start whether a
    /// name server on the host is to be asked; `None` where the engine mounts none.
    pub resolv_conf: Option<ResolvConf>,
    /// Ports of the guest that root on this host may reach through the sandbox's socket.
    pub open_ports: Vec<u32>,
    /// Directories of the host that everything in the guest may see.
    pub sandbox_mounts: Vec<SandboxMount>,
    /// How the VM's memory follows its containers' limits.
    pub memory: MemoryPlan,
    /// How its virtual CPUs do.
    pub vcpus: VcpusPlan,
    /// Where on the host it may run when it boots; later its containers decide.
    pub placement: Placement,
    /// How long each stage of the boot, and each request, may take.
    pub deadlines: Deadlines,
    /// No other container is expected: unless one has joined, the VM may go as soon as its first
    /// one has ended.
    pub single_container: bool,
}

/// Where the images of a sandbox's root file systems are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagePlan {
    /// The sandbox's own directory, which is made at boot and removed at the end.
    pub directory: PathBuf,
    /// What all sandboxes have together, on the same file system.
    pub cache: ImageCache,
}

/// Where a sandbox's network comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkPlan {
    /// The network namespace that the engine has prepared. `None` makes a fresh one for the VMM to
    /// live in, which the engine may fill, through the VMM's process id, until the first container
    /// starts.
    pub namespace: Option<PathBuf>,
    /// How its interfaces are joined to the VM; `None` joins none.
    pub model: Option<NetworkModel>,
    /// Whether the kernel may move the frames (vhost-net), where the host has that.
    pub vhost: bool,
    /// The user as whom the VMM opens the taps itself
    /// ([`kata_hypervisor::Capabilities::named_taps`]), for which it lives in the namespace.
    pub named_taps: Option<u32>,
    /// Whether the driver takes interfaces that come after the boot
    /// ([`kata_hypervisor::Capabilities::hot_plug`]); otherwise the first container is not started
    /// where one has come.
    pub hot_plug: bool,
    /// The VMM lives in the namespace, so that whoever knows its process id finds it there: hooks,
    /// and engines for want of a path.
    pub vmm_inside: bool,
}

/// How a VM's memory follows the limits of its containers. All sizes are even numbers of MiB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPlan {
    /// What it boots with, and never has less than.
    pub boot_mib: u32,
    /// What it may have at most.
    pub most_mib: u32,
    /// What is added to the containers' limits for the guest itself.
    pub overhead_mib: u32,
    /// What it has at least while a container has no limit.
    pub unlimited_mib: u32,
    /// Why it stays as it boots, as a part of a sentence; `None` where the VM takes more while it
    /// runs.
    pub fixed: Option<String>,
}

/// How a VM's virtual CPUs follow the limits of its containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VcpusPlan {
    /// How many it boots with, and never has less than.
    pub boot: u32,
    /// How many it may have at most.
    pub most: u32,
    /// What is added to the containers' limits for the guest itself, in thousandths of a CPU.
    pub overhead_millis: u32,
    /// How many it has at least while a container has no limit.
    pub unlimited: u32,
    /// Why it stays as it boots, as a part of a sentence; `None` where the VM takes more while it
    /// runs.
    pub fixed: Option<String>,
}

/// A directory of the host for a whole sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxMount {
    /// Where it is on the host.
    pub source: PathBuf,
    /// The guest cannot write to it.
    pub readonly: bool,
}

/// The longest that each stage may take before it is called failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// From the VMM's hello ([`VmSpec::vmm_deadline`]) to the agent's first line on the console.
    pub kernel: Duration,
    /// From there to the agent's answer.
    pub agent: Duration,
    /// One request to the agent, streams and waits excepted.
    pub request: Duration,
    /// The answer to the question whether the agent is there, more than zero; `None` if it is never
    /// asked.
    pub health_check: Option<Duration>,
}

/// A root file system that the VM gets as a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskRoot {
    /// The device, and how it is mounted.
    pub root: BlockRoot,
    /// The disk among those that the VM has had since its boot ([`VmSpec::disks`]); `None` if it
    /// gets it now.
    pub id: Option<String>,
}

/// A block device of the host that a container uses as such.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskDevice {
    /// The disk among those that the VM has had since its boot ([`VmSpec::disks`]); `None` if it
    /// gets it now.
    pub id: Option<String>,
    /// Its node on the host.
    pub path: PathBuf,
    /// The container cannot write to it.
    pub readonly: bool,
    /// Its node in the container, of which the spec has the host's numbers.
    pub container_path: PathBuf,
}

/// A container to make in a sandbox.
#[derive(Debug, Clone)]
pub struct ContainerPlan {
    /// The container's id, a plain file name.
    pub id: String,
    /// The spec as the guest is to see it, with `root.path` and the mounts still to be filled in.
    pub spec: Spec,
    /// The mounts that make up its root file system, from the engine; empty when `rootfs` is one
    /// already.
    pub rootfs_mounts: Vec<RootfsMount>,
    /// Where its root file system is on the host.
    pub rootfs: PathBuf,
    /// Its root file system, where that is on a disk of its own; it is then not mounted on the
    /// host.
    pub disk: Option<DiskRoot>,
    /// The root file system is read-only on the host's side too.
    pub readonly_rootfs: bool,
    /// Where on the host it may run, of which its spec says nothing.
    pub placement: Placement,
    /// The block devices that it uses as such.
    pub devices: Vec<DiskDevice>,
    /// Its other mounts, and the host's directories and files among them.
    pub mounts: GuestMounts,
    /// Whether it joins the sandbox's process id namespace, or that of another container which
    /// it is to look into: the agent finds out which.
    pub shared_pid_namespace: bool,
    /// It stands for its pod and runs nothing that memory would have to be there for.
    pub stands_for_pod: bool,
}
