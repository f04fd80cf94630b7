//! What a report of a defect should tell: versions, files, settings and host, in the shape of
//! Kata's own `kata-env`.

use std::fs;
use std::path::{Path, PathBuf};

use kata_config::{LogLevel, Root};
use kata_hypervisor::{SharedFileSystem, kvm_obstacle};
use kata_linux::program;
use oci_spec::runtime::VERSION as SPEC_VERSION;
use serde::Serialize;

use crate::{Runtime, plan};

/// The version of the shape: that of Kata's 2.0, whose names these are.
const SHAPE: &str = "1.0.27";

/// What an unknown thing is called.
const UNKNOWN: &str = "unknown";

/// The environment that sandboxes would be made in now. Fields whose names are not all their own
/// words are Kata's.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Environment {
    meta: Meta,
    runtime: RuntimeInfo,
    hypervisor: HypervisorInfo,
    kernel: Kernel,
    image: Asset,
    initrd: Asset,
    agent: Agent,
    host: Host,
}

macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[$rename:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct $name { $($(#[$rename])* $field: $type,)* }
    };
}

section! {
    /// About this report.
    Meta { version: &'static str, }
}
section! {
    /// A file that a guest is made of; empty where another one is used instead.
    Asset { path: PathBuf, }
}
section! {
    /// The guest's kernel, and what it is told besides what the driver tells it.
    Kernel { path: PathBuf, parameters: String, }
}
section! {
    /// This software.
    RuntimeInfo {
        path: PathBuf,
        debug: bool,
        disable_guest_seccomp: bool,
        sandbox_cgroup_only: bool,
        internetworking_model: &'static str,
        config: Asset,
        version: RuntimeVersion,
    }
}
section! {
    /// Its version, and that of the runtime specification.
    RuntimeVersion {
        semver: &'static str,
        #[serde(rename = "OCI")]
        oci: &'static str,
    }
}
section! {
    /// The hypervisor that the configuration chooses.
    HypervisorInfo {
        name: &'static str,
        path: PathBuf,
        version: String,
        machine_type: &'static str,
        #[serde(rename = "SharedFS")]
        shared_fs: &'static str,
        #[serde(rename = "VirtioFSDaemon")]
        virtio_fs_daemon: PathBuf,
        debug: bool,
    }
}
section! {
    /// The agent in the guest.
    Agent { debug: bool, debug_console: bool, }
}
section! {
    /// This machine.
    Host {
        kernel: String,
        architecture: String,
        #[serde(rename = "VMContainerCapable")]
        vm_container_capable: bool,
        #[serde(rename = "KVM")]
        kvm: String,
        #[serde(rename = "SupportVSocks")]
        support_vsocks: bool,
        distro: Distro,
        #[serde(rename = "CPU")]
        cpu: Cpu,
        memory: Memory,
    }
}
section! {
    /// Its distribution (os-release(5)).
    Distro { name: String, version: String, }
}
section! {
    /// Its processors.
    Cpu {
        vendor: String,
        model: String,
        #[serde(rename = "CPUs")]
        cpus: usize,
    }
}
section! {
    /// Its memory in KiB (proc_meminfo(5)).
    Memory { total: u64, free: u64, available: u64, }
}

impl Environment {
    /// Looks at the host and at what `runtime` was loaded from. What cannot be learned is `unknown`
    /// or 0. Blocks for as long as the hypervisor takes to tell its version.
    #[must_use]
    pub fn of(runtime: &Runtime) -> Self {
        let config = &runtime.config;
        let (image, initrd) = match runtime.config.vm().root() {
            Root::Image(image) => (image.to_owned(), PathBuf::new()),
            Root::Initrd(initrd) => (PathBuf::new(), plan::initrd(runtime, initrd)),
        };
        Self {
            meta: Meta { version: SHAPE },
            runtime: RuntimeInfo::of(runtime),
            hypervisor: HypervisorInfo::of(runtime),
            kernel: Kernel {
                path: config.vm().kernel.clone(),
                parameters: plan::kernel_params(config).join(" "),
            },
            image: Asset { path: image },
            initrd: Asset { path: initrd },
            agent: Agent {
                debug: is_debug(config.agent.effective_log_level()),
                debug_console: config.agent.debug_console_enabled,
            },
            host: Host::here(),
        }
    }
}

impl RuntimeInfo {
    fn of(runtime: &Runtime) -> Self {
        let settings = &runtime.config.runtime;
        Self {
            path: std::env::current_exe().unwrap_or_default(),
            debug: is_debug(settings.effective_log_level()),
            disable_guest_seccomp: settings.disable_guest_seccomp,
            sandbox_cgroup_only: settings.sandbox_cgroup_only,
            internetworking_model: settings.internetworking_model.as_str(),
            config: Asset { path: runtime.file.clone().unwrap_or_default() },
            version: RuntimeVersion { semver: env!("CARGO_PKG_VERSION"), oci: SPEC_VERSION },
        }
    }
}

impl HypervisorInfo {
    fn of(runtime: &Runtime) -> Self {
        let hypervisor = runtime.hypervisor();
        let path = program::find(hypervisor.program());
        let path = path.unwrap_or_else(|_| hypervisor.program().to_owned());
        let config = &runtime.config;
        let server = plan::file_server(runtime, Path::new(crate::RUN_DIR));
        let is_qemu = hypervisor.name() == "qemu";
        Self {
            name: hypervisor.name(),
            version: program::version_of(&path).unwrap_or_else(|_| UNKNOWN.to_owned()),
            path,
            machine_type: if is_qemu { config.qemu.machine_type.as_str() } else { "" },
            shared_fs: match hypervisor.capabilities().shared_file_system {
                SharedFileSystem::None => "none",
                SharedFileSystem::Server => "virtio-fs",
                SharedFileSystem::Inline => "inline-virtio-fs",
            },
            virtio_fs_daemon: server.map(|server| server.program).unwrap_or_default(),
            debug: is_debug(config.vm().effective_log_level()),
        }
    }
}

impl Host {
    fn here() -> Self {
        let uname = rustix::system::uname();
        let obstacle = kvm_obstacle();
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let (os, cpu, memory) =
            (read("/etc/os-release"), read("/proc/cpuinfo"), read("/proc/meminfo"));
        Self {
            kernel: uname.release().to_string_lossy().into_owned(),
            architecture: uname.machine().to_string_lossy().into_owned(),
            vm_container_capable: obstacle.is_none(),
            kvm: obstacle.unwrap_or_else(|| "works".to_owned()),
            support_vsocks: Path::new("/dev/vhost-vsock").exists(),
            distro: Distro {
                name: field(&os, "NAME", '='),
                version: field(&os, "VERSION_ID", '='),
            },
            cpu: Cpu {
                vendor: field(&cpu, "vendor_id", ':'),
                model: field(&cpu, "model name", ':'),
                cpus: std::thread::available_parallelism().map_or(0, usize::from),
            },
            memory: Memory {
                total: kib(&memory, "MemTotal"),
                free: kib(&memory, "MemFree"),
                available: kib(&memory, "MemAvailable"),
            },
        }
    }
}

fn is_debug(level: LogLevel) -> bool {
    matches!(level, LogLevel::Debug | LogLevel::Trace)
}

/// The value of the first line `name<separator>value`, without quotation marks.
fn field(text: &str, name: &str, separator: char) -> String {
    let values = text.lines().filter_map(|line| line.split_once(separator));
    let value = values.into_iter().find(|(key, _)| key.trim() == name).map(|(_, value)| value);
    value.unwrap_or(UNKNOWN).trim().trim_matches('"').to_owned()
}

/// A number with `kB` behind it; 0 if there is none.
fn kib(meminfo: &str, name: &str) -> u64 {
    field(meminfo, name, ':').trim_end_matches("kB").trim().parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let os = "PRETTY_NAME=\"Debian 12\"\nNAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\n";
        assert_eq!(field(os, "NAME", '='), "Debian GNU/Linux");
        assert_eq!(field(os, "ID", '='), "unknown");
        assert_eq!(field("model\t\t: 2\nmodel name\t: X: y\n", "model name", ':'), "X: y");
    }

    #[test]
    fn memory_is_a_number_or_none() {
        assert_eq!(kib("MemTotal:       16384 kB\nMemFree: 7 kB\n", "MemFree"), 7);
        assert_eq!(kib("MemTotal: much\n", "MemTotal"), 0);
        assert_eq!(kib("", "MemTotal"), 0);
    }

    #[test]
    fn this_host_has_memory_and_processors() {
        let host = Host::here();
        assert!(host.memory.total >= host.memory.free && host.memory.total > 0);
        assert!(host.cpu.cpus > 0 && !host.kernel.is_empty());
    }
}
