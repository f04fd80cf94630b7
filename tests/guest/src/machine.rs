//! A machine under QEMU: processors, one network card without a network, the agent's serial port,
//! and maybe disks.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
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
use crate::control::Control;
use crate::image::{self, First, GuestKernel, ROOTFS};

/// Long enough for an emulated boot on a busy machine.
const BOOT: Duration = Duration::from_secs(60);

/// What a QEMU that has closed its sockets needs to end.
const LAST_MOMENTS: Duration = Duration::from_secs(5);

/// A VM whose agent listens. It ends with this value, or with the thread that made it.
#[derive(Debug)]
pub struct Machine {
    qemu: Child,
    directory: TempDir,
    dialer: SerialDialer,
    control: Control,
}

/// What a machine is made of; [`Setup::new`] has what most tests need.
#[derive(Debug)]
pub struct Setup {
    first: First,
    kernel: GuestKernel,
    board: Board,
    hardware: bool,
    image: Option<PathBuf>,
    disk_mib: Option<u64>,
}

/// What the devices sit on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Board {
    /// The smallest and fastest.
    Microvm,
    /// With slots for memory, and a device for finer pieces of it.
    Q35,
}

impl Board {
    /// How drivers of virtio devices end on its bus.
    fn transport(self) -> &'static str {
        match self {
            Self::Microvm => "device",
            Self::Q35 => "pci",
        }
    }

    fn arguments(self) -> String {
        match self {
            Self::Microvm => {
                "-machine microvm,acpi=on,rtc=on,auto-kernel-cmdline=off -smp 2 -m 640M \
                              -global virtio-mmio.force-legacy=false"
                    .to_owned()
            }
            Self::Q35 => format!(
                "-machine q35,usb=off,vmport=off,graphics=off -smp 2,maxcpus=4 -m 512M,slots=2,maxmem=2G \
                 -object memory-backend-ram,id=fine,size=512M -device virtio-mem-pci,id={},memdev=fine,requested-size=0",
                Setup::FINE_MEMORY
            ),
        }
    }
}

impl Setup {
    /// The id of the virtio-mem device of a machine of [`Setup::hot_pluggable`], which has 512 MiB
    /// to give and gives none at first.
    pub const FINE_MEMORY: &str = "finemem";

    /// Two processors, 640 MiB (below 512 the kernel has no huge pages), and the staged initrd with
    /// busybox beside the agent.
    #[must_use]
    pub fn new(first: First) -> Self {
        Self {
            first,
            kernel: GuestKernel::Staged,
            board: Board::Microvm,
            hardware: false,
            image: None,
            disk_mib: None,
        }
    }

    /// The same machine, with this rootfs image as its root: the agent of the initrd loads drivers,
    /// and goes on to the image's.
    #[must_use]
    pub fn image(image: &Path) -> Self {
        Self { image: Some(image.to_owned()), ..Self::new(First::Agent) }
    }

    /// With the distribution's kernel and an initrd of its own, whichever is staged.
    #[must_use]
    pub fn distributions_kernel(self) -> Self {
        Self { kernel: GuestKernel::Distribution, ..self }
    }

    /// With room for more memory, and for two more processors.
    #[must_use]
    pub fn hot_pluggable(self) -> Self {
        Self { board: Board::Q35, ..self }
    }

    /// On the machine's own processors, through KVM, which must work here.
    #[must_use]
    pub fn under_kvm(self) -> Self {
        Self { hardware: true, ..self }
    }

    /// With an empty disk of this size, which is the machine's first unless it boots from an image.
    #[must_use]
    pub fn disk(self, mib: u64) -> Self {
        Self { disk_mib: Some(mib), ..self }
    }

    fn start(&self) -> Result<Machine> {
        let directory = tempfile::tempdir()?;
        let initrd = directory.path().join("initrd.img");
        fs::write(&initrd, image::initrd(self.kernel, self.image.is_none())?)?;
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let (control, their_control) = UnixStream::pair()?;
        let mut spawn = Spawn::new("qemu-system-x86_64");
        let (port, monitor) = (spawn.pass_fd(theirs), spawn.pass_fd(their_control));
        let transport = self.board.transport();
        // Nobody boots from the network.
        let no_rom = if self.board == Board::Q35 { ",romfile=" } else { "" };
        let words = [
            "-nodefaults -no-user-config -no-reboot -display none".to_owned(),
            self.processor().to_owned(),
            self.board.arguments(),
            format!("-chardev socket,id=monitor,fd={monitor} -mon chardev=monitor,mode=control"),
            format!("-chardev socket,id=port,fd={port} -device virtio-serial-{transport}"),
            "-device virtserialport,chardev=port,name=agent.channel.0".to_owned(),
            format!("-device virtio-net-{transport},mac={}{no_rom}", Machine::NETWORK_CARD),
        ];
        let mut arguments: Vec<String> = words
            .iter()
            .flat_map(|words| words.split_ascii_whitespace())
            .map(str::to_owned)
            .collect();
        let mut disks = Vec::from_iter(self.image.clone());
        if let Some(mib) = self.disk_mib {
            let disk = directory.path().join("disk.img");
            fs::File::create(&disk)?.set_len(mib << 20)?;
            disks.push(disk);
        }
        for (number, disk) in disks.iter().enumerate() {
            arguments.extend([
                "-drive".to_owned(),
                format!("if=none,format=raw,id=disk{number},file={}", disk.display()),
                "-device".to_owned(),
                format!("virtio-blk-{transport},drive=disk{number}"),
            ]);
        }
        arguments.extend([
            "-serial".to_owned(),
            format!("file:{}", directory.path().join("console").display()),
            "-kernel".to_owned(),
            self.kernel.file("vmlinux.container")?.display().to_string(),
            "-initrd".to_owned(),
            initrd.display().to_string(),
            "-append".to_owned(),
            self.kernel_parameters(),
        ]);
        let qemu = spawn.args(arguments).spawn()?;
        let dialer = SerialDialer::new(tokio::net::UnixStream::from_std(ours)?);
        let control = Control::greet(control).with_context(|| format!("{:?}", qemu.stderr()))?;
        Ok(Machine { qemu, directory, dialer, control })
    }

    fn processor(&self) -> &'static str {
        if self.hardware {
            "-accel kvm -cpu host,pmu=off"
        } else {
            // By turns: QEMU 7.2 breaks kernels that change their code while another CPU runs.
            "-accel tcg,thread=single -cpu max,erms=off,fsrm=off,pmu=off"
        }
    }

    fn kernel_parameters(&self) -> String {
        let tsc = tsc::host_khz().map(|khz| format!("tsc_early_khz={khz} tsc=reliable"));
        let fixed = "console=ttyS0 quiet panic=-1 reboot=t cryptomgr.notests cgroup_no_v1=all mitigations=off noreplace-smp \
                     no_timer_check agent.power=reset agent.log=debug agent.log_vport=1025 agent.debug_console agent.debug_console_vport=1026";
        let root = self.image.as_ref().map(|_| {
            "root=/dev/vda1 rootfstype=ext4 ro systemd.unit=kata-containers.target".to_owned()
        });
        let first = Some(self.first.parameter().to_owned());
        let all = [Some(fixed.to_owned()), tsc, root, first];
        all.into_iter().flatten().collect::<Vec<_>>().join(" ")
    }

    /// Boots the machine, makes a sandbox in it, runs `test`, and destroys the sandbox, with which
    /// the machine must end.
    ///
    /// # Errors
    ///
    /// The test's, with what the guest's console says.
    pub fn run(&self, test: impl AsyncFnOnce(&Guest) -> Result<()>) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let machine = self.start()?;
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
}

impl Machine {
    /// The hardware address of its network card.
    pub const NETWORK_CARD: &str = "02:00:00:00:00:07";

    /// Has QEMU execute a command of QMP (QEMU, docs/interop/qmp-spec), and gives its answer.
    ///
    /// # Errors
    ///
    /// When QEMU refuses it, with its reason.
    pub fn control(
        &self,
        command: &str,
        arguments: &serde_json::Value,
    ) -> Result<serde_json::Value> {
        self.control.execute(command, arguments)
    }

    /// Waits for an event of QEMU's that `is_it`, and gives its data. Those before it are
    /// forgotten.
    ///
    /// # Errors
    ///
    /// When QEMU is silent for half a minute.
    pub fn event(
        &self,
        name: &str,
        is_it: impl Fn(&serde_json::Value) -> bool,
    ) -> Result<serde_json::Value> {
        self.control.event(name, is_it)
    }

    /// Connects to a port of the agent, if need be once it is up.
    ///
    /// # Errors
    ///
    /// With how QEMU has ended, if it has, and with its last words and the guest's.
    pub async fn dial(&self, port: u32) -> Result<ChannelStream> {
        let dialled = timeout(BOOT, self.dialer.dial(port)).await;
        let reason = match dialled {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("the guest does not answer within {BOOT:?}"),
        };
        // A channel closes a moment before its QEMU has ended.
        let ended = timeout(LAST_MOMENTS, self.qemu.exited()).await;
        let state = ended.map_or_else(|_| "runs".to_owned(), |exit| exit.to_string());
        let (words, console) = (self.qemu.stderr(), self.console());
        bail!("{reason}; QEMU {state}: {words:?}; the console says: {console}")
    }

    /// What the guest has written to its console.
    #[must_use]
    pub fn console(&self) -> String {
        let bytes = fs::read(self.directory.path().join("console")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Boots a machine as [`Setup::new`] describes it; see [`Setup::run`].
///
/// # Errors
///
/// The test's, with what the guest's console says.
pub fn booted(first: First, test: impl AsyncFnOnce(&Guest) -> Result<()>) -> Result<()> {
    Setup::new(first).run(test)
}
