//! `hypervisor_name = "auto"`: krun, which starts sooner and is installed already, where it can do
//! what the sandbox needs; else QEMU.

use std::path::Path;

use kata_config::{HostConfig, HypervisorName, InternetworkingModel};
use kata_hypervisor::Outcome;
use kata_network::{Namespace, scan_blocking};
use kata_storage::BlockRoot;
use oci_spec::runtime::Spec;

use crate::{ContainerRole, FirstContainer, driver, guest_spec, role_of};

/// Puts the name of a hypervisor in place of "auto": QEMU's for no sandbox in particular.
pub(crate) fn settle(config: &mut HostConfig, first: Option<FirstContainer<'_>>, prefix: &Path) {
    if config.runtime.hypervisor_name != HypervisorName::Auto {
        return;
    }
    let Some(first) = first else {
        config.runtime.hypervisor_name = HypervisorName::Qemu;
        return;
    };
    let obstacle = obstacle(config, first, prefix);
    match &obstacle {
        None => tracing::info!("the hypervisor is krun"),
        Some(obstacle) => tracing::info!("the hypervisor is QEMU, for {obstacle}"),
    }
    let name = if obstacle.is_none() { HypervisorName::Krun } else { HypervisorName::Qemu };
    config.runtime.hypervisor_name = name;
}

/// Whether there are sandboxes that krun would get on this host.
pub(crate) fn krun_runs_some(config: &HostConfig, prefix: &Path) -> bool {
    let kernel = &config.krun.vm.kernel;
    let mut config = config.clone();
    config.runtime.hypervisor_name = HypervisorName::Krun;
    let found = driver::of(&config, prefix).check(kernel);
    !config.asks_for_qemu(prefix) && found.iter().all(|one| one.outcome != Outcome::Failed)
}

/// What speaks against krun, in words that fit into a sentence.
fn obstacle(config: &HostConfig, first: FirstContainer<'_>, prefix: &Path) -> Option<String> {
    if config.asks_for_qemu(prefix) {
        return Some(
            "the section [hypervisor.qemu] has settings that [hypervisor.krun] has not".to_owned(),
        );
    }
    kata_krun::obstacle(&config.krun.vm.kernel)
        .or_else(|| disk_obstacle(first))
        .or_else(|| network_obstacle(config, first.spec))
}

/// krun takes disks at boot only, and where the root file system of a pod's first container is on
/// one, those of the others are, too.
fn disk_obstacle(FirstContainer { spec, rootfs_mounts }: FirstContainer<'_>) -> Option<String> {
    // Whatever is wrong with either is told when the container is planned.
    if role_of(spec.annotations().as_ref()).ok()? == ContainerRole::Single {
        return None;
    }
    let root = BlockRoot::of(rootfs_mounts).ok().flatten()?;
    Some(format!(
        "root file systems of the pod are on disks, the first on {}",
        root.source.display()
    ))
}

/// Engines fill a namespace before or after they have the sandbox made, and krun takes no network
/// devices after. One that is empty may stay so, but nothing tells.
fn network_obstacle(config: &HostConfig, spec: &Spec) -> Option<String> {
    if config.runtime.internetworking_model == InternetworkingModel::None {
        return None;
    }
    // Whatever is wrong with it is told when the sandbox is planned.
    let path = guest_spec::network_namespace(spec).ok().flatten();
    let there = path.and_then(|path| scan_blocking(&Namespace::open(&path).ok()?).ok());
    let is_filled = there.is_some_and(|there| kata_network::in_use(&there).next().is_some());
    (!is_filled).then(|| "the network namespace is empty and may be filled later".to_owned())
}

#[cfg(test)]
mod tests {
    use kata_storage::RootfsMount;

    use super::*;

    fn disk_obstacle_of(kind: &str, rootfs_mounts: &[RootfsMount]) -> Option<String> {
        let annotations = format!(r#"{{"io.kubernetes.cri.container-type":"{kind}"}}"#);
        let text = format!(r#"{{"ociVersion":"1.0.2","annotations":{annotations}}}"#);
        let spec: Spec = serde_json::from_str(&text).unwrap();
        disk_obstacle(FirstContainer { spec: &spec, rootfs_mounts })
    }

    #[test]
    fn disks_of_a_pod_speak_against_krun() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mount = |option: &str| RootfsMount {
            fstype: "ext4".to_owned(),
            source: file.path().display().to_string(),
            target: String::new(),
            options: vec![option.to_owned()],
        };
        assert_eq!(disk_obstacle_of("sandbox", &[mount("ro")]), None);
        assert!(disk_obstacle_of("sandbox", &[mount("loop")]).unwrap().contains("on disks"));
        assert_eq!(disk_obstacle_of("", &[mount("loop")]), None);
    }
}
