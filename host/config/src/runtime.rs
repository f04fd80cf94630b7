//! `[runtime]`.

pub use crate::agent::AgentName;
use crate::hypervisors::HypervisorName;
use crate::off::{OffKey, any_number, any_text, either, empty_list, off, text};
use crate::section::section;
use crate::setting::{BindMount, LogLevel, choice};

section! {
    /// What runs on the host.
    pub struct Runtime = "runtime", off OFF, off_tables &[], prefix _prefix {
        /// The kind of runtime: "virt_container".
        name: RuntimeName = RuntimeName::VirtContainer;
        /// The hypervisor that runs the sandboxes: "clh", "firecracker", "krun", "qemu", or "auto",
        /// which takes krun where krun can do all that a sandbox needs, and QEMU otherwise
        /// (docs/reference/hypervisors.md). If this key is not set and the file has only one
        /// section hypervisor.NAME, that is the hypervisor.
        hypervisor_name: HypervisorName = HypervisorName::Auto;
        /// Which section agent.NAME runs in the guest.
        agent_name: AgentName = AgentName::Kata;
        /// Log what helps to find a defect.
        enable_debug: bool = false;
        /// How much is logged: "trace", "debug", "info", "warn" or "error". enable_debug makes it
        /// at least "debug".
        log_level: LogLevel = LogLevel::Info;
        /// How the interfaces of the sandbox's network namespace reach the VM: "tcfilter" passes
        /// every frame on between interface and VM, "macvtap" puts a macvtap on top of the
        /// interface (the host's kernel must have it), "none" connects nothing.
        internetworking_model: InternetworkingModel = InternetworkingModel::Tcfilter;
        /// Run containers without the seccomp profile that the engine gives them.
        disable_guest_seccomp: bool = false;
        /// Keep everything of a sandbox (shim, VMM, virtio-fs server) in the engine's cgroup on the
        /// host. If false it is in /kata_overhead/ID instead, where limits that are set on the
        /// engine's cgroups do not reach it.
        sandbox_cgroup_only: bool = true;
        /// Size the VM once, from the limits known when it is made. If false it has the default
        /// size, whatever the limits.
        static_sandbox_resource_mgmt: bool = true;
        /// Directories of the host that every guest finds under
        /// /run/kata-containers/shared/containers/sandbox-mounts, each "PATH", "PATH:ro" or
        /// "PATH:rw"; read-only unless it says "rw". Each goes by the last part of its path, of
        /// which there may be no two alike.
        sandbox_bind_mounts: Vec<BindMount> = Vec::new(), check have_places;
        /// How a VFIO device appears in a container, "guest-kernel" or "vfio". This version passes
        /// none.
        vfio_mode: VfioMode = VfioMode::GuestKernel;
        /// Where a Kubernetes emptyDir lives, which a pod's containers share: "shared-fs", on the
        /// host, or in the guest's memory with a hypervisor that shares no files (Firecracker).
        emptydir_mode: EmptyDirMode = EmptyDirMode::SharedFs;
    }
}

impl Runtime {
    /// How much is logged, with `enable_debug` taken into account.
    #[must_use]
    pub fn effective_log_level(&self) -> LogLevel {
        self.log_level.with_debug(self.enable_debug)
    }
}

choice! {
    /// The kind of runtime.
    pub enum RuntimeName {
        /// Linux containers in a virtual machine.
        VirtContainer = "virt_container",
    }
}

choice! {
    /// How the interfaces of a network namespace reach the VM.
    pub enum InternetworkingModel {
        /// Traffic is redirected by tc between interface and tap.
        Tcfilter = "tcfilter",
        /// A macvtap on top of the interface.
        Macvtap = "macvtap",
        /// They do not.
        None = "none",
    }
}

choice! {
    /// How a VFIO device appears in a container.
    pub enum VfioMode {
        /// As whatever the guest's driver makes of it.
        GuestKernel = "guest-kernel",
        /// As a VFIO device again.
        Vfio = "vfio",
    }
}

choice! {
    /// Where a Kubernetes emptyDir lives.
    pub enum EmptyDirMode {
        /// Where other directories are that containers mount: on the host, shared; in the guest's
        /// memory where the hypervisor shares none.
        SharedFs = "shared-fs",
    }
}

const OFF: &[OffKey] = &[
    // The VMM always has a network namespace of its own.
    off("disable_new_netns"),
    off("enable_vcpus_pinning"),
    off("enable_tracing"),
    any_text("jaeger_endpoint"),
    any_text("jaeger_user"),
    any_text("jaeger_password"),
    off("enable_pprof"),
    empty_list("experimental"),
    off("keep_abnormal"),
    any_text("dan_conf"),
    empty_list("shared_mounts"),
    off("use_passfd_io"),
    any_number("passfd_listener_port"),
    text("pod_resource_api_sock", &[""]),
    // The Go runtime's.
    text("guest_selinux_label", &[""]),
    off("experimental_force_guest_pull"),
    either("disable_guest_empty_dir"),
    any_text("kubelet_root_dir"),
];

/// Each directory is found under its last name.
fn have_places(mounts: &Vec<BindMount>) -> Result<(), String> {
    let mut names = Vec::new();
    for BindMount { source, .. } in mounts {
        let name = source.file_name().ok_or_else(|| {
            format!(
                "names {}, which has no name; name a directory or file below it",
                source.display()
            )
        })?;
        if names.contains(&name) {
            return Err(format!(
                "has two paths that end in {}, under which only one can be found; rename one of them, or bind it elsewhere",
                name.display()
            ));
        }
        names.push(name);
    }
    Ok(())
}
