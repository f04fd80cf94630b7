//! `[hypervisor.clh]`.

use std::path::PathBuf;

use crate::off::{
    OffKey, any_list, any_number, any_text, either, empty_list, number, off, on, text,
};
use crate::section::section;
use crate::{VirtioFs, VmSettings};

section! {
    /// The virtual machine and the Cloud Hypervisor that runs it. It needs KVM.
    pub struct CloudHypervisor = "hypervisor.clh", off OFF, off_tables &[], prefix prefix, shared {
        /// What every hypervisor has.
        vm: VmSettings = VmSettings::defaults(prefix);
        /// What hypervisors with a file server beside them have.
        virtio_fs: VirtioFs = VirtioFs::defaults(prefix);
    } {
        /// The Cloud Hypervisor program, version 51 or later.
        path: PathBuf = PathBuf::from("/usr/bin/cloud-hypervisor");
        /// Give a running sandbox more memory (virtio-mem) where its containers' limits come to
        /// need it, up to default_maxmemory, and take it back when they do not any more. Cloud
        /// Hypervisor asks the guest to keep to that and cannot force it: a guest that misbehaves
        /// can take all of default_maxmemory at any time, and up to 126 MiB more, for the room is
        /// made in pieces of 128 MiB.
        enable_virtio_mem: bool = false;
        /// Run the VMM without its system call filter.
        disable_seccomp: bool = false;
        /// The host's source of random numbers for the guest.
        entropy_source: PathBuf = PathBuf::from("/dev/urandom");
    }
}

/// What upstream's section has and this version lacks.
const OFF: &[OffKey] = &[
    // Boot assets.
    text("vm_rootfs_driver", &["virtio-pmem", "virtio-blk-pci"]),
    text("firmware", &[""]),
    empty_list("guest_extension_images"),
    any_list("valid_hypervisor_paths"),
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
    off("disable_nested_virtualization"),
    // Shared file system.
    any_list("valid_virtio_fs_daemon_paths"),
    number("virtio_fs_cache_size", &[0]),
    off("virtio_fs_is_dax"),
    number("virtio_fs_queue_size", &[1024]),
    // Block devices.
    text("block_device_driver", &["virtio-blk", "virtio-blk-pci"]),
    off("block_device_cache_set"),
    off("block_device_cache_direct"),
    off("block_device_cache_noflush"),
    any_number("queue_size"),
    any_number("num_queues"),
    number("disk_rate_limiter_bw_max_rate", &[0]),
    number("disk_rate_limiter_bw_one_time_burst", &[0]),
    number("disk_rate_limiter_ops_max_rate", &[0]),
    number("disk_rate_limiter_ops_one_time_burst", &[0]),
    either("disable_image_nvdimm"),
    // Network, devices, IOMMU.
    number("network_queues", &[1]),
    either("disable_vhost_net"),
    number("net_rate_limiter_bw_max_rate", &[0]),
    number("net_rate_limiter_bw_one_time_burst", &[0]),
    number("net_rate_limiter_ops_max_rate", &[0]),
    number("net_rate_limiter_ops_one_time_burst", &[0]),
    number("default_bridges", &[0, 1]),
    text("cold_plug_vfio", &["no-port"]),
    text("hot_plug_vfio", &["no-port"]),
    number("pcie_root_port", &[0]),
    off("enable_iommu"),
    // Security. No SELinux label is ever set.
    off("rootless"),
    either("disable_selinux"),
    text("selinux_label", &[""]),
    on("disable_guest_selinux"),
    off("confidential_guest"),
    any_list("valid_entropy_sources"),
    either("disable_nesting_checks"),
    text("guest_hook_path", &[""]),
    // Debugging and templates.
    text("guest_memory_dump_path", &[""]),
    off("guest_memory_dump_paging"),
    any_number("hypervisor_loglevel"),
    off("use_legacy_serial"),
    off("boot_to_be_template"),
    off("boot_from_template"),
    text("memory_path", &[""]),
    text("device_state_path", &[""]),
];
