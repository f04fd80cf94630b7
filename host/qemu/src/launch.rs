//! From a spec to a QEMU that has said hello.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};

use kata_hypervisor::{DiskSpec, HypervisorError, NicSpec, ShareSource, VmSpec, Vmm};
use kata_linux::jail::{DeviceNode, Jail, Network, Nobody};
use kata_linux::process::{Child, Spawn, SpawnError};
use kata_linux::{program, user};
use tokio::net::UnixStream;

use crate::accelerator::Accelerator;
use crate::beginning::beginning;
use crate::channel::{Channel, socket_pair};
use crate::command_line::CommandLine;
use crate::device::{Device, Disk, FileShare, Nic};
use crate::file::FdSet;
use crate::hot_plug::HotPlug;
use crate::huge_pages;
use crate::kernel_image::KernelImage;
use crate::kernel_params::{self, Circumstances};
use crate::later_disks::LaterDisks;
use crate::machine::{Machine, Needs, Refusal, Threads};
use crate::memory::Memory;
use crate::own_devices::OwnDevices;
use crate::qmp::{Deleted, Qmp};
use crate::template::{self, Made, MemoryFile};
use crate::vcpus::Vcpus;
use crate::vm::QemuVm;
use crate::{DiskIo, Host, KVM, MachineChoice, QemuSettings};

/// The guest's name for the first virtio disk.
const IMAGE_DISK: &str = "vda";

/// How a VM is started.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Start<'a> {
    /// From its template, if there is one that is of it; else by a boot.
    Usual,
    /// By a boot, with this memory: it becomes a template.
    ToBeSaved(&'a MemoryFile),
}

/// Starts QEMU. If this fails, or is dropped, nothing is left: the child dies with its handle.
pub(crate) async fn launch(
    settings: &QemuSettings,
    host: &Host,
    spec: &VmSpec,
    start: Start<'_>,
) -> Result<QemuVm, HypervisorError> {
    let named = settings.program.display().to_string();
    let setup = |what| move |source| HypervisorError::Setup { what, source };
    let machine = choose_machine(settings.machine, host, &spec.kernel, Wishes::of(spec))?;
    if settings.pages.huge {
        huge_pages::check(spec)?;
    }
    let mut spawn = Spawn::new(&settings.program).jail(jail(host, spec)?);
    let (control, their_control) = socket_pair().map_err(setup("the control socket"))?;
    let (console_output, their_console) = socket_pair().map_err(setup("the console"))?;
    let control_fd = spawn.pass_fd(their_control);
    let console_fd = spawn.pass_fd(their_console);
    let silent = matches!(start, Start::ToBeSaved(_));
    let (channel, agent_port) = Channel::open(&mut spawn, settings.dial_again, silent)?;
    let hot_plug = Arc::new(HotPlug::of(machine, spec));
    let vcpus = Vcpus::of(spec, machine, host.accelerator);
    let vsock = channel.is_vsock();
    let append = kernel_command_line(host, spec, machine, vcpus, vsock);
    let places = hot_plug.devices().len();
    let made = Made { settings, host, spec, machine, vcpus, places, append: &append, vsock };
    let (beginning, key) = beginning(&mut spawn, start, made)?;

    let mut devices = vec![agent_port];
    devices.extend(devices_of(settings, spec, &mut spawn, &hot_plug)?);
    if beginning.has_own_places {
        devices.extend(OwnDevices::places());
    }
    let own_devices = own_devices_of(spec, &mut spawn).await?;
    let command_line = CommandLine {
        sandbox: spec.sandbox.clone(),
        machine,
        accelerator: host.accelerator,
        threads: threads(settings, host, vcpus),
        cpu_features: settings.cpu_features.clone(),
        vcpus,
        memory_mib: spec.memory_mib,
        most_memory_mib: spec.most_memory_mib,
        pages: settings.pages,
        memory_file: beginning.memory_file,
        guest: beginning.guest,
        control: control_fd,
        console: console_fd,
        devices,
        own_devices: own_devices.clone(),
        seccomp_sandbox: settings.seccomp_sandbox.clone(),
    };
    let arguments = command_line.arguments();
    tracing::debug!(sandbox = spec.sandbox, "{named} {}", arguments.join(" "));
    let child = spawn
        .args(arguments)
        .spawn()
        .map_err(|error| not_spawned(named.clone(), error, host.root))?;

    let vmm = Vmm::new(Arc::new(child), console_output);
    let later_disks = Arc::new(LaterDisks::of(spec, Arc::clone(&hot_plug), settings.disk_io));
    let told = Arc::clone(&later_disks);
    let deleted = move |device: &str| told.deleted(device);
    let is_a_copy = beginning.awakening.is_some();
    let hello = async {
        let qmp = greet(&named, vmm.child(), control, Box::new(deleted)).await?;
        if let Some(awakening) = beginning.awakening {
            vmm.console().set_kernel_up();
            template::go_on(vmm.child(), &qmp, awakening, &own_devices).await?;
        }
        Ok(qmp)
    };
    let qmp = vmm.within(spec.vmm_deadline, &named, hello).await?;
    let disks = spec.disks.iter().map(|disk| disk.id.clone()).collect();
    Ok(QemuVm {
        vmm,
        hot_plug,
        memory: Memory::of(spec),
        vcpus,
        disks,
        later_disks,
        qmp,
        channel,
        key,
        is_a_copy,
        boot_slot: Mutex::new(None),
    })
}

fn kernel_command_line(
    host: &Host,
    spec: &VmSpec,
    machine: Machine,
    vcpus: Vcpus,
    vsock: bool,
) -> String {
    let extra = [spec.root.kernel_params(IMAGE_DISK), spec.kernel_params.clone()].concat();
    kernel_params::command_line(&Circumstances {
        machine,
        accelerator: host.accelerator,
        tsc_khz: host.tsc_khz,
        tsc_trusted: host.tsc_trusted,
        debug: spec.debug,
        vsock,
        more_memory: spec.most_memory_mib.is_some(),
        vcpus,
        extra: &extra,
    })
}

/// How virtual CPUs are emulated. Asks QEMU, for some 30 ms, where there is more than one.
fn threads(settings: &QemuSettings, host: &Host, vcpus: Vcpus) -> Threads {
    match host.accelerator {
        Accelerator::Kvm => Threads::Multi,
        Accelerator::Tcg => Threads::of(vcpus, || program::version_of(&settings.program)),
    }
}

/// The walls around QEMU.
fn jail(host: &Host, spec: &VmSpec) -> Result<Jail, HypervisorError> {
    let mut jail = Jail::strict();
    if let Some(namespace) = &spec.network_namespace {
        jail.network = Network::Joined(namespace.clone());
    }
    if !host.root {
        let kvm = host.accelerator == Accelerator::Kvm;
        let kvm = kvm.then(|| DeviceNode::of(Path::new(KVM))).transpose();
        let kvm = kvm.map_err(|source| HypervisorError::Setup { what: "KVM", source })?;
        let devices = kvm.into_iter().collect();
        jail.user = Some(Nobody { id: user::of_this_process(), devices });
    }
    Ok(jail)
}

/// Why there is no QEMU. One that only root may run is told from one that is not there.
fn not_spawned(program: String, error: SpawnError, root: bool) -> HypervisorError {
    match error {
        SpawnError::Exec { source, .. }
            if !root && source.kind() == io::ErrorKind::PermissionDenied =>
        {
            let remedy = "QEMU's own user may not run it; let everybody run it and enter its directories, or set `rootless` to false";
            let source = io::Error::new(source.kind(), format!("{source}: {remedy}"));
            HypervisorError::Spawn { program, source }
        }
        error => HypervisorError::not_spawned(program, error),
    }
}

/// The devices that a template has, but for the agent's channel.
fn devices_of(
    settings: &QemuSettings,
    spec: &VmSpec,
    spawn: &mut Spawn,
    hot_plug: &HotPlug,
) -> Result<Vec<Device>, HypervisorError> {
    let setup = |what| move |source| HypervisorError::Setup { what, source };
    let mut devices = Vec::new();
    if let Some(image) = spec.root.image() {
        let file = FdSet::of(spawn, &image.file, false).map_err(setup("the image"))?;
        devices.push(Device::Image { file });
    }
    devices.extend(disks(spawn, spec, settings.disk_io)?);
    devices.extend(hot_plug.devices());
    devices.extend(Memory::of(spec).map(|memory| memory.device(settings.pages)));
    devices.extend(settings.pages.reclaimed.then_some(Device::FreePages));
    let source = FdSet::of(spawn, &settings.entropy_source, false);
    let source = source.map_err(setup("the source of random numbers"))?;
    devices.push(Device::Entropy { source });
    Ok(devices)
}

/// The devices that are a sandbox's own.
async fn own_devices_of(spec: &VmSpec, spawn: &mut Spawn) -> Result<OwnDevices, HypervisorError> {
    let setup = |what| move |source| HypervisorError::Setup { what, source };
    let mut own = OwnDevices::default();
    for (number, share) in spec.shares.iter().enumerate() {
        let ShareSource::Server(socket) = &share.source else {
            let what = "serving a directory by itself";
            return Err(HypervisorError::Unsupported { driver: "qemu", what });
        };
        let socket = connect(socket).await.map_err(setup("the connection to the file server"))?;
        let (socket, tag) = (spawn.pass_fd(socket), share.tag.clone());
        own.shares.push(FileShare { socket, tag, number });
    }
    for nic in &spec.nics {
        let tap = nic.tap.descriptor("qemu")?;
        own.nics.push(pass_nic(spawn, nic, tap).map_err(setup("a network device"))?);
    }
    Ok(own)
}

/// The spec's disks.
fn disks(spawn: &mut Spawn, spec: &VmSpec, io: DiskIo) -> Result<Vec<Device>, HypervisorError> {
    let disks = spec.disks.iter().map(|disk| Ok(Device::Disk(pass_disk(spawn, disk, io)?)));
    disks
        .collect::<io::Result<_>>()
        .map_err(|source| HypervisorError::Setup { what: "a disk", source })
}

/// Lets the child inherit a disk's file.
fn pass_disk(spawn: &mut Spawn, disk: &DiskSpec, io: DiskIo) -> io::Result<Disk> {
    let is_device = std::fs::metadata(&disk.path)?.file_type().is_block_device();
    let file = FdSet::of(spawn, &disk.path, !disk.readonly)?;
    Ok(Disk { id: disk.id.clone(), file, is_device, readonly: disk.readonly, io })
}

/// Lets the child inherit the descriptors of a network device.
fn pass_nic(spawn: &mut Spawn, nic: &NicSpec, tap: &OwnedFd) -> io::Result<Nic> {
    let mut pass = |fd: &OwnedFd| Ok::<_, io::Error>(spawn.pass_fd(fd.try_clone()?).to_string());
    Ok(Nic {
        id: nic.id.clone(),
        mac: nic.mac.clone(),
        mtu: nic.mtu,
        tap: pass(tap)?,
        vhost: nic.vhost.as_deref().map(pass).transpose()?,
    })
}

/// What not every machine has a place for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wishes {
    hot_plug: bool,
    disks: bool,
    later_disks: usize,
    more_memory: bool,
}

impl Wishes {
    fn of(spec: &VmSpec) -> Self {
        Self {
            hot_plug: spec.hot_plug,
            disks: !spec.disks.is_empty(),
            later_disks: spec.later_disks.count(),
            more_memory: spec.most_memory_mib.is_some(),
        }
    }
}

/// The machine that boots this kernel and has what is wished for.
pub(crate) fn choose_machine(
    choice: MachineChoice,
    host: &Host,
    kernel: &Path,
    wishes: Wishes,
) -> Result<Machine, HypervisorError> {
    let unbootable = |source| HypervisorError::Setup { what: "the guest kernel", source };
    let image = KernelImage::of(kernel).map_err(unbootable)?;
    let Wishes { hot_plug, disks, later_disks, more_memory } = wishes;
    let (accelerator, tsc_known) = (host.accelerator, host.tsc_khz.is_some());
    let needs =
        Needs { kernel: image, accelerator, tsc_known, hot_plug, disks, later_disks, more_memory };
    Machine::choose(choice, needs).map_err(|refusal| match refusal {
        Refusal::CompressedKernel => unbootable(io::Error::other(format!(
            "{} is compressed and microvm boots an uncompressed one (vmlinux) only; use that, or set `machine_type` to q35",
            kernel.display()
        ))),
        Refusal::Disks => HypervisorError::Unsupported {
            driver: "qemu",
            what: "disks of containers on a microvm yet; set `machine_type` to \"\" or \"q35\"",
        },
        Refusal::MoreMemory => HypervisorError::Unsupported {
            driver: "qemu",
            what: "memory that comes after the boot on a microvm; set `machine_type` to \"\" or \"q35\", or `enable_virtio_mem` to false",
        },
        Refusal::UnknownFrequency => HypervisorError::Unsupported {
            driver: "qemu",
            what: "a microvm without KVM on this host, whose processor has no time stamp counter that could be measured; set `machine_type` to \"\" or \"q35\"",
        },
    })
}

/// Waits for QEMU's first words, or for its last.
async fn greet(
    program: &str,
    child: &Child,
    control: UnixStream,
    deleted: Deleted,
) -> Result<Qmp, HypervisorError> {
    match Qmp::connect(control, deleted).await {
        Ok(qmp) => Ok(qmp),
        // A QEMU that closes its control socket is about to exit, and its stderr says why.
        Err(_) => Err(HypervisorError::of_death(program.to_owned(), child).await),
    }
}

/// The connection is made here, so that QEMU needs neither the path nor a network namespace in
/// common with the server.
async fn connect(socket: &Path) -> io::Result<StdUnixStream> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", socket.display())))?
        .into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}
