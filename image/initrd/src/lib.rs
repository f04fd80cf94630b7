//! Builds what a guest boots from a distribution's kernel package: an initrd with the agent and
//! the modules that a container guest needs, and the kernel in the form that boots fastest. For a
//! kernel that has everything built in, the initrd is the agent alone.
//!
//! ```text
//!  kernel.deb --package--> release, vmlinuz, modules, list of built-ins
//!                            |          |
//!                         kernel     modules (which, in which order)
//!                            |          |
//!                         vmlinux    initrd <-- the agent
//!                                       |
//!                                     cpio
//! ```
//!
//! Nothing here needs root, and the same input gives the same bytes.

mod apt;
mod compression;
mod cpio;
mod initrd;
mod kernel;
mod modinfo;
mod modules;
mod package;
mod progress;
mod signature;

pub use apt::{FetchError, download_with, fetch_kernel_package, fetch_packages, package_record};
pub use compression::decompressed;
pub use cpio::{Archive, Entry};
pub use initrd::{InitrdError, build_initrd, check_agent};
pub use kernel::{KernelError, extract_vmlinux};
pub use modules::{GUEST_MODULES, ModuleError};
pub use package::{KernelPackage, PackageError, package_contents};
pub use progress::Progress;
