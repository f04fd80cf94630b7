//! `[hypervisor.qemu]`.

use std::path::PathBuf;

use crate::off::{
    OffKey, any_list, any_number, any_text, either, empty_list, number, off, on, text,
};
use crate::section::section;
use crate::setting::choice;
use crate::{Root, VirtioFs, VmSettings};

section! {
    /// The virtual machine and the QEMU that runs it.
    pub struct Qemu = "hypervisor.qemu", off OFF, off_tables &[("factory", FACTORY)], prefix prefix, shared {
        /// What every hypervisor has.
        vm: VmSettings = VmSettings::defaults(prefix);
        /// What hypervisors with a file server beside them have.
        virtio_fs: VirtioFs = VirtioFs::defaults(prefix);
    } {
        /// The QEMU program.
        path: PathBuf = default_program();
        /// The machine: "microvm", "q35", or "", which is q35 under KVM and else the smallest one
        /// that boots the kernel.
        machine_type: MachineType = MachineType::Auto;
        /// Give a running sandbox more memory (virtio-mem) where its containers' limits come to
        /// need it, up to default_maxmemory, and take it back when they do not any more. Needs the
        /// machine q35, which is then taken where none is named. QEMU asks the guest to keep to
        /// that and cannot force it: a guest that misbehaves can take all of default_maxmemory at
        /// any time.
        enable_virtio_mem: bool = false;
        /// Take the guest's memory from the host's huge pages of 2 MiB (/proc/sys/vm/nr_hugepages).
        /// All that the guest may ever have are set aside when it boots: with enable_virtio_mem,
        /// default_maxmemory. A sandbox for which too few are free is refused.
        enable_hugepages: bool = false;
        /// Take all of the guest's memory from the host when it boots, and not as it comes to use
        /// it.
        enable_mem_prealloc: bool = false;
        /// Give memory that the guest frees back to the host, some seconds later (free page
        /// reporting by a virtio balloon, which the guest's kernel must have, as Linux does from
        /// 5.7 on). What the guest keeps as cache of files is not free. Not with enable_hugepages
        /// or enable_mem_prealloc.
        reclaim_guest_freed_memory: bool = false;
        /// How disks of containers are read and written: "threads", "native" (io_submit, which
        /// needs block_device_cache_set and block_device_cache_direct), or "io_uring".
        block_device_aio: BlockDeviceAio = BlockDeviceAio::Threads;
        /// Whether the two keys that begin with block_device_cache_ count.
        block_device_cache_set: bool = false;
        /// Read and write disks of containers past the host's page cache.
        block_device_cache_direct: bool = false;
        /// Do not bring what a guest flushes to the medium: faster, and what it wrote may be lost
        /// when the host goes down.
        block_device_cache_noflush: bool = false;
        /// CPU flags for QEMU's -cpu, separated by commas.
        cpu_features: String = "pmu=off".to_owned();
        /// QEMU's own seccomp filter: the value of its -sandbox option; "" runs it without.
        /// (`seccompsandbox` is the older name of this key.)
        seccomp_sandbox: String =
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".to_owned();
        /// Run QEMU as an unprivileged user and group that are different in each sandbox, and not
        /// as root. Either way it has no capability.
        rootless: bool = true;
        /// Let QEMU move network frames by itself, also where the host's kernel could
        /// (/dev/vhost-net).
        disable_vhost_net: bool = false;
        /// The host's source of random numbers for the guest.
        entropy_source: PathBuf = PathBuf::from("/dev/urandom");
        /// Have sandboxes go on from a guest that has booted once and was saved, and not boot
        /// (`kata-runtime factory init` makes it). A sandbox of another size or with disks boots as
        /// ever, and so does one on a microvm under KVM; the log says why. Needs an initrd. All of
        /// them have the addresses and secrets in their kernels that the one had: whoever learns
        /// them in one guest knows them of all. (Also as a key of the section factory, as in Kata's
        /// own files.)
        enable_template: bool = false;
        /// The directory of what was saved.
        template_path: PathBuf = PathBuf::from("/run/vc/vm/template");
    }
}

impl Qemu {
    /// Keys of which each is right, but not all together; by name and with a sentence.
    pub(crate) fn contradiction(&self) -> Option<(&'static str, &'static str)> {
        let direct = self.block_device_cache_set && self.block_device_cache_direct;
        if self.block_device_aio == BlockDeviceAio::Native && !direct {
            return Some((
                "block_device_aio",
                "= \"native\" needs `block_device_cache_set` and `block_device_cache_direct`; set both to true, or this to \"threads\"",
            ));
        }
        if self.reclaim_guest_freed_memory && (self.enable_hugepages || self.enable_mem_prealloc) {
            return Some((
                "reclaim_guest_freed_memory",
                "= true does not go with `enable_hugepages` and `enable_mem_prealloc`, which set memory aside for a guest; set them to false, or this",
            ));
        }
        self.template_obstacle().map(|obstacle| ("enable_template", obstacle))
    }

    /// What a guest that goes on from a template cannot have.
    fn template_obstacle(&self) -> Option<&'static str> {
        if !self.enable_template {
            None
        } else if matches!(self.vm.root(), Root::Image(_)) {
            Some(
                "= true needs an initial ramdisk; set `initrd` in place of `image`, or this to false",
            )
        } else if self.enable_hugepages || self.enable_mem_prealloc {
            Some(
                "= true does not go with `enable_hugepages` and `enable_mem_prealloc`; set them to false, or this",
            )
        } else if self.enable_virtio_mem {
            Some("= true does not go with `enable_virtio_mem`; set one of them to false")
        } else {
            None
        }
    }
}

choice! {
    /// Who reads and writes disks for QEMU.
    pub enum BlockDeviceAio {
        /// Threads of QEMU's own.
        Threads = "threads",
        /// io_submit(2).
        Native = "native",
        /// io_uring(7).
        IoUring = "io_uring",
    }
}

choice! {
    /// QEMU's machine.
    pub enum MachineType {
        /// Without KVM the smallest that boots the kernel: microvm for an uncompressed one
        /// (`vmlinux`); else q35.
        Auto = "",
        /// The minimal machine: virtio over MMIO, nothing else.
        Microvm = "microvm",
        /// The PC with PCI Express.
        Q35 = "q35",
    }
}

fn default_program() -> PathBuf {
    PathBuf::from(format!("/usr/bin/qemu-system-{}", std::env::consts::ARCH))
}

/// The lists of paths that annotations may choose from (`valid_*`) need no field: no annotation
/// chooses a path.
const OFF: &[OffKey] = &[
    // Boot assets.
    text("vm_rootfs_driver", &["virtio-pmem", "virtio-blk-pci", "virtio-blk-mmio"]),
    text("firmware", &[""]),
    text("firmware_volume", &[""]),
    text("machine_accelerators", &[""]),
    empty_list("pflashes"),
    empty_list("guest_extension_images"),
    any_list("valid_hypervisor_paths"),
    text("ctlpath", &[""]),
    any_list("valid_ctlpaths"),
    text("jailer_path", &[""]),
    any_list("valid_jailer_paths"),
    // CPU and memory.
    number("memory_slots", &[0, 10, 128]),
    number("memory_offset", &[0]),
    text("hugepage_type", &["", "hugetlbfs"]),
    off("enable_numa"),
    empty_list("numa_mapping"),
    off("enable_guest_swap"),
    any_text("guest_swap_path"),
    any_number("guest_swap_size_percent"),
    any_number("guest_swap_create_threshold_secs"),
    off("disable_nested_virtualization"),
    text("file_mem_backend", &[""]),
    any_list("valid_file_mem_backends"),
    // Shared file system.
    any_list("valid_virtio_fs_daemon_paths"),
    number("virtio_fs_cache_size", &[0]),
    off("virtio_fs_is_dax"),
    number("virtio_fs_queue_size", &[1024]),
    any_number("msize_9p"),
    text("prefetch_list_path", &[""]),
    // Block devices.
    text("block_device_driver", &["virtio-scsi", "virtio-blk-pci", "virtio-blk-mmio"]),
    off("enable_iothreads"),
    number("indep_iothreads", &[0]),
    any_number("queue_size"),
    any_number("num_queues"),
    number("block_device_logical_sector_size", &[0]),
    number("block_device_physical_sector_size", &[0]),
    number("disk_rate_limiter_bw_max_rate", &[0]),
    number("disk_rate_limiter_bw_one_time_burst", &[0]),
    number("disk_rate_limiter_ops_max_rate", &[0]),
    number("disk_rate_limiter_ops_one_time_burst", &[0]),
    off("enable_vhost_user_store"),
    any_text("vhost_user_store_path"),
    any_list("valid_vhost_user_store_paths"),
    number("vhost_user_reconnect_timeout_sec", &[0]),
    either("disable_image_nvdimm"),
    // Network, devices, IOMMU.
    number("network_queues", &[1]),
    number("rx_rate_limiter_max_rate", &[0]),
    number("tx_rate_limiter_max_rate", &[0]),
    number("net_rate_limiter_bw_max_rate", &[0]),
    number("net_rate_limiter_bw_one_time_burst", &[0]),
    number("net_rate_limiter_ops_max_rate", &[0]),
    number("net_rate_limiter_ops_one_time_burst", &[0]),
    number("default_bridges", &[0, 1]),
    text("cold_plug_vfio", &["no-port"]),
    text("hot_plug_vfio", &["no-port"]),
    off("hotplug_vfio_on_root_bus"),
    number("pcie_root_port", &[0]),
    number("pcie_switch_port", &[0]),
    off("enable_iommu"),
    off("enable_iommu_platform"),
    number("default_gpus", &[0]),
    text("default_gpu_model", &[""]),
    // Security. No SELinux label is ever set.
    either("disable_selinux"),
    text("selinux_label", &[""]),
    on("disable_guest_selinux"),
    off("disable_seccomp").instead("set `seccomp_sandbox = \"\"` to run QEMU without a filter"),
    off("confidential_guest"),
    off("sev_snp_guest"),
    any_number("snp_guest_policy"),
    text("snp_id_block", &[""]),
    text("snp_id_auth", &[""]),
    any_number("tdx_quote_generation_service_socket_port"),
    text("initdata", &[""]),
    text("measurement_algo", &[""]),
    any_list("valid_entropy_sources"),
    either("disable_nesting_checks"),
    text("guest_hook_path", &[""]),
    // Debugging and templates.
    text("extra_monitor_socket", &[""]),
    text("dbg_monitor_socket", &[""]),
    text("guest_memory_dump_path", &[""]),
    off("guest_memory_dump_paging"),
    any_number("hypervisor_loglevel"),
    off("use_legacy_serial"),
    off("boot_to_be_template"),
    off("boot_from_template"),
    text("memory_path", &[""]),
    text("device_state_path", &[""]),
];

/// `[hypervisor.qemu.factory]`, and the Go runtime's `[factory]`, without what became keys of
/// `[hypervisor.qemu]`.
pub(crate) const FACTORY: &[OffKey] =
    &[number("vm_cache_number", &[0]), any_text("vm_cache_endpoint")];
