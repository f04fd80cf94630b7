//! A spec on its way to a VM whose agent answers.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use kata_agent_client::{AgentClient, GuestSandbox, GuestStorage};
use kata_channel::AGENT_PORT;
use kata_e2e::Installation;
use kata_hypervisor::{
    GuestRoot, HypervisorError, ShareSource, ShareSpec, SharedFileSystem, Vm, VmSpec,
};
use kata_log::chain;
use kata_storage::{FileServer, FileServerSpec};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::timeout;

use crate::Subject;

/// Long enough for a guest's kernel and agent, in a virtual machine inside of an emulated one.
pub(crate) const BOOT: Duration = Duration::from_secs(90);
/// Long enough for anything that does not wait for a boot.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// The virtio-fs mount tag.
const TAG: &str = "kataShared";

/// The tests of a process run one after the other: what is left of a VM is seen by what the process
/// has more than before.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// A spec that may be changed before it is booted, and a directory for it.
pub(crate) struct Bench {
    pub(crate) subject: Subject,
    pub(crate) spec: VmSpec,
    pub(crate) directory: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Bench {
    /// One processor, 256 MiB, the initial ramdisk, no devices.
    pub(crate) async fn new(subject: Subject, name: &str) -> Result<Self> {
        let turn = ONE_AT_A_TIME.lock().await;
        let directory = tempfile::tempdir().context("cannot make a directory")?;
        let run_dir = directory.path().join("run");
        fs::create_dir(&run_dir).context("cannot make a directory")?;
        let spec = VmSpec::bare(
            format!("contract-{name}-{}", std::process::id()),
            subject.guest.kernel.clone(),
            GuestRoot::Initrd(subject.guest.initrd.clone()),
            run_dir,
        );
        Ok(Self { subject, spec, directory, _turn: turn })
    }

    /// The directory that [`Bench::share`] shares.
    pub(crate) fn shared(&self) -> PathBuf {
        self.directory.path().join("shared")
    }

    /// Adds a share as the driver takes it, with the file server that it may need. Only for drivers
    /// that have one.
    pub(crate) fn share(&mut self) -> Result<Option<FileServer>> {
        fs::create_dir_all(self.shared()).context("cannot make a directory")?;
        let server = match self.subject.hypervisor.capabilities().shared_file_system {
            SharedFileSystem::None => bail!("the driver shares nothing"),
            SharedFileSystem::Inline => None,
            SharedFileSystem::Server => Some(FileServerSpec {
                program: Installation::under_test().libexec().join("kata-virtiofsd"),
                external: false,
                extra_args: Vec::new(),
                cache: "auto".to_owned(),
                shared_dir: self.shared(),
                socket: self.directory.path().join("fs.sock"),
                debug: false,
            }),
        };
        let source = match &server {
            Some(server) => ShareSource::Server(server.socket.clone()),
            None => ShareSource::Directory(self.shared()),
        };
        self.spec.shares.push(ShareSpec { tag: TAG.to_owned(), source });
        Ok(server.as_ref().map(FileServer::start).transpose()?)
    }

    /// Boots what is specified.
    pub(crate) async fn boot(&self) -> Result<Box<dyn Vm>> {
        let boot = timeout(SOON, self.subject.hypervisor.boot(&self.spec)).await;
        boot.context("the VMM does not say hello")?.map_err(|error| anyhow!(chain(&error)))
    }

    /// Boots what is specified, which the driver must refuse as unsupported, naming itself.
    pub(crate) async fn is_refused(&self) -> Result<()> {
        let boot = timeout(SOON, self.subject.hypervisor.boot(&self.spec)).await;
        match boot.context("the VMM does not say hello")? {
            Err(error) => self.is_refusal(&error),
            Ok(_) => bail!("{:?} was booted, against the driver's capabilities", self.spec),
        }
    }

    /// That the driver does not support something.
    pub(crate) fn is_refusal(&self, error: &HypervisorError) -> Result<()> {
        let name = self.subject.hypervisor.name();
        match error {
            HypervisorError::Unsupported { driver, .. } if *driver == name => Ok(()),
            error => bail!("this is not the refusal of {name}: {}", chain(error)),
        }
    }

    /// Boots, and waits for the agent.
    pub(crate) async fn boot_to_agent(&self) -> Result<(Box<dyn Vm>, AgentClient)> {
        let vm = self.boot().await?;
        let agent = agent(vm.as_ref(), BOOT).await?;
        Ok((vm, agent))
    }
}

/// Connects to the guest's agent, and hears from it.
pub(crate) async fn agent(vm: &dyn Vm, within: Duration) -> Result<AgentClient> {
    let reach = async {
        let stream = vm.dial(AGENT_PORT).await?;
        let agent = AgentClient::new(stream, within);
        agent.check().await?;
        anyhow::Ok(agent)
    };
    let reached = timeout(within, reach).await;
    reached.context("the agent does not answer").flatten().with_context(|| last_words(vm))
}

/// What VMM and guest said last.
pub(crate) fn last_words(vm: &dyn Vm) -> String {
    format!("stderr: {:#?}; console: {:#?}", vm.stderr(), vm.console().last_lines(40))
}

/// What the guest is told first, with the shared directory where there is one.
pub(crate) fn sandbox(shared: bool) -> GuestSandbox {
    let storage = GuestStorage {
        driver: "virtio-fs".to_owned(),
        source: TAG.to_owned(),
        fstype: "virtiofs".to_owned(),
        mount_point: kata_storage::GUEST_SHARE.to_owned(),
        ..GuestStorage::default()
    };
    let storages = if shared { vec![storage] } else { Vec::new() };
    GuestSandbox { id: "contract".to_owned(), storages, ..GuestSandbox::default() }
}
