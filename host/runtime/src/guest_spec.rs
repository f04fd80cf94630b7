//! The OCI spec as the guest is to see it: what belongs to the host is taken out, what cannot be
//! kept is refused.
//!
//! Pure: the only things it looks at are the spec and, for mounts and devices, what kind of file
//! the host has (through `kata-storage` and `spec_devices`).

mod limits;

use std::path::PathBuf;

use oci_spec::runtime::{
    Hooks, Linux, LinuxDevice, LinuxDeviceType, LinuxNamespace, LinuxNamespaceType, Process, Spec,
};
use thiserror::Error;

use crate::{ContainerRole, spec_devices};

pub use limits::resources_for_guest;

const USUAL_UMASK: u32 = 0o022;

/// What of a spec cannot be done in a VM, or not by this version.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SpecError {
    /// A section is missing that every container has.
    #[error("the bundle's config.json has no `{0}`; it is not a Linux container's")]
    Missing(&'static str),
    /// The container asks for the host's network.
    #[error(
        "the host's network cannot be shared with a VM; run without host networking, or under another runtime"
    )]
    HostNetwork,
    /// A hook that would have to be the host's and in the container's namespaces at a time.
    #[error(
        "the createContainer hook {} cannot be run: it is a program of the host, which cannot be in the namespaces of a container in a VM; use createRuntime (on the host) or startContainer (in the container)", _0.display()
    )]
    Hook(PathBuf),
    /// A host device.
    #[error(
        "the device {0} of the host cannot be given to a VM in this version; remove it from the container"
    )]
    Device(PathBuf),
    /// A block device for a container of a pod, under a hypervisor that takes disks at boot only.
    #[error(
        "the block device {0} cannot be given to a container of a pod with this hypervisor; choose qemu, clh or firecracker with `hypervisor_name` in \
         the section runtime"
    )]
    LateDevice(PathBuf),
    /// A block device that the host does not have.
    #[error(
        "the host has no block device {major}:{minor}, which the container is to have as {path}"
    )]
    NoDevice {
        /// Its path in the container.
        path: PathBuf,
        /// The device's major number on the host.
        major: i64,
        /// The device's minor number on the host.
        minor: i64,
    },
    /// A limit for a disk that only the host has: in the guest its number would be nobody's, or
    /// another one's.
    #[error(
        "a limit for the host's disk {major}:{minor} cannot be kept in a VM; remove the entry from {list} in the resources' `blockIO`"
    )]
    DiskLimit {
        /// The disk's major number on the host.
        major: i64,
        /// The disk's minor number on the host.
        minor: i64,
        /// The spec's name of the list.
        list: &'static str,
    },
    /// The same by the name of a file of version 2 of cgroups.
    #[error(
        "limits for disks of the host cannot be kept in a VM; remove {0} from the resources' `unified`"
    )]
    UnifiedDiskLimit(String),
    /// A path instead of a file's name.
    #[error("{0:?} in the resources' `unified` is no name of a cgroup's file; it has no slash")]
    UnifiedName(String),
    /// A limit of processor time that the agent's protocol has no word for, or that version 2 of
    /// cgroups, the guest's, does not know.
    #[error(
        "the limit `{0}` of the resources' `cpu` cannot be kept in a VM; remove it, and use quota, period, shares or cpus"
    )]
    CpuLimit(&'static str),
    /// A share of the host processors' caches and memory bandwidth.
    #[error(
        "`intelRdt` cannot be kept: cache and memory bandwidth of the host's processors are not divided among VMs; remove it"
    )]
    IntelRdt,
    /// A namespace that another container has, or the host.
    #[error(
        "the container is to join the {kind} namespace {}, but a VM has its own; put the containers that share it into one pod",
        path.display()
    )]
    JoinedNamespace {
        /// Its kind.
        kind: LinuxNamespaceType,
        /// The namespace's path on the host.
        path: PathBuf,
    },
    /// A user namespace of the host.
    #[error("user namespaces are not supported; the container is fenced by its VM instead")]
    UserNamespace,
}

/// Whether the guest is to apply the spec's seccomp profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GuestPolicy {
    pub(crate) drop_seccomp: bool,
    /// Whether its block devices are disks of the guest, too.
    pub(crate) disks: bool,
}

/// Takes away what of an engine's process is the host's alone: a container's first one, or one
/// more.
pub fn process_for_guest(process: &mut Process) {
    // Neither is known to the guest's kernel.
    process.set_apparmor_profile(None);
    process.set_selinux_label(None);
    // Other agents know no umask; the usual one is the guest's own.
    let mut user = process.user().clone();
    if user.umask() == Some(USUAL_UMASK) {
        user.set_umask(None);
        process.set_user(user);
    }
}

/// Turns the engine's spec into the guest's. The hooks that are the host's are somebody else's to
/// run. Mounts and root are left to the caller, who knows where they are.
pub(crate) fn for_guest(mut spec: Spec, id: &str, policy: GuestPolicy) -> Result<Spec, SpecError> {
    let hooks = spec.hooks().as_ref().map_or(Ok(None), hooks_for_guest)?;
    spec.set_hooks(hooks);
    if let Some(process) = spec.process_mut() {
        process_for_guest(process);
    }
    let mut linux = spec.linux().clone().ok_or(SpecError::Missing("linux"))?;
    linux.set_mount_label(None);
    // How mounts spread is decided on the host's side, for what is shared.
    linux.set_rootfs_propagation(None);
    if linux.intel_rdt().is_some() {
        return Err(SpecError::IntelRdt);
    }
    linux.set_cgroups_path(Some(guest_cgroup(linux.cgroups_path().as_ref(), id)));
    if policy.drop_seccomp {
        linux.set_seccomp(None);
    }
    guest_namespaces(&mut linux)?;
    guest_devices(&mut linux, policy.disks)?;
    let mut resources = linux.resources().clone();
    resources.as_mut().map_or(Ok(()), resources_for_guest)?;
    linux.set_resources(resources);
    spec.set_linux(Some(linux));
    Ok(spec)
}

/// Whether the container joins a process id namespace that others share.
pub(crate) fn shares_pid_namespace(spec: &Spec, role: &ContainerRole) -> bool {
    let joins = |linux: &Linux| {
        linux.namespaces().as_ref().is_some_and(|all| {
            all.iter().any(|one| one.typ() == LinuxNamespaceType::Pid && one.path().is_some())
        })
    };
    matches!(role, ContainerRole::PodMember(_)) && spec.linux().as_ref().is_some_and(joins)
}

/// The network namespace that the engine has prepared: `None` for a fresh and therefore empty one.
pub(crate) fn network_namespace(spec: &Spec) -> Result<Option<PathBuf>, SpecError> {
    let linux = spec.linux().as_ref().ok_or(SpecError::Missing("linux"))?;
    let namespaces = linux.namespaces().as_ref().ok_or(SpecError::Missing("linux.namespaces"))?;
    let network = namespaces.iter().find(|one| one.typ() == LinuxNamespaceType::Network);
    network.map(|one| one.path().clone()).ok_or(SpecError::HostNetwork)
}

/// Whether programs of the host are to be run that see the container's namespaces, of which the
/// host has only the network's.
pub(crate) fn has_host_hooks(spec: &Spec) -> bool {
    let Some(hooks) = spec.hooks() else { return false };
    let lists = [hooks.prestart(), hooks.create_runtime(), hooks.poststart()];
    lists.into_iter().flatten().any(|list| !list.is_empty())
}

/// For a container that is alone in its VM. A pod's containers find in their guest whom they join.
pub(crate) fn refuse_joined_namespaces(spec: &Spec) -> Result<(), SpecError> {
    let namespaces = spec.linux().iter().flat_map(|linux| linux.namespaces()).flatten();
    for namespace in namespaces.filter(|one| one.typ() != LinuxNamespaceType::Network) {
        if let Some(path) = namespace.path() {
            let kind = namespace.typ();
            return Err(SpecError::JoinedNamespace { kind, path: path.clone() });
        }
    }
    Ok(())
}

/// The hooks that run in the container; `None` when there is none.
fn hooks_for_guest(hooks: &Hooks) -> Result<Option<Hooks>, SpecError> {
    if let Some(hook) = hooks.create_container().iter().flatten().next() {
        return Err(SpecError::Hook(hook.path().clone()));
    }
    let of_start = hooks.start_container().clone().filter(|list| !list.is_empty());
    Ok(of_start.map(|list| {
        let mut inner = Hooks::default();
        inner.set_start_container(Some(list));
        inner
    }))
}

/// The guest has one network, its own; paths of the host's namespaces mean nothing there. Where a
/// container looks for its limits, it finds them.
fn guest_namespaces(linux: &mut Linux) -> Result<(), SpecError> {
    let namespaces = linux.namespaces().clone().unwrap_or_default();
    if namespaces.iter().any(|one| one.typ() == LinuxNamespaceType::User) {
        return Err(SpecError::UserNamespace);
    }
    let mut kept: Vec<LinuxNamespace> = namespaces
        .into_iter()
        .filter(|one| one.typ() != LinuxNamespaceType::Network)
        .map(|mut one| {
            one.set_path(None);
            one
        })
        .collect();
    // Engines on hosts with the first version of cgroups have no such namespace, since there a
    // container is shown its own cgroups anyway.
    if !kept.iter().any(|one| one.typ() == LinuxNamespaceType::Cgroup) {
        let mut own = LinuxNamespace::default();
        own.set_typ(LinuxNamespaceType::Cgroup);
        kept.push(own);
    }
    linux.set_namespaces(Some(kept));
    Ok(())
}

/// Devices that every guest has need no entry; others would name hardware of the host, but for
/// `disks`.
fn guest_devices(linux: &mut Linux, disks: bool) -> Result<(), SpecError> {
    let is_guests = |device: &LinuxDevice| {
        (disks && device.typ() == LinuxDeviceType::B) || spec_devices::is_guests(device)
    };
    let devices = spec_devices::asked_for(linux);
    let left_out = linux.devices().iter().flatten().count() - devices.len();
    if left_out > 0 {
        tracing::info!(
            left_out,
            "a privileged container has the devices of its VM, not the host's"
        );
    }
    if let Some(foreign) = devices.iter().find(|device| !is_guests(device)) {
        let path = foreign.path().clone();
        let is_block = foreign.typ() == LinuxDeviceType::B;
        return Err(if is_block { SpecError::LateDevice(path) } else { SpecError::Device(path) });
    }
    linux.set_devices(Some(devices));
    Ok(())
}

/// A plain path below the guest's cgroup root; systemd's `slice:prefix:name` means nothing there.
fn guest_cgroup(path: Option<&PathBuf>, id: &str) -> PathBuf {
    let is_plain = |path: &&PathBuf| {
        path.is_absolute()
            && path.to_str().is_some_and(|text| !text.contains(':') && !text.contains(".."))
    };
    path.filter(is_plain).cloned().unwrap_or_else(|| PathBuf::from(format!("/kata/{id}")))
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::UserBuilder;

    use super::*;

    fn spec(json: &str) -> Spec {
        serde_json::from_str(json).unwrap()
    }

    const KEEP: GuestPolicy = GuestPolicy { drop_seccomp: false, disks: false };

    /// Podman 5 tells the umask of every exec, too.
    #[test]
    fn process_keeps_only_an_unusual_umask() {
        let umask = |mask| {
            let mut process = Process::default();
            process.set_apparmor_profile(Some("unconfined".to_owned()));
            process.set_user(UserBuilder::default().umask(mask).build().unwrap());
            process_for_guest(&mut process);
            assert_eq!(process.apparmor_profile(), &None);
            process.user().umask()
        };
        assert_eq!((umask(0o022_u32), umask(0o077_u32)), (None, Some(0o077)));
    }

    #[test]
    fn hosts_namespaces_do_not_reach_the_guest() {
        let spec = spec(
            r#"{"ociVersion":"1.0.2","linux":{"cgroupsPath":"/default/c","namespaces":[
                {"type":"pid"},{"type":"network","path":"/run/netns/x"},{"type":"ipc","path":"/proc/1/ns/ipc"}]}}"#,
        );
        assert_eq!(network_namespace(&spec).unwrap(), Some(PathBuf::from("/run/netns/x")));
        let guest = for_guest(spec, "c", KEEP).unwrap();
        let linux = guest.linux().as_ref().unwrap();
        let left: Vec<_> = linux
            .namespaces()
            .as_ref()
            .unwrap()
            .iter()
            .map(|one| (one.typ(), one.path()))
            .collect();
        let each = [LinuxNamespaceType::Pid, LinuxNamespaceType::Ipc, LinuxNamespaceType::Cgroup];
        assert_eq!(left, each.map(|one| (one, &None)));
        assert_eq!(linux.cgroups_path().as_ref().unwrap(), &PathBuf::from("/default/c"));
    }

    #[test]
    fn hosts_network_is_refused() {
        let spec = spec(r#"{"ociVersion":"1.0.2","linux":{"namespaces":[{"type":"pid"}]}}"#);
        assert_eq!(network_namespace(&spec), Err(SpecError::HostNetwork));
    }

    #[test]
    fn hosts_devices_are_refused_and_the_guests_own_are_not() {
        let with = |path: &str| {
            spec(&format!(
                r#"{{"ociVersion":"1.0.2","linux":{{"devices":[{{"path":"{path}","type":"c","major":1,"minor":3}}]}}}}"#
            ))
        };
        assert!(for_guest(with("/dev/null"), "c", KEEP).is_ok());
        assert_eq!(
            for_guest(with("/dev/sda"), "c", KEEP),
            Err(SpecError::Device("/dev/sda".into()))
        );
        // A disk is a block device, and this is none.
        let disks = GuestPolicy { disks: true, ..KEEP };
        assert!(for_guest(with("/dev/sda"), "c", disks).is_err());
    }

    #[test]
    fn limits_of_processor_time_that_a_guest_does_not_know_are_refused() {
        let with = |resources: &str| {
            let linux = format!(r#"{{"ociVersion":"1.0.2","linux":{resources}}}"#);
            for_guest(spec(&linux), "c", KEEP).err()
        };
        let cpu = |cpu: &str| with(&format!(r#"{{"resources":{{"cpu":{{{cpu}}}}}}}"#));
        assert_eq!(cpu(r#""shares":5,"burst":0,"idle":0,"realtimePeriod":0"#), None);
        for (text, name) in [
            (r#""burst":5"#, "burst"),
            (r#""idle":1"#, "idle"),
            (r#""realtimeRuntime":5"#, "realtimeRuntime"),
            (r#""realtimePeriod":5"#, "realtimePeriod"),
        ] {
            assert_eq!(cpu(text), Some(SpecError::CpuLimit(name)));
        }
        assert_eq!(with(r#"{"intelRdt":{"closID":"c"}}"#), Some(SpecError::IntelRdt));
    }

    #[test]
    fn namespace_that_another_has_is_refused_by_its_kind() {
        let with = |namespaces: &str| {
            let linux =
                format!(r#"{{"ociVersion":"1.0.2","linux":{{"namespaces":[{namespaces}]}}}}"#);
            refuse_joined_namespaces(&spec(&linux)).map_err(|refusal| refusal.to_string())
        };
        let networks = r#"{"type":"network","path":"/run/netns/n"},{"type":"pid"}"#;
        assert_eq!(with(networks), Ok(()));
        for (kind, told) in [("pid", "pid"), ("ipc", "ipc"), ("uts", "uts"), ("mount", "mnt")] {
            let refusal = with(&format!(r#"{{"type":"{kind}","path":"/proc/7/ns/x"}}"#));
            let begins = format!("the container is to join the {told} namespace /proc/7/ns/x");
            assert!(refusal.as_ref().unwrap_err().starts_with(&begins), "{refusal:?}");
        }
    }

    #[test]
    fn guest_gets_hooks_of_the_start_and_no_others() {
        let with = |list: &str| {
            spec(&format!(
                r#"{{"ociVersion":"1.0.2","hooks":{{"{list}":[{{"path":"/bin/h"}}]}},"linux":{{}}}}"#
            ))
        };
        for list in ["prestart", "createRuntime", "poststart", "poststop"] {
            assert!(for_guest(with(list), "c", KEEP).unwrap().hooks().is_none());
        }
        let guests = for_guest(with("startContainer"), "c", KEEP).unwrap();
        let hooks = guests.hooks().as_ref().unwrap();
        assert_eq!(hooks.start_container().as_ref().unwrap()[0].path(), &PathBuf::from("/bin/h"));
        let refusal = SpecError::Hook("/bin/h".into());
        assert_eq!(for_guest(with("createContainer"), "c", KEEP), Err(refusal));
        assert!(has_host_hooks(&with("createRuntime")) && !has_host_hooks(&with("poststop")));
    }

    #[test]
    fn systemd_cgroup_becomes_a_plain_path() {
        assert_eq!(
            guest_cgroup(Some(&PathBuf::from("a.slice:cri:c")), "c"),
            PathBuf::from("/kata/c")
        );
        assert_eq!(guest_cgroup(Some(&PathBuf::from("/../c")), "c"), PathBuf::from("/kata/c"));
    }
}
