//! From a spec to a kata-krun that is about to run its guest.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use kata_hypervisor::{HypervisorError, VmExit, VmSpec, Vmm, pipe_from_vmm};
use kata_linux::jail::{Jail, Network, Resource};
use kata_linux::mount;
use kata_linux::process::{Child, Exit, Spawn};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::arguments::{self, Inherited};
use crate::dial::Dialer;
use crate::vm::KrunVm;
use crate::{KrunSettings, NAME};

/// The directory for the guest's ports, in the sandbox's own.
const VSOCK_DIR: &str = "vsock";

/// Of the file system for them. A VMM that was taken over can make sockets there, and is not to
/// fill the host's.
const VSOCK_OPTIONS: [&str; 5] =
    ["nosuid", "nodev", "noexec", "mode=0700", "size=64k,nr_inodes=64"];

/// Starts the VMM. If this fails, or is dropped, nothing is left: the child dies with its handle.
pub(crate) async fn launch(
    settings: &KrunSettings,
    spec: &VmSpec,
) -> Result<KrunVm, HypervisorError> {
    let program = settings.program.display().to_string();
    let setup = |what| move |source| HypervisorError::Setup { what, source };
    // Without KVM the VMM would say so, but not what to do; and a kernel that finds no device says
    // nothing for ever.
    if let Some(obstacle) = crate::obstacle(&spec.kernel) {
        let source = io::Error::other(format!("{obstacle}; or use QEMU, which needs neither"));
        return Err(HypervisorError::Setup { what: "krun", source });
    }
    let vsock_dir = spec.run_dir.join(VSOCK_DIR);
    let (sockets, mounted) =
        SocketsMount::at(&vsock_dir).map_err(setup("the directory for vsock ports"))?;
    // The namespace of its processes is the one wall that it cannot put up without a second
    // process. And a namespace that others may know by its process is not for it to leave.
    let network = match &spec.network_namespace {
        Some(namespace) => Network::Joined(namespace.clone()),
        None => Network::Shared,
    };
    let limits = vec![(Resource::Core, 0)];
    let jail = Jail { network, own_pids: true, limits, ..Jail::default() };
    let mut spawn = Spawn::new(&settings.program).jail(jail);
    let (console_output, console) = pipe_from_vmm().map_err(setup("the console"))?;
    let (ready_output, ready) = pipe_from_vmm().map_err(setup("the VMM's greeting"))?;
    let (console, ready) = (spawn.pass_fd(console), spawn.pass_fd(ready));
    let mut taps = Vec::new();
    for nic in &spec.nics {
        taps.push(
            spawn
                .pass_fd(nic.tap.descriptor(NAME)?.try_clone().map_err(setup("a network device"))?),
        );
    }
    let inherited = Inherited { console, ready, taps };
    let arguments = arguments::of(settings, spec, &vsock_dir, inherited)?;
    tracing::debug!(sandbox = spec.sandbox, "{program} {arguments:?}");
    let child = spawn
        .args(arguments)
        .spawn()
        .map_err(|error| HypervisorError::not_spawned(program.clone(), error))?;
    let child = Arc::new(child);

    let vmm = Vmm::new(Arc::clone(&child), console_output);
    vmm.within(spec.vmm_deadline, &program, greet(&program, &child, ready_output)).await?;
    // The VMM has taken it along, and we have it open.
    drop(mounted);
    let dialer = Dialer::new(sockets, settings.ports.clone(), settings.dial_again, child);
    let disks = spec.disks.iter().map(|disk| disk.id.clone()).collect();
    Ok(KrunVm { vmm, dialer, disks })
}

/// A small file system for sockets, as long as it has a place where a VMM finds it.
struct SocketsMount<'a>(&'a Path);

impl<'a> SocketsMount<'a> {
    /// Empty, for nobody else, and open.
    fn at(path: &'a Path) -> io::Result<(OwnedFd, Self)> {
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        DirBuilder::new().mode(0o700).create(path)?;
        let options = VSOCK_OPTIONS.map(str::to_owned);
        mount::mount("tmpfs", path, "tmpfs", &options).map_err(io::Error::other)?;
        let mounted = Self(path);
        Ok((File::open(path)?.into(), mounted))
    }
}

impl Drop for SocketsMount<'_> {
    fn drop(&mut self) {
        if let Err(error) = mount::unmount_tree(self.0) {
            tracing::warn!("the directory for vsock ports stays mounted: {error}");
        }
    }
}

/// Waits for the VMM's first word, or for its last.
async fn greet(
    program: &str,
    child: &Child,
    mut ready: pipe::Receiver,
) -> Result<(), HypervisorError> {
    // It writes one byte when it is through with its set-up; a pipe that is closed before that is a
    // VMM that is about to exit.
    if matches!(ready.read(&mut [0]).await, Ok(1)) {
        return Ok(());
    }
    Err(HypervisorError::of_death(program.to_owned(), child).await)
}

pub(crate) fn to_vm_exit(exit: Exit) -> VmExit {
    // The one thing that makes this VMM exit with success is a guest that resets itself.
    let reason = (exit == Exit::Code(0)).then(|| "guest-reset".to_owned());
    VmExit::of(exit, reason)
}

/// What a driver that has no control channel says about it.
pub(crate) fn signal_error(command: &'static str, error: &io::Error) -> HypervisorError {
    HypervisorError::Control { command, reason: format!("{NAME}: {error}") }
}
