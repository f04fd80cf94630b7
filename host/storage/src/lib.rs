//! What a container sees of the host's files, as plain data and mounts.
//!
//! ```text
//!   containerd's rootfs mounts ──mount_rootfs──▶ <bundle>/rootfs ──Share::add_rootfs──▶ <shared>/.mounts/<n> ──┐
//!   OCI spec ──plan_mounts──▶ GuestMounts ──┬─ host_binds, host_overlays ──▶ Share ──▶ <shared>/.mounts/<n> ──┤
//!                                           └─ everything else: made by the guest itself                      ▼
//!                                                                   FileServer: <shared> read-only, jailed ──▶ VM
//! ```
//!
//! Where the VMM has no shared file system, the root file system becomes an image for a disk
//! ([`pack()`]), which may be kept for the next container ([`ImageCache`]), and the binds become
//! copies ([`CopyBudget`]). A pod's containers have one copy of an emptyDir together
//! ([`EmptyDir`]). What Kubernetes updates is a copy in any case, and follows ([`Followed`]): over
//! a share nobody is told of changes (inotify(7)).
//!
//! All mounts live in the mount namespace of the calling process, which must be a private one
//! ([`kata_linux::mount::unshare_mount_namespace`]): they vanish with the last process in it,
//! however that ended.
//!
//! The guest is not trusted, and everything below a shared mount is the guest's to change. So the
//! host never resolves a path there: it acts on file descriptors of the [`Share`]'s own
//! directories, which the guest sees but cannot write to.

mod block;
mod copy;
mod empty_dir;
mod error;
mod follow;
mod image_cache;
mod image_key;
mod mount_points;
mod pack;
mod plan;
mod rootfs;
mod server;
mod share;
mod source;
mod tree;

pub use block::BlockRoot;
pub use copy::{
    CopiedContent, CopiedFile, CopyBudget, GUEST_COPIES, MAX_COPIED_BYTES, MAX_COPIED_FILES,
};
pub use empty_dir::EmptyDir;
pub use error::StorageError;
pub use follow::{Copied, Followed, Update, is_kubelets};
pub use image_cache::{ImageCache, ImageOrigin};
pub use image_key::ImageKey;
pub use mount_points::{check_mount_points, make_mount_points};
pub use pack::{IMAGE_TYPE, pack};
pub use plan::{GuestMounts, HostBind, HostOverlay, lower_layers, plan_mounts, point};
pub use rootfs::{RootfsMount, mount_rootfs};
pub use server::{FileServer, FileServerSpec};
pub use share::{GUEST_SHARE, SHARED, Share, check_container_id};
pub use source::SharedMemory;
