//! `[hypervisor.firecracker]`.

use std::path::PathBuf;

use crate::VmSettings;
use crate::off::{
    OffKey, any_list, any_number, any_text, either, empty_list, number, off, on, text,
};
use crate::section::section;
use crate::setting::choice;

section! {
    /// The virtual machine and the Firecracker that runs it. It needs KVM, and has no shared file
    /// system: containers get their root file systems as disks, and files of the host as copies.
    pub struct Firecracker = "hypervisor.firecracker", off OFF, off_tables &[], prefix prefix, shared {
        /// What every hypervisor has.
        vm: VmSettings = VmSettings::defaults(prefix);
    } {
        /// The Firecracker program, version 1.8 or later.
        path: PathBuf = PathBuf::from("/usr/bin/firecracker");
        /// Firecracker's jailer, of the same version. It runs the VMM as a user of its own, in a
        /// root directory of its own. "" confines the VMM as the other hypervisors are confined.
        jailer_path: Option<PathBuf> = None;
        /// How container file systems reach the guest: "none", that is as disks and copies.
        shared_fs: NoSharedFs = NoSharedFs::None;
        /// Most disk space in MiB for packed root file systems of earlier containers, which are
        /// kept so that the next container of the same image starts sooner; 0 keeps none. What is
        /// beyond it goes at the next container's start. They are in
        /// /var/lib/kata-containers/.cache, which may be removed at any time.
        rootfs_cache_size: u32 = 4096;
        /// Run the VMM without its system call filter.
        disable_seccomp: bool = false;
        /// Most that a network interface of the guest may receive, in bits a second; 0 is no limit.
        rx_rate_limiter_max_rate: u32 = 0;
        /// Most that a network interface of the guest may send, in bits a second; 0 is no limit.
        tx_rate_limiter_max_rate: u32 = 0;
        /// Most that is read from and written to a disk, in bits a second; 0 is no limit.
        disk_rate_limiter_bw_max_rate: u32 = 0;
        /// Bits that a disk may do once beyond disk_rate_limiter_bw_max_rate.
        disk_rate_limiter_bw_one_time_burst: u32 = 0;
        /// Most operations of a disk in a second; 0 is no limit.
        disk_rate_limiter_ops_max_rate: u32 = 0;
        /// Operations that a disk may do once beyond disk_rate_limiter_ops_max_rate.
        disk_rate_limiter_ops_one_time_burst: u32 = 0;
    }
}

choice! {
    /// How container file systems reach the guest of a VMM without a shared file system.
    pub enum NoSharedFs {
        /// Not shared: as disks and copies.
        None = "none",
    }
}

/// What upstream's section has and this version lacks.
const OFF: &[OffKey] = &[
    // Boot assets.
    text("vm_rootfs_driver", &["virtio-blk-mmio"]),
    empty_list("guest_extension_images"),
    any_list("valid_hypervisor_paths"),
    any_list("valid_jailer_paths"),
    // CPU and memory.
    number("memory_slots", &[0, 10, 128]),
    number("memory_offset", &[0]),
    off("enable_mem_prealloc"),
    off("enable_hugepages"),
    off("reclaim_guest_freed_memory"),
    off("enable_guest_swap"),
    any_text("guest_swap_path"),
    any_number("guest_swap_size_percent"),
    any_number("guest_swap_create_threshold_secs"),
    // Block devices.
    text("block_device_driver", &["virtio-mmio", "virtio-blk-mmio"]),
    off("block_device_cache_set"),
    off("block_device_cache_direct"),
    off("block_device_cache_noflush"),
    off("disable_block_device_use"),
    any_number("queue_size"),
    any_number("num_queues"),
    // Network, devices.
    number("network_queues", &[1]),
    either("disable_vhost_net"),
    number("default_bridges", &[0, 1]),
    // Security. No SELinux label is ever set.
    off("rootless"),
    either("disable_selinux"),
    text("selinux_label", &[""]),
    on("disable_guest_selinux"),
    off("confidential_guest"),
    text("entropy_source", &["", "/dev/urandom"]),
    any_list("valid_entropy_sources"),
    either("disable_nesting_checks"),
    text("guest_hook_path", &[""]),
    // Debugging and templates.
    text("guest_memory_dump_path", &[""]),
    off("guest_memory_dump_paging"),
    any_number("hypervisor_loglevel"),
    off("use_legacy_serial"),
    off("enable_template"),
    off("boot_to_be_template"),
    off("boot_from_template"),
    text("memory_path", &[""]),
    text("device_state_path", &[""]),
];
