//! From the runtime's specification to what is done in this guest.
//!
//! The runtime has made the paths the guest's. What is left to do here is pure: split off what the
//! agent does itself, point at shared namespaces, and take away what has no meaning in the guest or
//! what libcontainer would trip over.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Capabilities, LinuxCapabilities, LinuxNamespaceType, LinuxResources, LinuxSeccomp,
    LinuxSeccompAction, Mount, Process, Spec,
};
use rustix::thread::ThreadNameSpaceType;

use crate::cgroup::{Cgroup, CgroupError, DeviceFilter, DeviceRuleError, DeviceRules};
use crate::environment::{Environment, EnvironmentError};
use crate::executor::{Command, InitExecutor};
use crate::namespaces::SharedNamespaces;
use crate::start_hooks::StartHooks;

/// Why a specification cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// A section is missing.
    #[error("the container's specification has no {0}")]
    Missing(&'static str),
    /// The root file system must be a path in the guest.
    #[error("the container's root {0:?} is not an absolute path")]
    RelativeRoot(PathBuf),
    /// As runc puts it.
    #[error("Cwd must be an absolute path")]
    RelativeCwd,
    /// The environment is malformed.
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    /// The cgroup path is malformed.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A device rule is malformed.
    #[error(transparent)]
    DeviceRule(#[from] DeviceRuleError),
    /// The devices of a container are made in a tmpfs.
    #[error(
        "something else than a tmpfs is mounted at /dev, in which a container's devices could not be made; mount it elsewhere (a privileged \
         container has the devices of its VM without it)"
    )]
    MountedDev,
    /// Init could not wait for its start.
    #[error(
        "the seccomp profile does not allow {0}, which a container's init needs until it is started; allow it"
    )]
    Seccomp(&'static str),
}

/// What init calls behind the container's filter: to say that it is ready, and to be told to start.
const NEEDED_CALLS: [&str; 2] = ["sendmsg", "accept4"];

/// A container's specification, taken apart.
#[derive(Debug)]
pub struct Plan {
    /// What libcontainer is given.
    pub spec: Spec,
    /// Limits, which the agent sets itself.
    pub resources: Option<LinuxResources>,
    /// The container's group.
    pub cgroup: Cgroup,
    /// Devices that the container may use when it is made.
    pub device_rules: DeviceRules,
    /// What enforces those, or others that come later.
    pub device_filter: DeviceFilter,
    /// Network settings by file below `/proc/sys`: the network namespace is the guest's, so that
    /// the agent applies them to it.
    pub network_sysctls: BTreeMap<String, String>,
    /// The root file system.
    pub rootfs: PathBuf,
    /// Whether init has a terminal.
    pub terminal: bool,
    /// What init runs.
    pub(crate) executor: InitExecutor,
    /// Init's user.
    pub uid: u32,
    /// What further processes of the container take from it.
    pub inherited: Inherited,
}

/// What a process that joins a container takes from the container's own specification.
#[derive(Debug, Clone)]
pub struct Inherited {
    /// Namespaces to join.
    pub(crate) namespaces: ThreadNameSpaceType,
    /// The container's system call filter.
    pub(crate) seccomp: Option<LinuxSeccomp>,
    /// Used when the process brings none of its own.
    pub(crate) capabilities: LinuxCapabilities,
}

impl Plan {
    /// Takes `spec` apart for container `id`.
    ///
    /// # Errors
    ///
    /// Fails when a part that a container cannot do without is missing or malformed.
    pub fn new(mut spec: Spec, id: &str, shared: &SharedNamespaces) -> Result<Self, SpecError> {
        let start_hooks = StartHooks::of(&spec, id);
        // The others name programs of the host, and these are run by our own part of init.
        spec.set_hooks(None);
        let rootfs = spec.root().as_ref().ok_or(SpecError::Missing("root"))?.path().clone();
        if !rootfs.is_absolute() {
            return Err(SpecError::RelativeRoot(rootfs));
        }
        refuse_mounted_dev(&spec)?;
        let mut process = spec.process().clone().ok_or(SpecError::Missing("process"))?;
        let environment = check_process(&process)?;
        let args = process.args().clone().unwrap_or_default();
        let uid = process.user().uid();
        let terminal = process.terminal().unwrap_or(false);
        adapt_process(&mut process, &environment);

        let mut linux = spec.linux().clone().ok_or(SpecError::Missing("linux section"))?;
        let cgroup = Cgroup::new(linux.cgroups_path().as_deref(), id)?;
        linux.set_cgroups_path(Some(cgroup.path()));
        let resources = linux.resources().clone();
        let devices = resources.as_ref().and_then(|resources| resources.devices().as_deref());
        let device_rules = DeviceRules::new(devices.unwrap_or_default())?;
        linux.set_resources(None);
        linux.set_intel_rdt(None).set_mount_label(None);
        let network_sysctls = split_sysctls(&mut linux);
        share_namespaces(&mut linux, shared);
        let joined = namespace(&linux, LinuxNamespaceType::Uts).is_some_and(|path| path.is_some());
        if joined {
            // The sandbox's own name stands.
            spec.set_hostname(None).set_domainname(None);
        }
        if let Some(call) = linux.seccomp().as_ref().and_then(forbidden_call) {
            return Err(SpecError::Seccomp(call));
        }
        let inherited = Inherited {
            namespaces: namespaces_to_join(&linux),
            seccomp: linux.seccomp().clone(),
            capabilities: process.capabilities().clone().unwrap_or_default(),
        };
        let command = Command::new(args, environment, uid);
        spec.set_process(Some(process)).set_linux(Some(linux));
        Ok(Self {
            spec,
            resources,
            cgroup,
            device_rules,
            device_filter: DeviceFilter::default(),
            network_sysctls,
            rootfs,
            terminal,
            executor: InitExecutor { hooks: start_hooks, command },
            uid,
            inherited,
        })
    }

    /// Whether the container joins a pid namespace of others.
    #[must_use]
    pub fn shares_pids(&self) -> bool {
        let linux = self.spec.linux().as_ref();
        let pids = linux.and_then(|linux| namespace(linux, LinuxNamespaceType::Pid));
        pids.is_some_and(|path| path.is_some())
    }
}

fn refuse_mounted_dev(spec: &Spec) -> Result<(), SpecError> {
    let at_dev =
        |mount: &&Mount| mount.destination().components().eq(Path::new("/dev").components());
    let mount = spec.mounts().iter().flatten().find(at_dev);
    match mount {
        Some(mount) if mount.typ().as_deref() != Some("tmpfs") => Err(SpecError::MountedDev),
        _ => Ok(()),
    }
}

/// A call that init needs and that the profile forbids. One that it allows for some arguments only
/// counts as allowed.
fn forbidden_call(profile: &LinuxSeccomp) -> Option<&'static str> {
    let allows = |action| {
        use LinuxSeccompAction::{ScmpActAllow, ScmpActLog, ScmpActNotify, ScmpActTrace};
        matches!(action, ScmpActAllow | ScmpActLog | ScmpActNotify | ScmpActTrace)
    };
    let rules = profile.syscalls().iter().flatten();
    NEEDED_CALLS.into_iter().find(|call| {
        let mut of_call = rules.clone().filter(|rule| rule.names().iter().any(|name| name == call));
        if allows(profile.default_action()) {
            of_call.any(|rule| !allows(rule.action()) && rule.args().is_none())
        } else {
            !of_call.any(|rule| allows(rule.action()))
        }
    })
}

/// What every process has to have.
pub(crate) fn check_process(process: &Process) -> Result<Environment, SpecError> {
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(SpecError::Missing("arguments for its process"));
    }
    if !process.cwd().is_absolute() {
        return Err(SpecError::RelativeCwd);
    }
    Ok(Environment::from_list(process.env().as_deref().unwrap_or_default())?)
}

fn adapt_process(process: &mut Process, environment: &Environment) {
    // Without a value libcontainer would look it up with the C library; see the crate's header.
    if environment.get("HOME").is_empty() {
        let mut env = process.env().clone().unwrap_or_default();
        env.push("HOME=/".to_owned());
        process.set_env(Some(env));
    }
    // For libcontainer the mere presence of `false` means that seccomp comes after capabilities.
    if process.no_new_privileges() == Some(false) {
        process.set_no_new_privileges(None);
    }
    process.set_capabilities(Some(complete(process.capabilities().as_ref())));
    // The guest has neither.
    process.set_apparmor_profile(None).set_selinux_label(None);
    let mut user = process.user().clone();
    if user.umask().is_none() {
        user.set_umask(Some(0o022));
    }
    process.set_user(user);
}

/// A set that is missing is an empty one; libcontainer would leave the agent's own.
pub(crate) fn complete(capabilities: Option<&LinuxCapabilities>) -> LinuxCapabilities {
    let set = |get: fn(&LinuxCapabilities) -> &Option<Capabilities>| {
        Some(capabilities.and_then(|all| get(all).clone()).unwrap_or_default())
    };
    let mut complete = LinuxCapabilities::default();
    complete
        .set_bounding(set(LinuxCapabilities::bounding))
        .set_effective(set(LinuxCapabilities::effective))
        .set_permitted(set(LinuxCapabilities::permitted))
        .set_inheritable(set(LinuxCapabilities::inheritable))
        .set_ambient(set(LinuxCapabilities::ambient));
    complete
}

fn split_sysctls(linux: &mut oci_spec::runtime::Linux) -> BTreeMap<String, String> {
    let mut network = BTreeMap::new();
    let mut rest = linux.sysctl().clone().unwrap_or_default();
    rest.retain(|name, value| {
        let file = name.replace('.', "/");
        let of_network = file.starts_with("net/") && !file.split('/').any(|part| part == "..");
        if of_network {
            network.insert(file, std::mem::take(value));
        }
        !of_network
    });
    linux.set_sysctl(Some(rest).filter(|rest| !rest.is_empty()));
    network
}

/// The network namespace is always the guest's.
fn share_namespaces(linux: &mut oci_spec::runtime::Linux, shared: &SharedNamespaces) {
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Network);
    for namespace in &mut namespaces {
        let path = match namespace.typ() {
            LinuxNamespaceType::Ipc => &shared.ipc,
            LinuxNamespaceType::Uts => &shared.uts,
            LinuxNamespaceType::Pid => &shared.pid,
            _ => &None,
        };
        // A path of the runtime's would be one of the host.
        namespace.set_path(path.clone());
    }
    linux.set_namespaces(Some(namespaces));
}

/// `Some(path)` if the container has such a namespace.
fn namespace(linux: &oci_spec::runtime::Linux, kind: LinuxNamespaceType) -> Option<Option<&Path>> {
    let namespaces = linux.namespaces().as_ref()?;
    let found = namespaces.iter().find(|namespace| namespace.typ() == kind)?;
    Some(found.path().as_deref())
}

fn namespaces_to_join(linux: &oci_spec::runtime::Linux) -> ThreadNameSpaceType {
    let mut all = ThreadNameSpaceType::empty();
    for namespace in linux.namespaces().iter().flatten() {
        all |= match namespace.typ() {
            LinuxNamespaceType::Mount => ThreadNameSpaceType::MOUNT,
            LinuxNamespaceType::Cgroup => ThreadNameSpaceType::CONTROL_GROUP,
            LinuxNamespaceType::Uts => ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME,
            LinuxNamespaceType::Ipc => ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION,
            LinuxNamespaceType::User => ThreadNameSpaceType::USER,
            LinuxNamespaceType::Pid => ThreadNameSpaceType::PROCESS_ID,
            LinuxNamespaceType::Time => ThreadNameSpaceType::TIME,
            LinuxNamespaceType::Network => ThreadNameSpaceType::empty(),
        };
    }
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(changes: &serde_json::Value) -> Spec {
        let mut spec = json!({
            "ociVersion": "1.0.2",
            "root": {"path": "/run/rootfs"},
            "hostname": "box",
            "process": {"args": ["sh"], "cwd": "/", "user": {"uid": 7, "gid": 7},
                "env": ["PATH=/bin"], "noNewPrivileges": false},
            "linux": {"cgroupsPath": "/default/c1",
                "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "uts"},
                    {"type": "network", "path": "/var/run/netns/x"}],
                "resources": {"memory": {"limit": 5}},
                "sysctl": {"net.ipv4.ip_forward": "1", "kernel.shmmax": "9"}}
        });
        for (pointer, value) in changes.as_object().unwrap() {
            *spec.pointer_mut(pointer).unwrap() = value.clone();
        }
        serde_json::from_value(spec).unwrap()
    }

    fn plan(changes: &serde_json::Value, shared: &SharedNamespaces) -> Result<Plan, SpecError> {
        Plan::new(spec(changes), "c1", shared)
    }

    #[test]
    fn new_splits_off_what_the_agent_does() {
        let plan = plan(&json!({}), &SharedNamespaces::default()).unwrap();
        assert_eq!(plan.uid, 7);
        assert!(plan.resources.is_some());
        assert_eq!(plan.network_sysctls["net/ipv4/ip_forward"], "1");
        let linux = plan.spec.linux().as_ref().unwrap();
        assert!(linux.resources().is_none());
        assert_eq!(linux.sysctl().as_ref().unwrap().len(), 1);
        assert!(namespace(linux, LinuxNamespaceType::Network).is_none());
        assert!(!plan.inherited.namespaces.contains(ThreadNameSpaceType::NETWORK));
        assert!(plan.inherited.namespaces.contains(ThreadNameSpaceType::PROCESS_ID));
    }

    #[test]
    fn profile_that_would_stop_init_before_its_command_is_refused() {
        let refusal =
            |profile: serde_json::Value| forbidden_call(&serde_json::from_value(profile).unwrap());
        let allows = |names: &[&str]| {
            json!({"defaultAction": "SCMP_ACT_ERRNO",
                "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}]})
        };
        assert_eq!(refusal(allows(&["read", "sendmsg", "accept4"])), None);
        assert_eq!(refusal(allows(&["read", "sendmsg"])), Some("accept4"));
        assert_eq!(refusal(allows(&["accept4"])), Some("sendmsg"));
        let denies = |call: &str| {
            json!({"defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": [call], "action": "SCMP_ACT_ERRNO"}]})
        };
        assert_eq!((refusal(denies("mkdir")), refusal(denies("sendmsg"))), (None, Some("sendmsg")));
    }

    #[test]
    fn only_a_tmpfs_may_be_mounted_at_dev() {
        let with = |kind: &str| {
            let mount = json!([{"destination": "/dev/", "type": kind, "source": "x"}]);
            let mut spec = spec(&json!({}));
            spec.set_mounts(serde_json::from_value(mount).unwrap());
            Plan::new(spec, "c1", &SharedNamespaces::default())
        };
        assert!(with("tmpfs").is_ok());
        let refusal = with("bind").unwrap_err().to_string();
        assert!(refusal.contains("mounted at /dev"), "{refusal}");
    }

    #[test]
    fn new_removes_what_libcontainer_trips_over() {
        let plan = plan(&json!({}), &SharedNamespaces::default()).unwrap();
        let process = plan.spec.process().as_ref().unwrap();
        assert_eq!(process.no_new_privileges(), None);
        let capabilities = process.capabilities().as_ref().unwrap();
        assert_eq!(capabilities.bounding().as_ref().map(|set| set.len()), Some(0));
        assert!(process.env().as_ref().unwrap().contains(&"HOME=/".to_owned()));
        assert_eq!(plan.spec.hostname().as_deref(), Some("box"));
    }

    #[test]
    fn new_in_shared_uts_namespace_has_no_name_of_its_own() {
        let shared = SharedNamespaces { uts: Some("/run/uts".into()), ..Default::default() };
        let plan = plan(&json!({}), &shared).unwrap();
        assert_eq!(plan.spec.hostname(), &None);
        let linux = plan.spec.linux().as_ref().unwrap();
        assert_eq!(namespace(linux, LinuxNamespaceType::Uts), Some(Some(Path::new("/run/uts"))));
        assert_eq!(namespace(linux, LinuxNamespaceType::Pid), Some(None));
    }

    #[test]
    fn new_bad_specification_is_refused() {
        let error = |changes: serde_json::Value| {
            plan(&changes, &SharedNamespaces::default()).unwrap_err().to_string()
        };
        assert!(error(json!({"/root/path": "rootfs"})).contains("absolute"));
        assert!(error(json!({"/process/args": []})).contains("arguments"));
        assert!(error(json!({"/process/cwd": "x"})).contains("Cwd"));
        assert!(error(json!({"/linux/cgroupsPath": "/../x"})).contains("cgroup path"));
    }
}
