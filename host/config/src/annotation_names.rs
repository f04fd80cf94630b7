//! Which annotations there are, by the names that `enable_annotations` lists: those of the
//! hypervisor by their bare name, the others with `runtime.` or `agent.` before it.

use crate::error::closest;

const PATH: &str = "it would let a pod choose a path or a program of the host";
const ARGUMENT: &str = "it would let a pod choose arguments of a program of the host";
const KERNEL: &str = "it would let a pod choose parameters of the guest kernel";
const HOOK: &str = "it would let a pod run programs in the guest outside its containers";
const ASSET: &str = "it belongs to an annotation that chooses a file of the host";
const WALL: &str = "it would let a pod take down a wall around its hypervisor";
const BACKEND: &str = "the administrator chooses what runs sandboxes";

/// Why upstream's annotation that loads another configuration file is refused.
pub(crate) const CONFIG_PATH_REASON: &str = PATH;

/// Names as in `enable_annotations` that no administrator can allow.
const FORBIDDEN: &[(&str, &str)] = &[
    ("path", PATH),
    ("path_hash", ASSET),
    ("jailer_path", PATH),
    ("jailer_hash", ASSET),
    ("ctlpath", PATH),
    ("ctlpath_hash", ASSET),
    ("kernel", PATH),
    ("kernel_hash", ASSET),
    ("image", PATH),
    ("image_hash", ASSET),
    ("initrd", PATH),
    ("initrd_hash", ASSET),
    ("firmware", PATH),
    ("firmware_hash", ASSET),
    ("firmware_volume", PATH),
    ("firmware_volume_hash", ASSET),
    ("asset_hash_type", ASSET),
    ("kernel_params", KERNEL),
    ("kernel_verity_params", KERNEL),
    ("machine_accelerators", ARGUMENT),
    ("cpu_features", ARGUMENT),
    ("seccomp_sandbox", ARGUMENT),
    ("rootless", WALL),
    ("virtio_fs_daemon", PATH),
    ("virtio_fs_extra_args", ARGUMENT),
    ("prefetch_files.list", PATH),
    ("entropy_source", PATH),
    ("vhost_user_store_path", PATH),
    ("file_mem_backend", PATH),
    ("guest_hook_path", HOOK),
    ("runtime.sandbox_bind_mounts", PATH),
    ("runtime.name", BACKEND),
    ("runtime.hypervisor_name", BACKEND),
    ("runtime.agent_name", BACKEND),
];

/// Annotations whose name is not that of their key, as in `enable_annotations`, and the key.
pub(crate) const RENAMED: &[(&str, &str)] = &[
    ("default_max_vcpus", "default_maxvcpus"),
    ("blk_logical_sector_size", "block_device_logical_sector_size"),
    ("blk_physical_sector_size", "block_device_physical_sector_size"),
    ("block_device_num_queues", "num_queues"),
    ("block_device_queue_size", "queue_size"),
    ("cc_init_data", "initdata"),
    ("runtime.create_container_timeout", "agent.create_container_timeout"),
];

/// Annotations named like their key.
const SETTABLE: &[&str] = &[
    "default_vcpus",
    "default_memory",
    "memory_slots",
    "memory_offset",
    "enable_virtio_mem",
    "enable_mem_prealloc",
    "enable_hugepages",
    "hugepage_type",
    "enable_guest_swap",
    "machine_type",
    "block_device_driver",
    "disable_block_device_use",
    "block_device_cache_set",
    "block_device_cache_direct",
    "block_device_cache_noflush",
    "enable_iothreads",
    "indep_iothreads",
    "disable_image_nvdimm",
    "enable_vhost_user_store",
    "vhost_user_reconnect_timeout_sec",
    "shared_fs",
    "virtio_fs_cache",
    "virtio_fs_cache_size",
    "msize_9p",
    "disable_vhost_net",
    "rx_rate_limiter_max_rate",
    "tx_rate_limiter_max_rate",
    "network_queues",
    "pcie_root_port",
    "pcie_switch_port",
    "cold_plug_vfio",
    "hot_plug_vfio",
    "enable_iommu",
    "enable_iommu_platform",
    "use_legacy_serial",
    "default_gpus",
    "default_gpu_model",
    "runtime.disable_guest_seccomp",
    "runtime.sandbox_cgroup_only",
    "runtime.disable_new_netns",
    "runtime.internetworking_model",
    "runtime.vfio_mode",
    "runtime.enable_vcpus_pinning",
    "runtime.experimental",
    "runtime.shared_mounts",
    "runtime.enable_pprof",
    "runtime.experimental_force_guest_pull",
    "agent.kernel_modules",
    "agent.enable_tracing",
    "agent.container_pipe_size",
    "agent.cdh_api_timeout_ms",
    "agent.cdh_api_timeout",
    "agent.policy",
];

/// Every name that `enable_annotations` may list.
pub(crate) fn allowable() -> impl Iterator<Item = &'static str> {
    SETTABLE.iter().copied().chain(RENAMED.iter().map(|(name, _)| *name))
}

/// Why no administrator can allow the annotation `name`; `None` when one can, or when there is none
/// of that name.
pub(crate) fn forbidden(name: &str) -> Option<&'static str> {
    FORBIDDEN.iter().find(|(forbidden, _)| *forbidden == name).map(|(_, reason)| *reason)
}

/// Checks the list of the configuration: exact names of annotations. Those that no administrator
/// can allow may stand there, for upstream's shipped files list some; a pod that sets one is
/// refused all the same.
pub(crate) fn check_enabled(names: &Vec<String>) -> Result<(), String> {
    for name in names {
        if forbidden(name).is_some() || allowable().any(|known| known == name) {
            continue;
        }
        let is_name =
            |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '.');
        return Err(if !name.is_empty() && name.chars().all(is_name) {
            let hint = closest(name, allowable())
                .map_or_else(String::new, |close| format!(" (did you mean \"{close}\"?)"));
            format!("lists \"{name}\", which is no annotation{hint}; remove it or correct its name")
        } else {
            format!(
                "lists {name:?}, which is not a plain name; list exact names, for patterns are not taken"
            )
        });
    }
    Ok(())
}
