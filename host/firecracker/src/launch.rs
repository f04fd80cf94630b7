//! From a spec to a guest that runs its first instructions.
//!
//! ```text
//!   cell ──▶ spawn ──▶ GET /: who is it? ──▶ the machine's parts ──▶ InstanceStart ──▶ FirecrackerVm
//! ```

use std::fs::File;
use std::io;
use std::sync::Arc;

use kata_hypervisor::{
    Console, DiskSpec, HybridVsock, HypervisorError, VmSpec, Vmm, VmmDir, need_kvm, pipe_from_vmm,
};
use kata_linux::jail::{CapabilitySet, Jail, Mounts, Network};
use kata_linux::process::{Child, Spawn};
use tokio::net::UnixStream;

use crate::api::{ActionType, ApiError, Client, EntropyDevice};
use crate::cell::Cell;
use crate::disks::{self, Disks};
use crate::fifo::{Fifo, log_into, watch_metrics};
use crate::machine::{Machine, Seen};
use crate::vm::FirecrackerVm;
use crate::{FirecrackerSettings, NO_RESUME, OLDEST, socket};

/// Names in the VMM's directory.
const API: &str = "api";
const VSOCK: &str = "vsock";
const LOG: &str = "log";
const METRICS: &str = "metrics";

/// The longest name of a VM that the VMM takes.
const MAX_ID: usize = 64;

/// What the jailer needs to build the cell that it locks itself into.
const JAILER: CapabilitySet = CapabilitySet::SYS_ADMIN
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID);

/// Starts the VMM and boots the machine. If this fails, or is dropped, nothing is left: the child
/// dies with its handle.
pub(crate) async fn launch(
    settings: &FirecrackerSettings,
    spec: &VmSpec,
) -> Result<FirecrackerVm, HypervisorError> {
    let setup = |what| move |source| HypervisorError::Setup { what, source };
    let program = settings.program.display().to_string();
    need_kvm()?;
    let (console_output, stdout) = pipe_from_vmm().map_err(setup("the console"))?;
    let (cell, mut spawn) = cell(settings, spec).map_err(setup("a place for the VMM"))?;
    let seen = admit(&cell, &mut spawn, spec).map_err(setup("the VMM's files"))?;
    let disks = Disks::of(spec);
    let machine = Machine::of(spec, settings, disks.drives(), &seen)?;
    for name in [API, VSOCK] {
        cell.directory.remove(name).map_err(setup("the VMM's directory"))?;
    }
    let fifo = |name| {
        let fifo = Fifo::make(&cell.directory, name)?;
        cell.give(name).map(|()| fifo)
    };
    let log = fifo(LOG).map_err(setup("the VMM's log"))?;
    let metrics = fifo(METRICS).map_err(setup("the VMM's metrics"))?;

    let arguments = vmm_arguments(settings, spec, &cell);
    tracing::debug!(sandbox = spec.sandbox, "{program} {}", arguments.join(" "));
    let child = spawn.args(arguments).stdout(stdout).spawn();
    let child = child.map_err(|error| {
        let program = settings.jailer.as_ref().unwrap_or(&settings.program);
        HypervisorError::not_spawned(program.display().to_string(), error)
    })?;
    let child = Arc::new(child);
    let vmm = Vmm::new(child.clone(), console_output);
    let connected = async {
        let connected = connect(settings, &cell.directory, &child).await;
        match connected.map_err(setup("the control socket"))? {
            Some(control) => Ok(control),
            None => Err(HypervisorError::of_death(program.clone(), &child).await),
        }
    };
    let control = vmm.within(spec.vmm_deadline, &program, connected).await?;
    let words = Console::of_vmm();
    log.listen(log_into(words.clone(), spec.sandbox.clone()));
    metrics.listen(watch_metrics(spec.sandbox.clone()));
    let dialer = HybridVsock::new(cell.directory.clone(), VSOCK, settings.dial_again, child);
    let client = Client::new(control);
    // From here on whatever returns early drops it, which kills the VMM.
    let mut vm = FirecrackerVm { vmm, client, dialer, cell, disks, log: words, resumes: true };
    let hello = async {
        match start(&vm.client, &machine).await {
            Ok(version) => Ok(version),
            // A VMM that closes its control socket is about to exit, and its stderr says why.
            Err(Failure::Api(ApiError::Broken { .. })) => {
                Err(HypervisorError::of_death(program.clone(), vm.vmm.child()).await)
            }
            Err(Failure::Api(error)) => Err(error.into()),
            Err(Failure::Version(reason)) => {
                Err(HypervisorError::Control { command: "GET /", reason })
            }
        }
    };
    vm.resumes = resumes(&vm.vmm.within(spec.vmm_deadline, &program, hello).await?);
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

/// Describes the machine and starts it. Returns the VMM's version.
async fn start(client: &Client, machine: &Machine) -> Result<String, Failure> {
    let hello = client.info().await?;
    OLDEST.check(&hello.vmm_version).map_err(Failure::Version)?;
    client.machine_config(&machine.config).await?;
    client.boot_source(&machine.boot_source).await?;
    for drive in &machine.drives {
        client.drive(drive).await?;
    }
    for nic in &machine.nics {
        client.network_interface(nic).await?;
    }
    client.vsock(&machine.vsock).await?;
    client.entropy(EntropyDevice {}).await?;
    client.act(ActionType::InstanceStart).await?;
    Ok(hello.vmm_version)
}

/// Whether a guest of this version can be reached again after a pause.
fn resumes(version: &str) -> bool {
    let rest = version.trim_start_matches('v').strip_prefix(NO_RESUME);
    !rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Where the VMM is to live, and the child that goes there, whose first arguments say so to the
/// jailer.
fn cell(settings: &FirecrackerSettings, spec: &VmSpec) -> io::Result<(Cell, Spawn)> {
    let network = spec.network_namespace.clone().map_or(Network::Own, Network::Joined);
    let id = vm_id(&spec.sandbox);
    let Some(jailer) = &settings.jailer else {
        let directory = VmmDir::make(&Cell::walled_directory(&spec.run_dir))?;
        let title = format!("{}: sandbox-{}", settings.program.display(), spec.sandbox);
        let jail = Jail { network, ..Jail::strict() };
        let mut spawn = Spawn::new(&settings.program).title(title).jail(jail);
        let number = spawn.pass_fd(directory.writable_alone()?);
        let cell = Cell::walled(directory, format!("/proc/self/fd/{number}").into())?;
        return Ok((cell, spawn.args(["--id".to_owned(), id])));
    };
    // The jailer names the cell after what links lead to.
    let program = settings.program.canonicalize()?;
    let cell = Cell::jailed(&spec.run_dir, &program, &id)?;
    let inside = cell.jail().expect("it was just made as one");
    let user = inside.user.to_string();
    let arguments = [
        "--id".into(),
        id.into(),
        "--exec-file".into(),
        program.into_os_string(),
        "--uid".into(),
        user.clone().into(),
        "--gid".into(),
        user.into(),
        "--chroot-base-dir".into(),
        inside.base.clone().into_os_string(),
        "--".into(),
    ];
    // It makes mounts itself, and becomes the VMM's user. The cgroup is the sandbox's already.
    let jail = Jail {
        network,
        mounts: Mounts::Shared,
        own_pids: false,
        changes_user: true,
        capabilities: Some(JAILER),
        ..Jail::strict()
    };
    Ok((cell, Spawn::new(jailer).jail(jail).args(arguments)))
}

/// Lets the VMM see all the files that its machine is made of.
fn admit(cell: &Cell, spawn: &mut Spawn, spec: &VmSpec) -> io::Result<Seen> {
    let mut disks = Vec::new();
    if let Some(image) = spec.root.image() {
        disks.push(cell.admit(&image.file, disks::IMAGE)?);
    }
    for (number, disk) in spec.disks.iter().enumerate() {
        disks.push(match writable_file(disk)? {
            // It belongs to somebody else than the VMM's user.
            Some(_) if cell.jail().is_some() => {
                let path = disk.path.display();
                return Err(io::Error::other(format!(
                    "{path} is a regular file that the guest is to write to, which no VMM of the jailer's can; give it a loop device, or \
                     set `jailer_path` to \"\""
                )));
            }
            Some(file) => format!("/proc/self/fd/{}", spawn.pass_fd(file)).into(),
            None => cell.admit(&disk.path, &format!("disk{number}"))?,
        });
    }
    Ok(Seen {
        kernel: cell.admit(&spec.kernel, "kernel")?,
        initrd: spec.root.initrd().map(|initrd| cell.admit(initrd, "initrd")).transpose()?,
        disks,
        placeholder: cell.placeholder(),
        vsock: cell.seen(VSOCK),
    })
}

/// A disk that the VMM could not open by itself: behind walls of ours everything is read-only but
/// what devices lead to.
fn writable_file(disk: &DiskSpec) -> io::Result<Option<File>> {
    if disk.readonly || !std::fs::metadata(&disk.path)?.is_file() {
        return Ok(None);
    }
    File::options().read(true).write(true).open(&disk.path).map(Some)
}

fn vmm_arguments(settings: &FirecrackerSettings, spec: &VmSpec, cell: &Cell) -> Vec<String> {
    let seen = |name| cell.seen(name).display().to_string();
    let mut arguments = vec![
        "--api-sock".to_owned(),
        seen(API),
        "--log-path".to_owned(),
        seen(LOG),
        "--metrics-path".to_owned(),
        seen(METRICS),
        "--level".to_owned(),
        if spec.debug { "Debug" } else { "Warning" }.to_owned(),
        "--show-level".to_owned(),
    ];
    if !settings.seccomp {
        arguments.push("--no-seccomp".to_owned());
    }
    arguments
}

/// The connection to the VMM's API; `None` if it ends before there is one. Nobody else ever speaks
/// to it, since its socket is removed.
async fn connect(
    settings: &FirecrackerSettings,
    directory: &VmmDir,
    vmm: &Child,
) -> io::Result<Option<UnixStream>> {
    tokio::select! {
        connected = socket::connect(directory, API, settings.dial_again) => {
            let connected = connected?;
            directory.remove(API)?;
            Ok(Some(connected))
        }
        _ = vmm.exited() => Ok(None),
    }
}

/// The sandbox's id as the VMM takes it: letters, digits and `-`. It names the VM in process lists
/// and in the log, nothing else.
fn vm_id(sandbox: &str) -> String {
    let plain = |char: char| if char.is_ascii_alphanumeric() { char } else { '-' };
    sandbox.chars().map(plain).take(MAX_ID).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_version_that_does_not_resume_is_not_paused() {
        for version in ["1.16.0", "v1.16.1", "1.16.1-dirty", "1.16"] {
            assert!(!resumes(version), "{version}");
        }
        for version in ["1.15.1", "1.17.0", "v1.160.0", "1.1.16", "2.16.0"] {
            assert!(resumes(version), "{version}");
        }
    }

    #[test]
    fn id_is_the_sandboxes_in_the_vmms_letters() {
        assert_eq!(vm_id("web_1.a"), "web-1-a");
        assert_eq!(vm_id(&"x".repeat(100)).len(), MAX_ID);
    }
}
