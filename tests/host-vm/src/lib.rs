//! A machine with KVM, made on the spot: QEMU's software emulation has AMD's virtualisation
//! extension, so a Debian in it is a whole KVM host, slow but real, on any Linux.
//!
//! ```text
//!   Recipe ── hash ──▶ HostImage, built once ─┐
//!             (packages, files)   (cache)     ├──▶ Machine: boot ─▶ run(command) … ─▶ drop
//!   staged programs, test binaries ──▶ Disk ──┘        │ jobs: output and exit status over a virtio-serial port
//! ```
//!
//! The image is never written to; what happens in a machine is forgotten with it.
//!
//! And the engines of another release of Debian, where it is only they that matter: an
//! [`EngineRoot`] runs them on this machine itself.

mod cache;
mod disk;
mod filter;
mod image;
mod jobs;
mod machine;
pub mod pool;
pub mod quick_start;
mod recipe;
mod root;
mod rounds;
mod selections;
mod table;
mod tests_of;

pub use disk::Disk;
pub use filter::Filter;
pub use image::HostImage;
pub use jobs::Line;
pub use machine::{Died, Machine, Silent};
pub use root::EngineRoot;
pub use rounds::{Hypervisor, Round, Rounds};
pub use table::table;
pub use tests_of::{TestBinary, test_binaries};
