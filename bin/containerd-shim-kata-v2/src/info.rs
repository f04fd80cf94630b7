//! `-info`: what this runtime can do, for containerd 2.

use std::io::{self, IsTerminal, Read};

use anyhow::Context;
use kata_shim_api::protobuf::Message;
use kata_shim_api::{Any, features_any, runtime_info};
use oci_spec::runtime::{
    ApparmorBuilder, CgroupBuilder, Features, FeaturesBuilder, IDMapBuilder, IntelRdtBuilder,
    LinuxFeatureBuilder, LinuxNamespaceType, MountExtensionsBuilder, SeccompBuilder,
    SelinuxBuilder, VERSION as SPEC_VERSION,
};

use crate::{RUNTIME, VERSION};

/// More than any engine's options need.
const LARGEST_INPUT: u64 = 4 << 20;

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

/// Returns what is to be printed.
pub(crate) fn run() -> anyhow::Result<Vec<u8>> {
    let mut input = Vec::new();
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        stdin
            .lock()
            .take(LARGEST_INPUT)
            .read_to_end(&mut input)
            .context("cannot read standard input")?;
    }
    let options = if input.is_empty() {
        None
    } else {
        Some(
            Any::parse_from_bytes(&input)
                .context("cannot understand the options on standard input")?,
        )
    };
    let features = serde_json::to_vec(&features()?).context("cannot write the features")?;
    runtime_info(RUNTIME, VERSION, features_any(features), options)
        .write_to_bytes()
        .context("cannot write the answer")
}

/// What containers may ask for. What is switched off here, containerd does not ask for or refuses itself.
fn features() -> anyhow::Result<Features> {
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
