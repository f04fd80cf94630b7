//! What an administrator may set about QEMU.

use std::path::PathBuf;
use std::time::Duration;

/// Settings that are the same for all VMs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QemuSettings {
    /// QEMU's program: a path, or a name that is looked for in the usual directories.
    pub program: PathBuf,
    /// The machine to emulate.
    pub machine: MachineChoice,
    /// Who executes the guest's instructions.
    pub accelerator: AcceleratorChoice,
    /// Features to add to or take from the CPU model, as in `pmu=off,+avx2`. Empty for none.
    pub cpu_features: String,
    /// What the guest's memory is made of.
    pub pages: Pages,
    /// How disks of containers are read and written.
    pub disk_io: DiskIo,
    /// QEMU's own seccomp filter, as in its `-sandbox` option. Empty for none.
    pub seccomp_sandbox: String,
    /// The file that the guest's random numbers come from, like `/dev/urandom`.
    pub entropy_source: PathBuf,
    /// Run QEMU as a user of its own, who is nobody, and not as root.
    pub rootless: bool,
    /// The time between two tries to reach an agent that does not listen yet, where the channel is
    /// vsock.
    pub dial_again: Duration,
    /// The directory in which boots under emulation take turns, as many at a time as there are
    /// processors. It is made when it is needed, and stays.
    pub boot_slots: PathBuf,
}

impl Default for QemuSettings {
    fn default() -> Self {
        Self {
            program: "qemu-system-x86_64".into(),
            machine: MachineChoice::Auto,
            accelerator: AcceleratorChoice::Auto,
            cpu_features: String::new(),
            pages: Pages::default(),
            disk_io: DiskIo::default(),
            seccomp_sandbox:
                "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".into(),
            entropy_source: "/dev/urandom".into(),
            rootless: true,
            dial_again: Duration::from_millis(10),
            boot_slots: "/run/kata/.boots".into(),
        }
    }
}

/// The host's pages that the guest's memory is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pages {
    /// The host's huge pages.
    pub huge: bool,
    /// All are taken when the VM starts, and not as the guest comes to use them.
    pub preallocated: bool,
    /// Those that the guest frees go back to the host, some seconds later.
    pub reclaimed: bool,
}

/// How disks of containers are read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskIo {
    /// Who does it.
    pub aio: Aio,
    /// Past the host's page cache (`O_DIRECT`, open(2)).
    pub direct: bool,
    /// Nothing that the guest flushes is brought to the medium: what it wrote may be lost with the
    /// host.
    pub no_flush: bool,
}

/// How QEMU does I/O beside what else it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Aio {
    /// By threads.
    #[default]
    Threads,
    /// By io_submit(2). QEMU demands [`DiskIo::direct`] with it.
    Native,
    /// By io_uring(7), which the host must let QEMU's user have.
    IoUring,
}

impl Aio {
    /// As QEMU calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Threads => "threads",
            Self::Native => "native",
            Self::IoUring => "io_uring",
        }
    }
}

/// Which machine QEMU emulates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MachineChoice {
    /// The smallest that does: [`MachineChoice::Microvm`], but for a compressed kernel
    /// [`MachineChoice::Q35`].
    #[default]
    Auto,
    /// No PCI, no firmware, no hotplug. Boots an uncompressed kernel only.
    Microvm,
    /// A PC with PCI Express.
    Q35,
}

/// Who executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AcceleratorChoice {
    /// KVM where it works, else software emulation.
    #[default]
    Auto,
    /// KVM, or failure.
    Kvm,
    /// Software emulation.
    Tcg,
}
