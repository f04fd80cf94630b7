//! Builds the guest's rootfs image: a disk with a read-only file system that holds the agent and,
//! if wanted, packages of Debian; and a hash tree (dm-verity) by which the guest's kernel checks
//! every block that it reads.
//!
//! ```text
//!   agent, packages ──▶ Tree ──▶ erofs | ext4 ──┬──▶ partition 1 ─┐
//!                                               └─▶ verity ──▶ 2 ─┴──▶ disk      root hash ──▶ configuration
//! ```
//!
//! Nothing here needs root, and the same input gives the same bytes.

mod disk;
mod erofs;
mod ext4;
mod packages;
mod rootfs;
mod tree;
mod verity;

pub use packages::{PackagesError, Suite, fetch_with_dependencies};
pub use rootfs::{FileSystem, Init, Rootfs, RootfsError, RootfsOptions, build_rootfs};
pub use verity::Verity;
