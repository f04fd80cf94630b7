//! From a spec to a guest that runs its first instructions.
//!
//! ```text
//!   spawn: jail, exec ──▶ vmm.ping: who is it? ──▶ vm.create: landlock ──▶ vm.add-net ──▶ vm.boot ──▶ CloudVm
//! ```
//!
//! Nothing of it is on disk but the socket for the guest's ports, in a directory that is all the
//! VMM can write to.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kata_hypervisor::{
    DiskSpec, HybridVsock, HypervisorError, NicSpec, VmSpec, Vmm, VmmDir, need_kvm, pipe_from_vmm,
};
use kata_linux::jail::{Jail, Network};
use kata_linux::process::Spawn;
use tokio::net::UnixStream;

use crate::api::{ApiError, Client, NetConfig, VmConfig};
use crate::later_disks::LaterDisks;
use crate::machine::{self, Surroundings};
use crate::resize::Room;
use crate::vm::CloudVm;
use crate::{CloudHypervisorSettings, NAME, OLDEST, events};

/// The directory in the sandbox's that the VMM makes its socket in.
const SOCKET_DIR: &str = "clh";

/// The name of the socket for the guest's ports.
const SOCKET: &str = "vsock";

/// Starts the VMM and boots the machine. If this fails, or is dropped, nothing is left: the child
/// dies with its handle.
pub(crate) async fn launch(
    settings: &CloudHypervisorSettings,
    landlock: bool,
    spec: &VmSpec,
) -> Result<CloudVm, HypervisorError> {
    let setup = |what| move |source| HypervisorError::Setup { what, source };
    let program = settings.program.display().to_string();
    need_kvm()?;
    let directory = socket_dir(&spec.run_dir).map_err(setup("a directory for the VMM's socket"))?;
    let (control, listener) = api_socket(&directory).map_err(setup("the control socket"))?;
    let (events, event_monitor) = pipe_from_vmm().map_err(setup("the event monitor"))?;
    let (console_output, stdout) = pipe_from_vmm().map_err(setup("the console"))?;

    // The program has no option that would name the VM.
    let title = format!("{program}: sandbox-{}", spec.sandbox);
    let mut jail = Jail::strict();
    if let Some(namespace) = &spec.network_namespace {
        jail.network = Network::Joined(namespace.clone());
    }
    let mut spawn = Spawn::new(&settings.program).title(title).jail(jail).stdout(stdout);
    let mut arguments = vec![
        "--api-socket".to_owned(),
        format!("fd={}", spawn.pass_fd(listener)),
        "--event-monitor".to_owned(),
        format!("fd={}", spawn.pass_fd(event_monitor)),
        "--seccomp".to_owned(),
        settings.seccomp.to_string(),
    ];
    let writable = directory.writable_alone().map_err(setup("a mount for the VMM's socket"))?;
    let vsock = format!("/proc/self/fd/{}/{SOCKET}", spawn.pass_fd(writable)).into();
    let disks = disks(&mut spawn, &spec.disks).map_err(setup("a disk"))?;
    let later_disks = LaterDisks::of(spec).map_err(setup("a directory for disks"))?;
    if spec.debug {
        arguments.push("-v".to_owned());
    }
    tracing::debug!(sandbox = spec.sandbox, "{program} {}", arguments.join(" "));
    let child = spawn
        .args(arguments)
        .spawn()
        .map_err(|error| HypervisorError::not_spawned(program.clone(), error))?;

    let child = Arc::new(child);
    let (reason, removals) = events::listen(events, child.clone());
    let client = Client::new(control);
    let dialer = HybridVsock::new(Arc::new(directory), SOCKET, settings.dial_again, child.clone());
    // From here on whatever returns early drops it, which kills the VMM.
    let vmm = Vmm::new(child, console_output);
    let hot_plug = spec.hot_plug;
    let ids = spec.disks.iter().map(|disk| disk.id.clone()).collect();
    let room = Room::of(spec);
    let entropy_source = settings.entropy_source.clone();
    let directories = later_disks.iter().flat_map(LaterDisks::directories).collect();
    let around = Surroundings { vsock, disks, entropy_source, later_disks: directories, landlock };
    let vm =
        CloudVm { vmm, hot_plug, room, disks: ids, later_disks, client, dialer, reason, removals };
    let taps = taps(&spec.nics)?;
    let config = machine::config(spec, around)?;
    let hello = async {
        match start(&vm.client, &config, taps).await {
            Ok(()) => Ok(()),
            // A VMM that closes its control socket is about to exit, and its stderr says why.
            Err(Failure::Api(ApiError::Broken { .. })) => {
                Err(HypervisorError::of_death(program.clone(), vm.vmm.child()).await)
            }
            Err(Failure::Api(error)) => Err(error.into()),
            Err(Failure::Version(reason)) => {
                Err(HypervisorError::Control { command: "vmm.ping", reason })
            }
        }
    };
    vm.vmm.within(spec.vmm_deadline, &program, hello).await?;
    Ok(vm)
}

enum Failure {
    Api(ApiError),
    Version(String),
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

/// The disks' files as the VMM can open them. It sees the host's own read-only, but what it was
/// passed as it was opened here.
fn disks(spawn: &mut Spawn, disks: &[DiskSpec]) -> io::Result<Vec<PathBuf>> {
    let named = |disk: &DiskSpec, error: &io::Error| {
        io::Error::new(error.kind(), format!("{}: {error}", disk.path.display()))
    };
    let open = |disk: &DiskSpec| {
        let file = File::options().read(true).write(!disk.readonly).open(&disk.path);
        let fd = spawn.pass_fd(file.map_err(|error| named(disk, &error))?);
        Ok(PathBuf::from(format!("/proc/self/fd/{fd}")))
    };
    disks.iter().map(open).collect()
}

/// Each network device with a tap of its own, for a request closes it.
fn taps(nics: &[NicSpec]) -> Result<Vec<(NetConfig, OwnedFd)>, HypervisorError> {
    let setup = |source| HypervisorError::Setup { what: "a network device", source };
    let tap = |nic: &NicSpec| nic.tap.descriptor(NAME)?.try_clone().map_err(setup);
    nics.iter().map(|nic| Ok((machine::nic(nic), tap(nic)?))).collect()
}

async fn start(
    client: &Client,
    config: &VmConfig,
    nics: Vec<(NetConfig, OwnedFd)>,
) -> Result<(), Failure> {
    let hello = client.ping().await?;
    OLDEST.check(&hello.version).map_err(Failure::Version)?;
    client.create(config).await?;
    for (nic, tap) in nics {
        client.add_net(&nic, vec![tap]).await?;
    }
    client.boot().await?;
    Ok(())
}

fn socket_dir(run_dir: &Path) -> io::Result<VmmDir> {
    let directory = VmmDir::make(&run_dir.join(SOCKET_DIR))?;
    // The VMM would not replace it.
    directory.remove(SOCKET)?;
    Ok(directory)
}

/// The one connection to the socket that the VMM listens on, and that socket. It is gone from the
/// directory before the VMM starts, so nobody else ever speaks to it.
fn api_socket(directory: &VmmDir) -> io::Result<(UnixStream, UnixListener)> {
    let name = "api";
    let path = directory.path(name);
    let listener = UnixListener::bind(&path)?;
    let control = StdUnixStream::connect(&path)?;
    directory.remove(name)?;
    control.set_nonblocking(true)?;
    Ok((UnixStream::from_std(control)?, listener))
}
