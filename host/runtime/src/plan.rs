//! From configuration and spec to plans: what is decided here is carried out by `kata-sandbox`
//! without another look at either.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kata_agent_client::{GuestSandbox, GuestStorage};
use kata_channel::{DEBUG_CONSOLE_PORT, LOG_PORT};
use kata_config::{
    HostConfig, HostResources, InternetworkingModel, LogLevel, Root, SandboxSize, VerityParams,
    WorkloadLimits,
};
use kata_hypervisor::{
    DiskSpec, GuestImage, GuestRoot, ShareSource, ShareSpec, SharedFileSystem, Verity, VmSpec,
};
use kata_linux::cgroup::LimitsAbove;
use kata_linux::identifier::{self, IdentifierError};
use kata_sandbox::{
    ContainerPlan, Deadlines, ImageCache, ImagePlan, MemoryPlan, NetworkModel, NetworkPlan,
    Placement, ResolvConf, SandboxMount, SandboxPlan, VcpusPlan,
};
use kata_storage::{FileServerSpec, RootfsMount, check_container_id};
use oci_spec::runtime::{LinuxResources, Spec};

use crate::guest_spec::{self, GuestPolicy};
use crate::role::PodLimits;
use crate::{ContainerRole, Runtime, RuntimeError, SpecError, disks, role_of, room, template};

/// Where sandboxes keep their run-time state on the host, a directory each.
pub const RUN_DIR: &str = "/run/kata";

/// Where the sandbox with this id keeps its run-time state, whether it exists or not.
pub fn run_dir_of(sandbox: &str) -> Result<PathBuf, IdentifierError> {
    identifier::check("sandbox id", sandbox)?;
    Ok(Path::new(RUN_DIR).join(sandbox))
}

/// Where the initial ramdisk is, below the place where this software is installed.
const INSTALLED_INITRD: &str = "share/kata-containers/kata-containers-initrd.img";

/// Where images of root file systems are, in a directory for each sandbox. They may be large, so it
/// is on a disk.
const IMAGES_DIR: &str = "/var/lib/kata-containers";

/// The directory in it with the images that are kept for the next container: no sandbox can have
/// such an id.
const IMAGE_CACHE: &str = ".cache";

/// The virtio-fs mount tag that both sides rely on (agent protocol).
const SHARE_TAG: &str = "kataShared";

/// The longest that a VMM takes to say hello on a busy host.
const VMM_DEADLINE: Duration = Duration::from_secs(30);

pub(crate) fn sandbox(
    runtime: &Runtime,
    id: &str,
    spec: &Spec,
    rootfs_mounts: &[RootfsMount],
) -> Result<SandboxPlan, RuntimeError> {
    check_container_id(id)?;
    let config = &runtime.config;
    let network = network(runtime, spec)?;
    let role = role_of(spec.annotations().as_ref())?;
    let run_dir = run_dir_of(id)?;
    let file_server = file_server(runtime, &run_dir);
    let shares = shares(runtime, &run_dir, file_server.as_ref());
    let images = shares.is_empty().then(|| images(config, id));
    if images.is_some() {
        refuse_without_share(runtime)?;
    }
    let root = disks::root(runtime, &role, rootfs_mounts)?;
    let devices = disks::devices(runtime, &role, spec)?;
    let takes = runtime.hypervisor().capabilities().disks;
    let later_disks = disks::later(takes, &role, root.as_ref(), images.is_some());
    let disks: Vec<DiskSpec> = root
        .into_iter()
        .filter_map(disks::at_boot)
        .chain(devices.into_iter().filter_map(disks::device_at_boot))
        .collect();
    let host = host(runtime)?;
    let size = kata_config::sandbox_size(config, limits(spec, &role), host)?;
    let connect_deadline = config.agent.connect_deadline();
    let (memory, vcpus) = (room::memory(runtime, size), room::vcpus(runtime, size, host));
    let mut vm = vm(runtime, id, size, &memory, &vcpus)?;
    (vm.shares, vm.disks, vm.later_disks) = (shares, disks, later_disks);
    template::shape(runtime, &mut vm);
    Ok(SandboxPlan {
        id: id.to_owned(),
        vm,
        network,
        memory,
        vcpus,
        placement: placement(spec, &role)?,
        file_server,
        guest: guest_sandbox(config, id, spec, images.is_none()),
        images,
        cgroup: cgroup(config, id, spec),
        deadlines: Deadlines {
            kernel: connect_deadline,
            agent: connect_deadline,
            request: config.agent.request_timeout(),
            health_check: config.agent.health_check_timeout(),
        },
        single_container: role == ContainerRole::Single,
        open_ports: open_ports(config),
        resolv_conf: resolv_conf(spec),
        sandbox_mounts: sandbox_mounts(config),
    })
}

/// The VM of a sandbox by itself: without what it shares, its disks and its network.
pub(crate) fn vm(
    runtime: &Runtime,
    id: &str,
    size: SandboxSize,
    memory: &MemoryPlan,
    vcpus: &VcpusPlan,
) -> Result<VmSpec, RuntimeError> {
    let config = &runtime.config;
    let vm = config.vm();
    readable(&vm.kernel, "guest kernel", "kernel")?;
    Ok(VmSpec {
        vcpus: size.vcpus,
        most_vcpus: vcpus.fixed.is_none().then_some(vcpus.most),
        memory_mib: size.memory_mib,
        most_memory_mib: memory.fixed.is_none().then_some(memory.most_mib),
        kernel_params: kernel_params(config),
        debug: vm.enable_debug,
        vmm_deadline: VMM_DEADLINE.min(config.agent.connect_deadline()),
        ..VmSpec::bare(id, &vm.kernel, guest_root(runtime)?, Path::new(RUN_DIR).join(id))
    })
}

pub(crate) fn container(
    runtime: &Runtime,
    id: &str,
    mut spec: Spec,
    bundle: &Path,
    rootfs_mounts: Vec<RootfsMount>,
) -> Result<ContainerPlan, RuntimeError> {
    check_container_id(id)?;
    let role = role_of(spec.annotations().as_ref())?;
    if role == ContainerRole::Single {
        guest_spec::refuse_joined_namespaces(&spec)?;
    }
    let root = spec.root().as_ref().ok_or(SpecError::Missing("root"))?;
    let readonly_rootfs = root.readonly().unwrap_or_default();
    // containerd mounts at `rootfs` whatever the spec says; without mounts the spec's path holds,
    // relative to the bundle.
    let rootfs =
        if rootfs_mounts.is_empty() { bundle.join(root.path()) } else { bundle.join("rootfs") };
    let shared_pid_namespace = guest_spec::shares_pid_namespace(&spec, &role);
    let disk = disks::root(runtime, &role, &rootfs_mounts)?;
    let devices = disks::devices(runtime, &role, &spec)?;
    let mounts = kata_storage::plan_mounts(&spec, bundle)?;
    if has_no_share(runtime) && !mounts.host_overlays.is_empty() {
        let what = "a shared file system, which a mount of type overlay needs";
        return Err(RuntimeError::Lacks { hypervisor: runtime.hypervisor().name(), what });
    }
    let policy = GuestPolicy {
        drop_seccomp: runtime.config.runtime.disable_guest_seccomp,
        disks: disks::takes_devices(runtime, &role),
    };
    let linux = spec.linux_mut().as_mut();
    let resources = linux.and_then(|linux| linux.resources_mut().as_mut());
    let placement = resources.map(Placement::take_from).transpose()?.unwrap_or_default();
    let spec = guest_spec::for_guest(spec, id, policy)?;
    Ok(ContainerPlan {
        id: id.to_owned(),
        spec,
        rootfs_mounts,
        rootfs,
        disk,
        placement,
        devices,
        readonly_rootfs,
        mounts,
        shared_pid_namespace,
        stands_for_pod: role == ContainerRole::PodSandbox,
    })
}

fn network(runtime: &Runtime, spec: &Spec) -> Result<NetworkPlan, RuntimeError> {
    let config = &runtime.config;
    let model = match config.runtime.internetworking_model {
        InternetworkingModel::Tcfilter => Some(NetworkModel::TcFilter),
        InternetworkingModel::Macvtap => Some(NetworkModel::MacVtap),
        InternetworkingModel::None => None,
    };
    let namespace = guest_spec::network_namespace(spec)?;
    let hypervisor = runtime.hypervisor();
    let can = hypervisor.capabilities();
    if can.named_taps.is_some() && model == Some(NetworkModel::MacVtap) {
        let what = "macvtap (`internetworking_model` in the section runtime)";
        return Err(RuntimeError::Lacks { hypervisor: hypervisor.name(), what });
    }
    let vhost = can.vhost_net && !config.qemu.disable_vhost_net;
    let vmm_inside = namespace.is_none() || guest_spec::has_host_hooks(spec);
    let (named_taps, hot_plug) = (can.named_taps, can.hot_plug);
    Ok(NetworkPlan { namespace, model, vhost, named_taps, hot_plug, vmm_inside })
}

/// The resolv.conf(5) that the engine mounts into the container.
fn resolv_conf(spec: &Spec) -> Option<ResolvConf> {
    let mut mounts = spec.mounts().iter().flatten();
    let mount = mounts.find(|mount| mount.destination() == Path::new("/etc/resolv.conf"));
    mount.and_then(|mount| mount.source().clone()).map(ResolvConf::at)
}

/// What the guest starts from: what the configuration names, else the initial ramdisk that is
/// installed with this software.
pub(crate) fn guest_root(runtime: &Runtime) -> Result<GuestRoot, RuntimeError> {
    let vm = runtime.config.vm();
    match root(runtime)? {
        Root::Initrd(named) => {
            let initrd = initrd(runtime, named);
            readable(&initrd, "guest's initial ramdisk", "initrd")?;
            Ok(GuestRoot::Initrd(initrd))
        }
        Root::Image(image) => {
            readable(image, "guest's rootfs image", "image")?;
            if let Some(drivers) = &vm.image_drivers {
                readable(drivers, "initial ramdisk with drivers", "image_drivers")?;
            }
            Ok(GuestRoot::Image(GuestImage {
                file: image.to_owned(),
                file_system: vm.rootfs_type.as_str().to_owned(),
                verity: vm.kernel_verity_params.as_ref().map(verity),
                drivers: vm.image_drivers.clone(),
            }))
        }
    }
}

/// Where the initial ramdisk is: what the configuration names, else the one that is installed.
pub(crate) fn initrd(runtime: &Runtime, named: Option<&Path>) -> PathBuf {
    named.map_or_else(|| runtime.prefix.join(INSTALLED_INITRD), Path::to_path_buf)
}

fn root(runtime: &Runtime) -> Result<Root<'_>, RuntimeError> {
    let hypervisor = runtime.hypervisor();
    match runtime.config.vm().root() {
        Root::Image(_) if !hypervisor.capabilities().image => Err(RuntimeError::Lacks {
            hypervisor: hypervisor.name(),
            what: "disks, and so the rootfs image that its section names",
        }),
        root => Ok(root),
    }
}

fn verity(params: &VerityParams) -> Verity {
    Verity {
        root_hash: params.root_hash.clone(),
        salt: params.salt.clone(),
        data_blocks: params.data_blocks,
        data_block_size: params.data_block_size,
        hash_block_size: params.hash_block_size,
    }
}

fn readable(path: &Path, what: &'static str, key: &'static str) -> Result<(), RuntimeError> {
    let opened = File::open(path).map(drop);
    opened.map_err(|source| RuntimeError::Asset { what, path: path.to_owned(), key, source })
}

pub(crate) fn kernel_params(config: &HostConfig) -> Vec<String> {
    let agent = &config.agent;
    let mut params = vec![
        format!("agent.log={}", agent_log_level(agent.effective_log_level())),
        format!("agent.log_vport={LOG_PORT}"),
    ];
    if agent.debug_console_enabled {
        params.push("agent.debug_console".to_owned());
        params.push(format!("agent.debug_console_vport={DEBUG_CONSOLE_PORT}"));
    }
    if agent.container_pipe_size > 0 {
        params.push(format!("agent.container_pipe_size={}", agent.container_pipe_size));
    }
    params.extend(config.vm().kernel_params.split_ascii_whitespace().map(str::to_owned));
    params
}

/// What the parameters make the agent serve for people.
fn open_ports(config: &HostConfig) -> Vec<u32> {
    let console = config.agent.debug_console_enabled.then_some(DEBUG_CONSOLE_PORT);
    [LOG_PORT].into_iter().chain(console).collect()
}

fn agent_log_level(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Trace => "trace",
        LogLevel::Debug => "debug",
        LogLevel::Info => "info",
        LogLevel::Warn => "warn",
        LogLevel::Error => "error",
    }
}

/// The file server that the driver needs beside it; `None` if it serves directories by itself, or
/// none at all.
pub(crate) fn file_server(runtime: &Runtime, run_dir: &Path) -> Option<FileServerSpec> {
    if runtime.hypervisor().capabilities().shared_file_system != SharedFileSystem::Server {
        return None;
    }
    let settings = runtime.config.virtio_fs().expect("a driver with a server has its keys");
    let embedded = || kata_config::companion(&runtime.prefix, "kata-virtiofsd");
    Some(FileServerSpec {
        external: settings.virtio_fs_daemon.is_some(),
        program: settings.virtio_fs_daemon.clone().unwrap_or_else(embedded),
        extra_args: settings.virtio_fs_extra_args.clone(),
        cache: settings.virtio_fs_cache.as_str().to_owned(),
        shared_dir: run_dir.join(kata_storage::SHARED),
        socket: run_dir.join("virtiofs.sock"),
        debug: runtime.config.vm().enable_debug,
    })
}

/// The shared directory, as the driver takes it; none where it takes none, and the guest gets
/// images and copies.
fn shares(runtime: &Runtime, run_dir: &Path, server: Option<&FileServerSpec>) -> Vec<ShareSpec> {
    let source = match (runtime.hypervisor().capabilities().shared_file_system, server) {
        (SharedFileSystem::None, _) => return Vec::new(),
        (_, Some(server)) => ShareSource::Server(server.socket.clone()),
        (_, None) => ShareSource::Directory(run_dir.join(kata_storage::SHARED)),
    };
    vec![ShareSpec { tag: SHARE_TAG.to_owned(), source }]
}

/// Where images are of a guest that no directory is shared with.
fn images(config: &HostConfig, id: &str) -> ImagePlan {
    let all = Path::new(IMAGES_DIR);
    let limit = u64::from(config.firecracker.rootfs_cache_size) << 20;
    ImagePlan { directory: all.join(id), cache: ImageCache::new(all.join(IMAGE_CACHE), limit) }
}

fn has_no_share(runtime: &Runtime) -> bool {
    runtime.hypervisor().capabilities().shared_file_system == SharedFileSystem::None
}

/// Refuses what only a shared directory can do.
fn refuse_without_share(runtime: &Runtime) -> Result<(), RuntimeError> {
    if runtime.config.runtime.sandbox_bind_mounts.is_empty() {
        return Ok(());
    }
    Err(RuntimeError::Lacks {
        hypervisor: runtime.hypervisor().name(),
        what: "a shared file system, which `sandbox_bind_mounts` in the section runtime needs",
    })
}

fn guest_sandbox(config: &HostConfig, id: &str, spec: &Spec, has_share: bool) -> GuestSandbox {
    let share = GuestStorage {
        driver: "virtio-fs".to_owned(),
        source: SHARE_TAG.to_owned(),
        fstype: "virtiofs".to_owned(),
        mount_point: kata_storage::GUEST_SHARE.to_owned(),
        ..GuestStorage::default()
    };
    GuestSandbox {
        id: id.to_owned(),
        hostname: hostname(spec),
        dns: resolv_conf(spec).map(|file| file.lines()).unwrap_or_default(),
        storages: has_share.then_some(share).into_iter().collect(),
        shared_pid_namespace: false,
        kernel_modules: config.agent.kernel_modules.clone(),
        guest_hook_path: String::new(),
    }
}

fn sandbox_mounts(config: &HostConfig) -> Vec<SandboxMount> {
    let mounts = config.runtime.sandbox_bind_mounts.iter();
    mounts.map(|one| SandboxMount { source: one.source.clone(), readonly: one.read_only }).collect()
}

/// Without a name of its own a container has its host's, as with any other runtime.
fn hostname(spec: &Spec) -> String {
    let own = spec.hostname().clone().filter(|name| !name.is_empty());
    own.unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned())
}

/// The engine's cgroup, or one of our own where the administrator does not want the engine's.
fn cgroup(config: &HostConfig, id: &str, spec: &Spec) -> String {
    let engines = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_ref());
    match engines {
        Some(path) if config.runtime.sandbox_cgroup_only => path.display().to_string(),
        _ => format!("/kata_overhead/{id}"),
    }
}

/// Where on the host a lone container may run; a pod's containers say so when they come.
fn placement(spec: &Spec, role: &ContainerRole) -> Result<Placement, RuntimeError> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let alone = resources.filter(|_| *role == ContainerRole::Single);
    Ok(alone.map_or(Ok(Placement::default()), Placement::of)?)
}

/// The limits that are known when the VM is made: a pod's from CRI's annotations, a lone
/// container's own.
fn limits(spec: &Spec, role: &ContainerRole) -> WorkloadLimits {
    if *role != ContainerRole::Single {
        let pod = PodLimits::of(spec.annotations().as_ref());
        let limits = WorkloadLimits::from_spec(pod.quota, pod.period, pod.memory);
        // What is told is the sum of the limits that there are. Whether all containers have one,
        // only the kubelet's cgroup for the pod says.
        let all = above(spec);
        return limits.beside(!all.cpu, !all.memory);
    }
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let cpu = resources.and_then(|resources: &LinuxResources| resources.cpu().as_ref());
    let memory = resources.and_then(|resources| resources.memory().as_ref());
    WorkloadLimits::from_spec(
        cpu.and_then(|cpu| cpu.quota()),
        cpu.and_then(|cpu| cpu.period()),
        memory.and_then(|memory| memory.limit()),
    )
}

/// What the cgroup limits that the engine's one is to be in.
fn above(spec: &Spec) -> LimitsAbove {
    let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_ref());
    // A wrong path is told when the cgroup is made.
    path.and_then(|path| LimitsAbove::of(&path.to_string_lossy()).ok()).unwrap_or_default()
}

pub(crate) fn host(runtime: &Runtime) -> Result<HostResources, RuntimeError> {
    let cpus = std::thread::available_parallelism().map_err(RuntimeError::Host)?;
    let memory_mib = kata_linux::memory::total_mib().map_err(RuntimeError::Host)?;
    Ok(HostResources {
        cpus: u32::try_from(cpus.get()).unwrap_or(u32::MAX),
        memory_mib,
        driver_max_vcpus: runtime.hypervisor().capabilities().max_vcpus,
    })
}

#[cfg(test)]
mod tests;
