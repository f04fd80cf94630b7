//! The two traits: [`Hypervisor`] boots, [`Vm`] is what runs then.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use kata_channel::ChannelStream;

use crate::{Capabilities, Console, DiskSpec, Finding, GuestDisk, NicSpec, VmSpec, Vmm};

/// The time between two looks at how much memory a guest has.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Boots virtual machines of one kind.
#[async_trait]
pub trait Hypervisor: Send + Sync + fmt::Debug {
    /// The driver's name as in the configuration: `qemu`, `clh`, ….
    fn name(&self) -> &'static str;

    /// What this driver can do on this host. Pure: no side effects, the same answer every time.
    fn capabilities(&self) -> Capabilities;

    /// Where its program is: a path, or a name that is looked for in the usual directories.
    fn program(&self) -> &Path;

    /// Looks for all that a boot of the guest kernel `kernel` needs of this host, and boots
    /// nothing: its program, KVM, devices. Blocks for as long as the program takes to tell its
    /// version.
    fn check(&self, kernel: &Path) -> Vec<Finding>;

    /// Starts the VMM and returns when it has said hello on its control channel, for which it has
    /// [`VmSpec::vmm_deadline`]; the guest is then running its first instructions. The file servers
    /// of `spec.shares` must be listening. On error nothing of the VM is left.
    ///
    /// The VMM is a child of the calling thread and dies with it (`PR_SET_PDEATHSIG`, prctl(2)), so
    /// call this from the thread that lives as long as the sandbox does.
    async fn boot(&self, spec: &VmSpec) -> Result<Box<dyn Vm>, HypervisorError>;

    /// Makes a template for VMs like `spec`, which has no shares, disks and network devices, in
    /// `directory`, in place of one that is there: boots a guest, waits for its agent, for at most
    /// `patience`, saves it and ends it. Refused with [`HypervisorError::Unsupported`] where
    /// [`Capabilities::templates`] denies it. On error the template that was there stays, or none.
    async fn make_template(
        &self,
        _spec: &VmSpec,
        _directory: &Path,
        _patience: Duration,
    ) -> Result<(), HypervisorError> {
        Err(HypervisorError::Unsupported { driver: self.name(), what: "templates" })
    }
}

/// A virtual machine that has been started. All methods may be called from several tasks and after
/// the VM's end.
#[async_trait]
pub trait Vm: Send + Sync + fmt::Debug {
    /// The VMM's process.
    fn vmm(&self) -> &Vmm;

    /// The VMM's process id on the host.
    fn pid(&self) -> u32 {
        self.vmm().pid()
    }

    /// When the VMM's program had been executed.
    fn executed(&self) -> Instant {
        self.vmm().executed()
    }

    /// The guest's console.
    fn console(&self) -> Console {
        self.vmm().console()
    }

    /// The last lines that the VMM itself wrote to its stderr, oldest first; empty when it wrote
    /// none.
    fn stderr(&self) -> Vec<String> {
        self.vmm().stderr()
    }

    /// Whether the guest goes on from a template ([`VmSpec::template`]): then its random numbers
    /// and its clock are those of all others from it, until somebody gives it its own.
    fn is_a_copy(&self) -> bool {
        false
    }

    /// Opens a stream to `port` of the guest. Until the guest has taken the first one, this
    /// resolves when it does, however long that takes: whoever calls bounds it with the boot
    /// stage's deadline and with [`Vm::exited`]. From then on a port on which nobody listens is
    /// refused, by an error or by a stream that ends at once.
    async fn dial(&self, port: u32) -> Result<ChannelStream, HypervisorError>;

    /// Resolves when the VMM process has ended and been reaped, with how it ended; at once if it
    /// already has.
    async fn exited(&self) -> VmExit;

    /// Stops the guest's CPUs. Refused with [`HypervisorError::Unsupported`] where
    /// [`Capabilities::pause`] denies it.
    async fn pause(&self) -> Result<(), HypervisorError>;

    /// Lets the guest's CPUs run again after [`Vm::pause`].
    async fn resume(&self) -> Result<(), HypervisorError>;

    /// Adds a network device to the running VM. The guest finds it by itself, a moment later.
    /// Refused with [`HypervisorError::Unsupported`] unless [`VmSpec::hot_plug`] was asked for and
    /// could be had.
    async fn add_nic(&self, nic: &NicSpec) -> Result<(), HypervisorError>;

    /// Asks the guest to take memory, or to give some back, until it has `mib` altogether: an even
    /// number, from [`VmSpec::memory_mib`] to [`VmSpec::most_memory_mib`]. Returns when it is
    /// asked; [`Vm::memory_mib`] tells how far it is. What it uses it does not give back. Refused
    /// with [`HypervisorError::FixedMemory`] unless the VM was booted with room for more.
    async fn resize_memory(&self, _mib: u32) -> Result<(), HypervisorError> {
        Err(HypervisorError::FixedMemory)
    }

    /// How much memory the guest has now, in MiB, rounded down. Refused as [`Vm::resize_memory`]
    /// is.
    async fn memory_mib(&self) -> Result<u32, HypervisorError> {
        Err(HypervisorError::FixedMemory)
    }

    /// Resolves when the guest has `mib` of memory, for which it was asked, however long that
    /// takes. Refused as [`Vm::resize_memory`] is.
    async fn until_memory(&self, mib: u32) -> Result<(), HypervisorError> {
        // QEMU has an event for it, and holds it back for up to a second
        // (MEMORY_DEVICE_SIZE_CHANGE); most guests are there in a tenth of that.
        while self.memory_mib().await? != mib {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    /// Gives the guest virtual CPUs, or takes some away, until it has `count`, from
    /// [`VmSpec::vcpus`] to [`VmSpec::most_vcpus`]. Those that are new its kernel finds a moment
    /// later, and somebody in there has to switch them on. Those that go, the last ones, are to be
    /// off before; this resolves when they are gone, which they are when the guest lets them go,
    /// however long that takes. A VMM may have all of them from the start and leave it to the guest
    /// which it uses; this does nothing then. Refused with [`HypervisorError::FixedVcpus`] unless
    /// the VM was booted with room for more.
    async fn resize_vcpus(&self, _count: u32) -> Result<(), HypervisorError> {
        Err(HypervisorError::FixedVcpus)
    }

    /// Where the guest finds a disk that the VM has, by its id; `None` if there is none of that id.
    fn disk(&self, _id: &str) -> Option<GuestDisk> {
        None
    }

    /// Gives the running VM a disk. The guest sees it, or its right size, a moment later. Refused
    /// with [`HypervisorError::NoDisk`] or [`HypervisorError::NoDiskOfSort`] beyond what
    /// [`VmSpec::later_disks`] made room for, and with the former where [`Capabilities::disks`] is
    /// not [`crate::Disks::Later`].
    async fn attach_disk(&self, disk: &DiskSpec) -> Result<GuestDisk, HypervisorError> {
        Err(HypervisorError::NoDisk { id: disk.id.clone() })
    }

    /// Takes away a disk that [`Vm::attach_disk`] has given: afterwards nothing of the VM has it
    /// open, and there is room for another one. The guest must not use it any more. An id that is
    /// not there is fine.
    async fn detach_disk(&self, _id: &str) -> Result<(), HypervisorError> {
        Ok(())
    }

    /// Ends the VM without asking the guest, and returns when the VMM is gone and reaped. May be
    /// repeated.
    async fn stop(&self) {
        self.vmm().stop().await;
    }
}

/// How a VMM process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmExit {
    /// The process's exit code, or `None` when a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// Why, as far as the VMM said so on its control channel (`guest-panic`, `guest-shutdown`, …).
    pub reason: Option<String>,
}

impl fmt::Display for VmExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.signal, self.code) {
            (Some(signal), _) => write!(f, "was killed by signal {signal}")?,
            (None, Some(code)) => write!(f, "exited with status {code}")?,
            (None, None) => f.write_str("ended")?,
        }
        match &self.reason {
            Some(reason) => write!(f, " ({reason})"),
            None => Ok(()),
        }
    }
}

/// Why a driver could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// The VMM's program could not be run at all.
    #[error("cannot start the hypervisor {program}; install it or set `path` in the configuration")]
    Spawn {
        /// The program as configured.
        program: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The VMM ended before it said hello.
    #[error("the hypervisor {program} {exit} before the guest could start: {stderr}")]
    Died {
        /// The program as configured.
        program: String,
        /// How it ended.
        exit: VmExit,
        /// Its last words.
        stderr: String,
    },
    /// The VMM said no hello in time. It is ended.
    #[error(
        "the hypervisor {program} did not say within {} s that it is ready: {stderr}",
        after.as_secs()
    )]
    Late {
        /// The program as configured.
        program: String,
        /// The time that it had.
        after: Duration,
        /// Its last words.
        stderr: String,
    },
    /// Something on the host that the VM needs could not be set up.
    #[error("cannot set up {what} for the VM")]
    Setup {
        /// What: a socket, a memory file, ….
        what: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The control channel broke or the VMM refused a command.
    #[error("the hypervisor refused `{command}`: {reason}")]
    Control {
        /// The command.
        command: &'static str,
        /// The VMM's words.
        reason: String,
    },
    /// There is no room for one more disk.
    #[error(
        "the virtual machine has no room for the disk {id} any more; use fewer containers with disks in one sandbox"
    )]
    NoDisk {
        /// The disk's id.
        id: String,
    },
    /// There is room for one more disk, but what may be written to there was settled at boot.
    #[error(
        "the virtual machine has no room for the disk {id} any more: the places that are free are for {} disks, and stay so; use fewer \
         {} disks in one sandbox",
        sort(!readonly),
        sort(*readonly)
    )]
    NoDiskOfSort {
        /// The disk's id.
        id: String,
        /// Whether the disk is read-only, and what is free is not; or the other way round.
        readonly: bool,
    },
    /// Its memory stays as it is.
    #[error("the virtual machine was booted without room for more memory")]
    FixedMemory,
    /// Its virtual CPUs stay as they are.
    #[error("the virtual machine was booted without room for more virtual CPUs")]
    FixedVcpus,
    /// The channel to the guest broke.
    #[error("the channel to the guest's agent is closed")]
    ChannelClosed,
    /// The guest could not be reached on a port.
    #[error("cannot reach port {port} of the guest")]
    Dial {
        /// The port.
        port: u32,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The guest could not go on from its template. By a boot, without [`VmSpec::template`], it may
    /// start all the same.
    #[error("the guest cannot go on from its template")]
    Template {
        /// Why not.
        #[source]
        source: Box<HypervisorError>,
    },
    /// The driver cannot do it.
    #[error("the {driver} driver does not support {what}")]
    Unsupported {
        /// The driver's name.
        driver: &'static str,
        /// What was asked.
        what: &'static str,
    },
}

fn sort(readonly: bool) -> &'static str {
    if readonly { "read-only" } else { "writable" }
}
