//! What containers may ask for, as the runtime specification's features document says it.

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    ApparmorBuilder, CgroupBuilder, Features, FeaturesBuilder, IDMapBuilder, IntelRdtBuilder,
    LinuxFeatureBuilder, LinuxNamespaceType, MountExtensionsBuilder, SeccompBuilder,
    SelinuxBuilder, VERSION as SPEC_VERSION,
};

/// Mount options that the guest understands, besides those of file systems.
const MOUNT_OPTIONS: [&str; 28] = [
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "mand",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "nomand",
    "norelatime",
    "nosuid",
    "private",
    "rbind",
    "relatime",
    "remount",
    "ro",
    "rprivate",
    "rshared",
    "rslave",
    "rw",
    "suid",
    "sync",
    "strictatime",
];

/// Hooks that are run.
const HOOKS: [&str; 5] = ["prestart", "createRuntime", "startContainer", "poststart", "poststop"];

/// What containers may ask for. What is switched off here, containerd does not ask for or refuses
/// itself.
pub fn features() -> Result<Features, OciSpecError> {
    use LinuxNamespaceType::{Cgroup, Ipc, Mount, Network, Pid, Uts};
    let linux = LinuxFeatureBuilder::default()
        .namespaces([Cgroup, Ipc, Mount, Network, Pid, Uts])
        .cgroup(CgroupBuilder::default().v1(true).v2(true).build()?)
        .seccomp(SeccompBuilder::default().enabled(true).build()?)
        // Of these the guest's kernel has none.
        .apparmor(ApparmorBuilder::default().enabled(false).build()?)
        .selinux(SelinuxBuilder::default().enabled(false).build()?)
        .intel_rdt(IntelRdtBuilder::default().enabled(false).build()?)
        .mount_extensions(
            MountExtensionsBuilder::default()
                .idmap(IDMapBuilder::default().enabled(false).build()?)
                .build()?,
        )
        .build()?;
    let features = FeaturesBuilder::default()
        .oci_version_min("1.0.0")
        .oci_version_max(SPEC_VERSION)
        .hooks(HOOKS.map(str::to_owned))
        .mount_options(MOUNT_OPTIONS.map(str::to_owned))
        .linux(linux)
        .build()?;
    Ok(features)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_say_no_to_what_would_not_work() {
        let json = serde_json::to_value(features().unwrap()).unwrap();
        assert_eq!(json["linux"]["mountExtensions"]["idmap"]["enabled"], false);
        assert_eq!(json["linux"]["seccomp"]["enabled"], true);
        // With "rro" containerd would promise recursively read-only mounts.
        assert!(!json["mountOptions"].as_array().unwrap().iter().any(|option| option == "rro"));
        assert_eq!(json["ociVersionMin"], "1.0.0");
    }
}
