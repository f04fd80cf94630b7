//! How large a sandbox's VM is: a pure function of configuration, limits and host.
//!
//! | | limit known | no limit |
//! |---|---|---|
//! | virtual CPUs | ⌈limit + `overhead_vcpus`⌉ | ⌈`default_vcpus`⌉ |
//! | memory | limit + `overhead_memory`, at least [`MIN_GUEST_MEMORY_MIB`] | `default_memory` |
//!
//! The two rows are independent: a sandbox with only a CPU limit keeps the default memory (upstream
//! counts a missing memory limit as 0 and makes a VM that cannot boot). With
//! `static_sandbox_resource_mgmt = false` the right column always holds. A limit above what the
//! host or the configuration allows gives the largest VM that is allowed: as with runc, a limit is
//! not a demand.
//!
//! That is how it boots. With `enable_virtio_mem` its memory follows the limits of its containers
//! from then on, up to [`SandboxSize::most_memory_mib`], and with a `default_maxvcpus` so do its
//! virtual CPUs, up to [`SandboxSize::most_vcpus`].

use crate::HostConfig;

/// The least memory in MiB that a VM sized by a limit gets: a distribution kernel, the unpacked
/// initial ramdisk and the agent do not start in less.
pub const MIN_GUEST_MEMORY_MIB: u32 = 128;

/// Virtual CPUs beyond which no VM goes, whatever the host has.
const MAX_VCPUS: u32 = 256;

/// The quota period of the kernel's CPU controller where the engine names none, in µs
/// (cpu.cfs_period_us, sched-bwc.rst).
const DEFAULT_PERIOD_US: u64 = 100_000;

/// What the engine limits the sandbox, or its only container, to.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct WorkloadLimits {
    /// CPUs; `None` for no limit.
    pub cpus: Option<f64>,
    /// Bytes of memory; `None` for no limit.
    pub memory_bytes: Option<u64>,
    /// There are containers without a limit of CPUs beside, which are to have what those have.
    pub unlimited_cpus: bool,
    /// The same of memory.
    pub unlimited_memory: bool,
}

impl WorkloadLimits {
    /// From the OCI runtime spec's numbers (config-linux.md: cpu.quota and cpu.period in µs,
    /// memory.limit in bytes), or the CRI annotations of the same meaning. A quota or memory limit
    /// that is missing, zero or negative is none; a period that is missing or zero is 100 ms.
    #[must_use]
    pub fn from_spec(quota: Option<i64>, period: Option<u64>, memory: Option<i64>) -> Self {
        let period = period.filter(|period| *period > 0).unwrap_or(DEFAULT_PERIOD_US);
        let quota = quota.and_then(|quota| u64::try_from(quota).ok()).filter(|quota| *quota > 0);
        // Microseconds of a quota lose nothing that counts as a float.
        let cpus = quota.map(|quota| quota as f64 / period as f64);
        let memory_bytes = memory.and_then(|bytes| u64::try_from(bytes).ok()).filter(|b| *b > 0);
        Self { cpus, memory_bytes, ..Self::default() }
    }

    /// The same beside containers without a limit of CPUs, or of memory.
    #[must_use]
    pub fn beside(self, unlimited_cpus: bool, unlimited_memory: bool) -> Self {
        Self { unlimited_cpus, unlimited_memory, ..self }
    }
}

/// What there is to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostResources {
    /// CPUs that this process may use, at least 1.
    pub cpus: u32,
    /// The host's memory in MiB.
    pub memory_mib: u32,
    /// The most virtual CPUs that the driver's machine takes, at least 1.
    pub driver_max_vcpus: u32,
}

/// The size of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SandboxSize {
    /// Virtual CPUs, at least 1.
    pub vcpus: u32,
    /// The virtual CPUs that it may ever have, at least `vcpus`; just these where
    /// `default_maxvcpus` does not name a number.
    pub most_vcpus: u32,
    /// Memory in MiB, an even number, at least 64.
    pub memory_mib: u32,
    /// The memory in MiB that it may ever have, an even number, at least `memory_mib`.
    pub most_memory_mib: u32,
}

/// Why no size fits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// The configured default is beyond the configured or physical ceiling.
    #[error(
        "default_memory is {wanted} MiB, but a sandbox may have {most} MiB at most ({why}); lower default_memory"
    )]
    MemoryBeyondCeiling {
        /// `default_memory`.
        wanted: u32,
        /// The ceiling.
        most: u32,
        /// Which ceiling: `default_maxmemory` or the host's memory.
        why: &'static str,
    },
    /// The ceiling is below what a guest needs to boot.
    #[error(
        "a sandbox may have {most} MiB of memory at most ({why}), less than the {MIN_GUEST_MEMORY_MIB} MiB that a guest needs; raise it"
    )]
    CeilingTooLow {
        /// The ceiling.
        most: u32,
        /// Which ceiling: `default_maxmemory` or the host's memory.
        why: &'static str,
    },
}

/// The size of the VM for a sandbox with these limits on this host.
pub fn sandbox_size(
    config: &HostConfig,
    limits: WorkloadLimits,
    host: HostResources,
) -> Result<SandboxSize, SizeError> {
    let limits = if config.runtime.static_sandbox_resource_mgmt {
        limits
    } else {
        WorkloadLimits::default()
    };
    let (vcpus, most_vcpus) = vcpus(config, limits, host);
    let ceiling = MemoryCeiling::of(config, host);
    let memory_mib = memory_mib(config, limits, ceiling)?;
    Ok(SandboxSize { vcpus, most_vcpus, memory_mib, most_memory_mib: ceiling.mib })
}

/// How many at boot, and at most later.
fn vcpus(config: &HostConfig, limits: WorkloadLimits, host: HostResources) -> (u32, u32) {
    let settings = config.vm();
    let most = match settings.default_maxvcpus {
        0 => host.cpus,
        configured => configured.min(host.cpus),
    };
    let most = most.min(MAX_VCPUS).min(host.driver_max_vcpus).max(1);
    let wanted = match limits.cpus {
        Some(cpus) => {
            let limited = whole(cpus + settings.overhead_vcpus);
            let unlimited = limits.unlimited_cpus.then(|| unlimited_vcpus(config, host));
            limited.max(unlimited.unwrap_or_default())
        }
        None => unlimited_vcpus(config, host),
    };
    let boot = wanted.clamp(1, most);
    (boot, if settings.default_maxvcpus == 0 { boot } else { most })
}

/// The virtual CPUs that a sandbox without a CPU limit would have if there were no end to them.
#[must_use]
pub fn unlimited_vcpus(config: &HostConfig, host: HostResources) -> u32 {
    match config.vm().default_vcpus {
        vcpus if vcpus < 0.0 => host.cpus,
        vcpus => whole(vcpus),
    }
}

/// Rounded up. The small step back undoes float noise: 0.8 + 0.2 is one CPU. The cast saturates.
fn whole(cpus: f64) -> u32 {
    (cpus - 1e-6).ceil().max(0.0) as u32
}

/// What no VM's memory may exceed.
#[derive(Debug, Clone, Copy)]
struct MemoryCeiling {
    /// Even, as sizes are: rounding one up does not pass it.
    mib: u32,
    why: &'static str,
}

impl MemoryCeiling {
    fn of(config: &HostConfig, host: HostResources) -> Self {
        let (most, why) = match config.vm().default_maxmemory {
            configured if configured > 0 && configured < host.memory_mib => {
                (configured, "default_maxmemory")
            }
            _ => (host.memory_mib, "the host's memory"),
        };
        Self { mib: most & !1, why }
    }
}

fn memory_mib(
    config: &HostConfig,
    limits: WorkloadLimits,
    ceiling: MemoryCeiling,
) -> Result<u32, SizeError> {
    let settings = config.vm();
    let MemoryCeiling { mib: most, why } = ceiling;
    let wanted = settings.default_memory;
    let even = wanted.saturating_add(wanted & 1);
    let Some(bytes) = limits.memory_bytes else {
        return if even <= most {
            Ok(even)
        } else {
            Err(SizeError::MemoryBeyondCeiling { wanted, most, why })
        };
    };
    if most < MIN_GUEST_MEMORY_MIB {
        return Err(SizeError::CeilingTooLow { most, why });
    }
    let limit_mib = bytes.div_ceil(1 << 20);
    let wanted = limit_mib.saturating_add(settings.overhead_memory.into());
    let wanted = wanted.saturating_add(wanted & 1);
    let unlimited = if limits.unlimited_memory { even } else { 0 };
    let wanted = wanted.max(unlimited.into());
    // Nothing is lost by the conversion: what does not fit is above every ceiling.
    Ok(u32::try_from(wanted).unwrap_or(u32::MAX).clamp(MIN_GUEST_MEMORY_MIB, most))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    const HOST: HostResources =
        HostResources { cpus: 8, memory_mib: 16_384, driver_max_vcpus: 255 };

    fn config() -> HostConfig {
        HostConfig::defaults(Path::new("/usr/local"))
    }

    fn limits(cpus: Option<f64>, mib: Option<u64>) -> WorkloadLimits {
        WorkloadLimits { cpus, memory_bytes: mib.map(|mib| mib << 20), ..WorkloadLimits::default() }
    }

    fn size(config: &HostConfig, limits: WorkloadLimits) -> (u32, u32) {
        let size = sandbox_size(config, limits, HOST).unwrap();
        (size.vcpus, size.memory_mib)
    }

    #[test]
    fn each_limit_that_is_missing_leaves_its_default() {
        assert_eq!(size(&config(), limits(None, None)), (1, 2048));
        assert_eq!(size(&config(), limits(Some(2.0), None)), (3, 2048));
        assert_eq!(size(&config(), limits(None, Some(512))), (1, 512 + 128));
    }

    #[test]
    fn container_without_a_limit_has_no_less_for_one_beside_it() {
        let beside = |cpus, mib, (of_cpus, of_memory)| {
            size(&config(), limits(cpus, mib).beside(of_cpus, of_memory))
        };
        assert_eq!(beside(Some(2.0), Some(64), (false, true)), (3, 2048));
        assert_eq!(beside(Some(2.0), Some(4096), (false, true)), (3, 4096 + 128));
        assert_eq!(beside(Some(0.1), Some(64), (true, false)), (1, 192));
        assert_eq!(beside(None, None, (true, true)), (1, 2048));
        let mut many = config();
        many.qemu.vm.default_vcpus = 4.0;
        assert_eq!(size(&many, limits(Some(1.0), None).beside(true, false)).0, 4);
    }

    #[test]
    fn overheads_are_added_and_rounded_up_without_float_noise() {
        assert_eq!(size(&config(), limits(Some(0.8), Some(63))), (1, 192));
        assert_eq!(size(&config(), limits(Some(2.8), None)).0, 3);
        assert_eq!(size(&config(), limits(Some(2.9), None)).0, 4);
    }

    #[test]
    fn limit_above_the_host_gives_the_largest_vm() {
        assert_eq!(size(&config(), limits(Some(1e9), Some(1 << 40))), (8, 16_384));
    }

    #[test]
    fn small_limit_still_gives_a_guest_that_boots() {
        let mut config = config();
        config.qemu.vm.overhead_memory = 0;
        assert_eq!(size(&config, limits(None, Some(1))).1, MIN_GUEST_MEMORY_MIB);
    }

    #[test]
    fn default_vcpus_follows_upstreams_rules() {
        let mut config = config();
        for (configured, expected) in [(0.0, 1), (-1.0, 8), (1.5, 2), (100.0, 8)] {
            config.qemu.vm.default_vcpus = configured;
            assert_eq!(size(&config, limits(None, None)).0, expected, "{configured}");
        }
        config.qemu.vm.default_maxvcpus = 3;
        assert_eq!(size(&config, limits(None, None)).0, 3);
    }

    #[test]
    fn virtual_cpus_may_come_later_where_their_number_is_named() {
        let mut config = config();
        let sizes = |config: &HostConfig, limit| {
            let size = sandbox_size(config, limits(limit, None), HOST).unwrap();
            (size.vcpus, size.most_vcpus)
        };
        assert_eq!(sizes(&config, None), (1, 1));
        assert_eq!(sizes(&config, Some(3.0)), (4, 4));
        for (configured, most) in [(4, 4), (100, 8)] {
            config.qemu.vm.default_maxvcpus = configured;
            assert_eq!(sizes(&config, None), (1, most));
        }
        config.qemu.vm.default_maxvcpus = 2;
        assert_eq!(sizes(&config, Some(3.0)), (2, 2));
    }

    #[test]
    fn without_static_sizing_limits_do_not_count() {
        let mut config = config();
        config.runtime.static_sandbox_resource_mgmt = false;
        assert_eq!(size(&config, limits(Some(4.0), Some(4096))), (1, 2048));
    }

    #[test]
    fn default_above_the_ceiling_is_refused() {
        let mut config = config();
        config.qemu.vm.default_maxmemory = 1024;
        let error = sandbox_size(&config, limits(None, None), HOST).unwrap_err();
        assert!(error.to_string().contains("default_maxmemory"), "{error}");
    }

    #[test]
    fn spec_numbers_that_mean_unlimited_are_no_limit() {
        let none = WorkloadLimits::default();
        assert_eq!(WorkloadLimits::from_spec(Some(-1), Some(100_000), Some(-1)), none);
        assert_eq!(WorkloadLimits::from_spec(Some(0), None, Some(0)), none);
        assert_eq!(WorkloadLimits::from_spec(Some(150_000), Some(0), None).cpus, Some(1.5));
    }

    proptest! {
        #[test]
        fn size_is_always_within_bounds(
            quota in any::<Option<i64>>(), period in any::<Option<u64>>(), memory in any::<Option<i64>>(),
            cpus in 1u32..1024, mem in 256u32.., max in 1u32..1024, maxvcpus in any::<u32>(), overhead in any::<u32>(),
        ) {
            let mut config = config();
            config.qemu.vm.default_maxvcpus = maxvcpus;
            config.qemu.vm.overhead_memory = overhead;
            config.qemu.vm.default_memory = 256;
            let host = HostResources { cpus, memory_mib: mem, driver_max_vcpus: max };
            let size = sandbox_size(&config, WorkloadLimits::from_spec(quota, period, memory), host).unwrap();
            prop_assert!(size.vcpus >= 1 && size.vcpus <= size.most_vcpus);
            prop_assert!(size.most_vcpus <= cpus.min(max).min(MAX_VCPUS));
            prop_assert!(size.memory_mib >= MIN_GUEST_MEMORY_MIB && size.memory_mib <= size.most_memory_mib);
            prop_assert!(size.most_memory_mib <= mem);
            prop_assert_eq!((size.memory_mib % 2, size.most_memory_mib % 2), (0, 0));
        }
    }
}
