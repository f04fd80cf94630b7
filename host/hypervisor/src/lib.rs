//! What a hypervisor driver promises, as plain data and two traits.
//!
//! A [`Hypervisor`] turns a [`VmSpec`] into a running [`Vm`]. It reads no configuration file and
//! knows no container: everything it needs is in the spec or was given to the driver when it was
//! made. What a driver lacks is in its [`Capabilities`], so that a plan that needs it is refused
//! before anything starts.
//!
//! ```text
//!   boot(spec)            VMM says hello        agent's first line          VM ends
//!  ───────────▶ Starting ─────────────▶ Running ──────────────▶ (kernel up) ─────────▶ Exited
//!                   │                       │                                            ▲
//!                   └─▶ HypervisorError     └──────────── stop(), crash, guest power-off ┘
//! ```

mod check;
mod console;
mod hybrid_vsock;
mod kernel_params;
mod kvm;
mod process;
mod spec;
mod version;
mod vm;
mod vmm_dir;
mod vmm_socket;

pub use check::{Finding, Outcome};
pub use console::{CONSOLE_CAPACITY, Console};
pub use hybrid_vsock::HybridVsock;
pub use kernel_params::{PARAMS_FOR_MORE_MEMORY, kernel_command_line};
pub use kvm::kvm_obstacle;
pub use process::{Vmm, need_kvm, pipe_from_vmm};
pub use spec::{
    Capabilities, DiskSpec, Disks, GuestDisk, GuestImage, GuestRoot, LaterDisks, NicSpec, Pause,
    ShareSource, ShareSpec, SharedFileSystem, Tap, Verity, VmSpec,
};
pub use version::OldestVersion;
pub use vm::{Hypervisor, HypervisorError, Vm, VmExit};
pub use vmm_dir::VmmDir;
pub use vmm_socket::connect_in;
