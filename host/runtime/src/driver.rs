//! The driver that a configuration chooses, with its settings.

use std::path::Path;

use kata_cloud_hypervisor::{CloudHypervisor, CloudHypervisorSettings};
use kata_config::{BlockDeviceAio, HostConfig, HypervisorName, MachineType};
use kata_firecracker::api::{RateLimiter, TokenBucket};
use kata_firecracker::{Firecracker, FirecrackerSettings};
use kata_hypervisor::Hypervisor;
use kata_krun::{Krun, KrunSettings};
use kata_qemu::{AcceleratorChoice, Aio, DiskIo, MachineChoice, Pages, Qemu, QemuSettings};

/// What the drivers trace begins with one of these.
pub(crate) const TARGETS: [&str; 4] =
    ["kata_cloud_hypervisor", "kata_firecracker", "kata_krun", "kata_qemu"];

/// Where boots under emulation take turns, beside the sandboxes' directories: no sandbox's id
/// begins with a dot.
const BOOT_SLOTS: &str = ".boots";

/// The driver that `config` chooses.
pub(crate) fn of(config: &HostConfig, prefix: &Path) -> Box<dyn Hypervisor> {
    match config.runtime.hypervisor_name {
        HypervisorName::CloudHypervisor => Box::new(CloudHypervisor::new(clh_settings(config))),
        HypervisorName::Firecracker => Box::new(Firecracker::new(firecracker_settings(config))),
        HypervisorName::Krun => Box::new(Krun::new(krun_settings(config, prefix))),
        HypervisorName::Qemu | HypervisorName::Auto => Box::new(Qemu::new(qemu_settings(config))),
    }
}

/// Every driver that there is, for an installation under `prefix` without configuration, in the
/// order of their names.
#[must_use]
pub fn all(prefix: &Path) -> Vec<Box<dyn Hypervisor>> {
    let mut config = HostConfig::defaults(prefix);
    let mut with = |name| {
        config.runtime.hypervisor_name = name;
        of(&config, prefix)
    };
    vec![
        with(HypervisorName::CloudHypervisor),
        with(HypervisorName::Firecracker),
        with(HypervisorName::Krun),
        with(HypervisorName::Qemu),
    ]
}

fn clh_settings(config: &HostConfig) -> CloudHypervisorSettings {
    CloudHypervisorSettings {
        program: config.clh.path.clone(),
        seccomp: !config.clh.disable_seccomp,
        entropy_source: config.clh.entropy_source.clone(),
        dial_again: config.agent.dial_timeout(),
    }
}

fn firecracker_settings(config: &HostConfig) -> FirecrackerSettings {
    let firecracker = &config.firecracker;
    let bytes = |bits: u32| u64::from(bits).div_ceil(8);
    let bandwidth = |bits, burst| TokenBucket::per_second(bytes(bits), bytes(burst));
    let network = |bits| RateLimiter { bandwidth: bandwidth(bits, 0), ops: None };
    FirecrackerSettings {
        program: firecracker.path.clone(),
        jailer: firecracker.jailer_path.clone(),
        seccomp: !firecracker.disable_seccomp,
        disk: RateLimiter {
            bandwidth: bandwidth(
                firecracker.disk_rate_limiter_bw_max_rate,
                firecracker.disk_rate_limiter_bw_one_time_burst,
            ),
            ops: TokenBucket::per_second(
                firecracker.disk_rate_limiter_ops_max_rate.into(),
                firecracker.disk_rate_limiter_ops_one_time_burst.into(),
            ),
        },
        receive: network(firecracker.rx_rate_limiter_max_rate),
        send: network(firecracker.tx_rate_limiter_max_rate),
        dial_again: config.agent.dial_timeout(),
    }
}

fn krun_settings(config: &HostConfig, prefix: &Path) -> KrunSettings {
    let installed = || kata_config::companion(prefix, "kata-krun");
    KrunSettings {
        dial_again: config.agent.dial_timeout(),
        ..KrunSettings::new(config.krun.path.clone().unwrap_or_else(installed))
    }
}

fn qemu_settings(config: &HostConfig) -> QemuSettings {
    let qemu = &config.qemu;
    QemuSettings {
        program: qemu.path.clone(),
        machine: match qemu.machine_type {
            MachineType::Auto => MachineChoice::Auto,
            MachineType::Microvm => MachineChoice::Microvm,
            MachineType::Q35 => MachineChoice::Q35,
        },
        cpu_features: qemu.cpu_features.clone(),
        pages: Pages {
            huge: qemu.enable_hugepages,
            preallocated: qemu.enable_mem_prealloc,
            reclaimed: qemu.reclaim_guest_freed_memory,
        },
        disk_io: DiskIo {
            aio: match qemu.block_device_aio {
                BlockDeviceAio::Threads => Aio::Threads,
                BlockDeviceAio::Native => Aio::Native,
                BlockDeviceAio::IoUring => Aio::IoUring,
            },
            direct: qemu.block_device_cache_set && qemu.block_device_cache_direct,
            no_flush: qemu.block_device_cache_set && qemu.block_device_cache_noflush,
        },
        seccomp_sandbox: qemu.seccomp_sandbox.clone(),
        entropy_source: qemu.entropy_source.clone(),
        accelerator: AcceleratorChoice::Auto,
        rootless: qemu.rootless,
        dial_again: config.agent.dial_timeout(),
        boot_slots: Path::new(crate::RUN_DIR).join(BOOT_SLOTS),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_a_choice_of_krun_gets_it() {
        let mut config = HostConfig::defaults(Path::new("/usr"));
        assert_eq!(of(&config, Path::new("/usr")).name(), "qemu");
        config.runtime.hypervisor_name = HypervisorName::Krun;
        assert_eq!(of(&config, Path::new("/usr")).name(), "krun");
    }

    #[test]
    fn drivers_are_told_when_to_dial_again_and_where_random_numbers_are() {
        let defaults = HostConfig::defaults(Path::new("/usr"));
        let text = "[hypervisor.qemu]\nentropy_source = \"/dev/hwrng\"\n\
                    [hypervisor.clh]\nentropy_source = \"/dev/random\"\n\
                    [agent.kata]\ndial_timeout_ms = 50\n";
        let set = HostConfig::parse(text, Path::new("f.toml"), Path::new("/usr")).unwrap();
        for (config, millis, sources) in [
            (&defaults, 10, ["/dev/urandom", "/dev/urandom"]),
            (&set, 50, ["/dev/hwrng", "/dev/random"]),
        ] {
            let (qemu, clh) = (qemu_settings(config), clh_settings(config));
            let again = [
                qemu.dial_again,
                clh.dial_again,
                firecracker_settings(config).dial_again,
                krun_settings(config, Path::new("/usr")).dial_again,
            ];
            assert_eq!(again, [Duration::from_millis(millis); 4]);
            assert_eq!([qemu.entropy_source, clh.entropy_source], sources.map(PathBuf::from));
        }
    }

    #[test]
    fn limits_in_bits_are_kept_in_bytes() {
        let mut config = HostConfig::defaults(Path::new("/usr"));
        assert_eq!(firecracker_settings(&config).disk, RateLimiter::default());
        config.firecracker.disk_rate_limiter_bw_max_rate = 8001;
        config.firecracker.disk_rate_limiter_ops_max_rate = 7;
        config.firecracker.tx_rate_limiter_max_rate = 800;
        let settings = firecracker_settings(&config);
        let size = |bucket: Option<TokenBucket>| bucket.map(|bucket| bucket.size);
        assert_eq!(size(settings.disk.bandwidth), Some(1001));
        assert_eq!(size(settings.disk.ops), Some(7));
        assert_eq!(size(settings.send.bandwidth), Some(100));
        assert_eq!(settings.receive, RateLimiter::default());
    }

    #[test]
    fn network_devices_that_come_late_are_not_for_all() {
        let mut config = HostConfig::defaults(Path::new("/usr"));
        for (name, late) in [
            (HypervisorName::Qemu, true),
            (HypervisorName::Krun, false),
            (HypervisorName::CloudHypervisor, true),
            (HypervisorName::Firecracker, false),
        ] {
            config.runtime.hypervisor_name = name;
            let can = of(&config, Path::new("/usr")).capabilities();
            assert_eq!(can.hot_plug, late, "{name:?}");
        }
    }
}
