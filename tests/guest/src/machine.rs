//! A machine under QEMU: two processors, one network card without a network, and the agent's serial port.

use std::fs;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kata_agent_api::agent::{CreateSandboxRequest, DestroySandboxRequest};
use kata_agent_api::agent_ttrpc::AgentServiceClient;
use kata_channel::{AGENT_PORT, ChannelStream, SerialDialer};
use kata_linux::process::{Child, Exit, Spawn};
use kata_linux::tsc;
use tempfile::TempDir;
use tokio::time::timeout;
use ttrpc::asynchronous::transport::Socket;

use crate::client::{Guest, context};
use crate::image::{self, First, ROOTFS};

/// Long enough for an emulated boot on a busy machine.
const BOOT: Duration = Duration::from_secs(60);

/// A VM whose agent listens. It ends with this value, or with the thread that made it.
#[derive(Debug)]
pub struct Machine {
    qemu: Child,
    directory: TempDir,
    dialer: SerialDialer,
}

impl Machine {
    /// The hardware address of its network card.
    pub const NETWORK_CARD: &str = "02:00:00:00:00:07";

    fn start(first: First) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let initrd = directory.path().join("initrd.img");
        fs::write(&initrd, image::initrd()?)?;
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut spawn = Spawn::new("qemu-system-x86_64");
        let port = spawn.pass_fd(theirs);
        let words = [
            "-nodefaults -no-user-config -no-reboot -display none -accel tcg",
            "-machine microvm,acpi=on,rtc=on,auto-kernel-cmdline=off",
            "-cpu max,erms=off,fsrm=off,pmu=off -smp 2 -m 512M -global virtio-mmio.force-legacy=false",
            "-device virtio-serial-device -device virtserialport,chardev=port,name=agent.channel.0",
        ];
        let mut arguments: Vec<String> =
            words.iter().flat_map(|words| words.split(' ')).map(str::to_owned).collect();
        arguments.extend([
            "-chardev".to_owned(),
            format!("socket,id=port,fd={port}"),
            "-device".to_owned(),
            format!("virtio-net-device,mac={}", Self::NETWORK_CARD),
            "-serial".to_owned(),
            format!("file:{}", directory.path().join("console").display()),
            "-kernel".to_owned(),
            image::staged("vmlinux.container")?.display().to_string(),
            "-initrd".to_owned(),
            initrd.display().to_string(),
            "-append".to_owned(),
            kernel_parameters(first),
        ]);
        let qemu = spawn.args(arguments).spawn()?;
        let dialer = SerialDialer::new(tokio::net::UnixStream::from_std(ours)?);
        Ok(Self { qemu, directory, dialer })
    }

    /// Connects to a port of the agent, if need be once it is up.
    pub async fn dial(&self, port: u32) -> Result<ChannelStream> {
        match timeout(BOOT, self.dialer.dial(port)).await {
            Ok(stream) => Ok(stream?),
            Err(_) => bail!("the guest does not answer; QEMU: {:?}", self.qemu.stderr()),
        }
    }

    /// What the guest has written to its console.
    #[must_use]
    pub fn console(&self) -> String {
        let bytes = fs::read(self.directory.path().join("console")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

fn kernel_parameters(first: First) -> String {
    let tsc = tsc::host_khz().map(|khz| format!("tsc_early_khz={khz}"));
    let fixed = "console=ttyS0 quiet panic=-1 reboot=t cryptomgr.notests cgroup_no_v1=all mitigations=off noreplace-smp \
                 no_timer_check agent.power=reset agent.log=debug agent.log_vport=1025 agent.debug_console agent.debug_console_vport=1026";
    [Some(fixed.to_owned()), tsc, Some(first.parameter().to_owned())]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(" ")
}

/// Boots a machine, makes a sandbox in it, runs `test`, and destroys the sandbox, with which the machine must end.
///
/// # Errors
///
/// The test's, with what the guest's console says.
pub fn booted(first: First, test: impl AsyncFnOnce(&Guest) -> Result<()>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let machine = Machine::start(first)?;
        let stream = machine.dial(AGENT_PORT).await?;
        let agent = AgentServiceClient::new(ttrpc::r#async::Client::new(Socket::new(stream)));
        let guest = Guest { agent, rootfs: ROOTFS.to_owned(), machine };
        let request = CreateSandboxRequest {
            sandbox_id: "s1".into(),
            hostname: "sandbox".into(),
            dns: vec!["nameserver 10.0.0.1".into()],
            ..Default::default()
        };
        guest.agent.create_sandbox(context(), &request).await?;
        test(&guest)
            .await
            .with_context(|| format!("the console says: {}", guest.machine.console()))?;
        guest.agent.destroy_sandbox(context(), &DestroySandboxRequest::new()).await?;
        let ended = timeout(BOOT, guest.machine.qemu.exited()).await;
        let exit = ended.with_context(|| guest.machine.console())?;
        ensure!(exit == Exit::Code(0), "QEMU {exit}: {:?}", guest.machine.qemu.stderr());
        Ok(())
    })
}
