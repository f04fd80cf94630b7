//! The keys of hypervisors that need a virtio-fs server beside them.

use std::path::PathBuf;

use crate::section::section;
use crate::setting::choice;

section! {
    /// The virtio-fs server, whichever VMM it serves.
    pub struct VirtioFs = "hypervisor", off &[], off_tables &[], prefix _prefix {
        /// How container file systems reach the guest: "virtio-fs".
        shared_fs: SharedFs = SharedFs::VirtioFs;
        /// The virtio-fs server, QEMU's or the one written in Rust; "" uses the one that is
        /// installed with this software.
        virtio_fs_daemon: Option<PathBuf> = None;
        /// What the guest may cache of shared files: "auto" (data until a file is closed, names for
        /// a second), "always", "never", or "metadata" (names and attributes, but no data).
        virtio_fs_cache: VirtioFsCache = VirtioFsCache::Auto;
        /// Mount a root file system that is on a block device on the host and share it, and do not
        /// give the device to the guest as a disk. One in a file (containerd's blockfile
        /// snapshotter) is refused then.
        disable_block_device_use: bool = false;
        /// Further arguments for the virtio-fs server.
        virtio_fs_extra_args: Vec<String> = Vec::new();
    }
}

choice! {
    /// How container file systems reach the guest.
    pub enum SharedFs {
        /// A vhost-user virtio-fs server in a process of its own.
        VirtioFs = "virtio-fs",
    }
}

choice! {
    /// What the guest may cache of shared files.
    pub enum VirtioFsCache {
        /// Data until a file is closed, names and attributes for a second.
        Auto = "auto",
        /// Everything for ever.
        Always = "always",
        /// Nothing.
        Never = "never",
        /// Names and attributes for ever, no data.
        Metadata = "metadata",
    }
}
