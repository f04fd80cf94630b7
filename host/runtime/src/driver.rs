//! The driver that a configuration chooses, with its settings.

use std::path::Path;

use kata_cloud_hypervisor::{CloudHypervisor, CloudHypervisorSettings};
use kata_config::{HostConfig, HypervisorName, MachineType};
use kata_hypervisor::Hypervisor;
use kata_krun::{Krun, KrunSettings};
use kata_qemu::{AcceleratorChoice, MachineChoice, Qemu, QemuSettings};

/// What the drivers trace begins with one of these.
pub(crate) const TARGETS: [&str; 3] = ["kata_cloud_hypervisor", "kata_krun", "kata_qemu"];

/// The driver that `config` chooses.
pub(crate) fn of(config: &HostConfig, prefix: &Path) -> Box<dyn Hypervisor> {
    match config.runtime.hypervisor_name {
        HypervisorName::CloudHypervisor => Box::new(CloudHypervisor::new(clh_settings(config))),
        HypervisorName::Krun => Box::new(Krun::new(krun_settings(config, prefix))),
        HypervisorName::Qemu | HypervisorName::Auto => Box::new(Qemu::new(qemu_settings(config))),
    }
}

/// Every driver that there is, for an installation under `prefix` without configuration, in the order of their names.
#[must_use]
pub fn all(prefix: &Path) -> Vec<Box<dyn Hypervisor>> {
    let mut config = HostConfig::defaults(prefix);
    let mut with = |name| {
        config.runtime.hypervisor_name = name;
        of(&config, prefix)
    };
    vec![
        with(HypervisorName::CloudHypervisor),
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
        seccomp_sandbox: qemu.seccomp_sandbox.clone(),
        entropy_source: qemu.entropy_source.clone(),
        accelerator: AcceleratorChoice::Auto,
        dial_again: config.agent.dial_timeout(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_choice_of_krun_gets_it() {
        let mut config = HostConfig::defaults(Path::new("/usr"));
        assert_eq!(of(&config, Path::new("/usr")).name(), "qemu");
        config.runtime.hypervisor_name = HypervisorName::Krun;
        assert_eq!(of(&config, Path::new("/usr")).name(), "krun");
    }

    #[test]
    fn network_devices_that_come_late_are_not_for_krun() {
        let mut config = HostConfig::defaults(Path::new("/usr"));
        for (name, late) in [
            (HypervisorName::Qemu, true),
            (HypervisorName::Krun, false),
            (HypervisorName::CloudHypervisor, true),
        ] {
            config.runtime.hypervisor_name = name;
            let can = of(&config, Path::new("/usr")).capabilities();
            assert_eq!(can.hot_plug, late, "{name:?}");
        }
    }
}
