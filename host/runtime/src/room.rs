//! How a VM's size follows the limits of its containers once it runs.

use kata_config::{HostResources, SandboxSize};
use kata_sandbox::{MemoryPlan, VcpusPlan};

use crate::Runtime;

/// How the VM's memory follows its containers' limits once it runs.
pub(crate) fn memory(runtime: &Runtime, size: SandboxSize) -> MemoryPlan {
    let config = &runtime.config;
    let (vm, hypervisor) = (config.vm(), runtime.hypervisor());
    let fixed = if !hypervisor.capabilities().more_memory {
        Some(format!("{} gives a virtual machine no more once it runs", hypervisor.name()))
    } else if !config.enables_virtio_mem() {
        let name = hypervisor.name();
        Some(format!("`enable_virtio_mem` in the section hypervisor.{name} is false"))
    } else {
        let full = size.memory_mib == size.most_memory_mib;
        full.then(|| "that is all that a virtual machine may have (`default_maxmemory`)".to_owned())
    };
    MemoryPlan {
        boot_mib: size.memory_mib,
        most_mib: size.most_memory_mib,
        overhead_mib: vm.overhead_memory,
        unlimited_mib: vm.default_memory,
        fixed,
    }
}

/// How the VM's virtual CPUs follow its containers' limits once it runs.
pub(crate) fn vcpus(runtime: &Runtime, size: SandboxSize, host: HostResources) -> VcpusPlan {
    let config = &runtime.config;
    let (vm, hypervisor) = (config.vm(), runtime.hypervisor());
    let fixed = if !hypervisor.capabilities().more_vcpus {
        Some(format!("{} gives a virtual machine no more once it runs", hypervisor.name()))
    } else if vm.default_maxvcpus == 0 {
        let name = hypervisor.name();
        Some(format!("`default_maxvcpus` in the section hypervisor.{name} is 0"))
    } else {
        let full = size.vcpus == size.most_vcpus;
        full.then(|| "that is all that a virtual machine may have (`default_maxvcpus`)".to_owned())
    };
    VcpusPlan {
        boot: size.vcpus,
        most: size.most_vcpus,
        // The cast saturates; what is set is not negative.
        overhead_millis: (vm.overhead_vcpus * 1000.0).round() as u32,
        unlimited: kata_config::unlimited_vcpus(config, host),
        fixed,
    }
}
