//! Which of an OCI spec's mounts the guest makes itself, and which are files of the host.

use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};

use crate::source::{SharedMemory, Source, look_at};
use crate::{StorageError, empty_dir};

/// File systems that the guest's kernel makes out of nothing.
const GUEST_TYPES: [&str; 16] = [
    "proc",
    "sysfs",
    "tmpfs",
    "ramfs",
    "devpts",
    "mqueue",
    "cgroup",
    "cgroup2",
    "securityfs",
    "debugfs",
    "tracefs",
    "bpf",
    "configfs",
    "fusectl",
    "hugetlbfs",
    "devtmpfs",
];

/// How mounts spread is decided on the host's side; in the guest the words would refer to the
/// share.
const PROPAGATION: [&str; 8] =
    ["shared", "rshared", "slave", "rslave", "private", "rprivate", "unbindable", "runbindable"];

/// What holds for a mount whatever its file system is.
const FLAGS: [&str; 8] = ["ro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec"];

/// A spec's mounts, sorted.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GuestMounts {
    /// All mounts in the spec's order, as the guest is to make them. Where a [`HostBind`] points,
    /// `source` is to be replaced by the guest's path of the shared file
    /// ([`crate::Share::add_mounts`] does both).
    pub spec_mounts: Vec<Mount>,
    /// The mounts whose source is the host's to share.
    pub host_binds: Vec<HostBind>,
    /// The mounts that the host makes of directories of its own, and shares.
    pub host_overlays: Vec<HostOverlay>,
    /// What the guest has to have before it makes the mounts.
    pub shared_memory: Vec<SharedMemory>,
}

/// A directory or file of the host that a container is to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostBind {
    /// Which of the spec's mounts it is, from 0.
    pub index: usize,
    /// The directory or file, absolute, its links resolved.
    pub source: PathBuf,
    /// Where the container sees it. For messages: nothing on the host acts on it.
    pub destination: PathBuf,
    /// Nothing can be changed through it, nor through any mount below it. Enforced on the host. Not
    /// so the pod's own emptyDir, to which another of its containers may write: both have the same,
    /// and the guest keeps the one from writing that is only to read.
    pub readonly: bool,
    /// What is mounted below the source comes along.
    pub recursive: bool,
    /// What is mounted below the source later comes along too. Never with `readonly`, since a later
    /// mount would be writable.
    pub follows_host: bool,
}

/// An overlay of directories of the host, as Podman asks for with `--volume a:b:O` and
/// `--mount type=image`. No other container has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostOverlay {
    /// Which of the spec's mounts it is, from 0.
    pub index: usize,
    /// What the host's kernel takes: the layers, and flags.
    pub options: Vec<String>,
}

/// Sorts a spec's mounts. Relative sources are taken from `bundle`. Changes nothing; looks at the
/// sources of bind mounts only.
pub fn plan_mounts(spec: &Spec, bundle: &Path) -> Result<GuestMounts, StorageError> {
    let mut plan = GuestMounts::default();
    let pod = empty_dir::pod_of(spec.annotations().as_ref());
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let options: &[String] = mount.options().as_deref().unwrap_or_default();
        refuse_id_mapping(mount, options)?;
        let is_bind = mount.typ().as_deref() == Some("bind") || has(options, &["bind", "rbind"]);
        if is_bind {
            plan_bind(&mut plan, index, mount, options, bundle, pod)?;
        } else if mount.typ().as_deref() == Some("overlay") {
            plan_overlay(&mut plan, index, mount, options)?;
        } else {
            plan.spec_mounts.push(own_mount(mount, options)?);
        }
    }
    Ok(plan)
}

/// Has the mount with this number be of what the guest has at `path`.
pub fn point(mounts: &mut [Mount], index: usize, path: PathBuf) {
    if let Some(mount) = mounts.get_mut(index) {
        mount.set_source(Some(path));
    }
}

fn refuse_id_mapping(mount: &Mount, options: &[String]) -> Result<(), StorageError> {
    let is_mapped =
        |mappings: &Option<Vec<_>>| mappings.as_ref().is_some_and(|list| !list.is_empty());
    if is_mapped(mount.uid_mappings())
        || is_mapped(mount.gid_mappings())
        || has(options, &["idmap", "ridmap"])
    {
        return Err(unsupported(
            mount,
            "it maps user ids, which the share cannot; leave the mapping out",
        ));
    }
    Ok(())
}

fn plan_bind(
    plan: &mut GuestMounts,
    index: usize,
    mount: &Mount,
    options: &[String],
    bundle: &Path,
    pod: Option<&str>,
) -> Result<(), StorageError> {
    let Some(source) = mount.source() else {
        return Err(unsupported(mount, "it is a bind mount without a source"));
    };
    let mut in_guest = mount.clone();
    in_guest.set_typ(Some("bind".to_owned()));
    in_guest.set_options(Some(guest_options(options)));
    let found = look_at(&bundle.join(source), mount.destination()).map_err(|error| {
        StorageError::NoSource {
            origin: source.clone(),
            destination: mount.destination().clone(),
            reason: system_words(&error),
        }
    })?;
    match found {
        Source::Host(source) => {
            let own = pod.is_some_and(|pod| empty_dir::is_of_pod(&source, pod));
            let readonly = is_readonly(options) && !own;
            in_guest.set_source(None);
            plan.host_binds.push(HostBind {
                index,
                source,
                destination: mount.destination().clone(),
                readonly,
                recursive: !has(options, &["bind"]) || has(options, &["rbind"]),
                // Without a word on it, a container's mounts are slaves of the host's.
                follows_host: !readonly
                    && !has(options, &["private", "rprivate", "unbindable", "runbindable"]),
            });
        }
        Source::Guest(path) => {
            in_guest.set_source(Some(path));
        }
        Source::SharedMemory(memory) => {
            in_guest.set_source(Some(memory.guest_path.clone()));
            plan.shared_memory.push(memory);
        }
        Source::Refused(reason) => return Err(unsupported(mount, &reason)),
    }
    plan.spec_mounts.push(in_guest);
    Ok(())
}

fn plan_overlay(
    plan: &mut GuestMounts,
    index: usize,
    mount: &Mount,
    options: &[String],
) -> Result<(), StorageError> {
    let is_odd = |option: &&String| {
        (option.starts_with("lowerdir=") && option.contains('\\'))
            || ["lowerdir+=", "datadir+="].iter().any(|key| option.starts_with(key))
            || [",lowerdir", ",datadir"].iter().any(|key| option.contains(key))
    };
    if let Some(odd) = options.iter().find(is_odd) {
        let reason = format!(
            "its layers are told in a way that is not understood (`{odd}`); name them in one `lowerdir`, without an escape"
        );
        return Err(unsupported(mount, &reason));
    }
    for layer in lower_layers(options) {
        // What is not there, the kernel will say.
        let found = look_at(layer, mount.destination()).unwrap_or(Source::Host(layer.to_owned()));
        if !matches!(found, Source::Host(_)) {
            let reason = format!(
                "its layer {} is a face of the host's kernel, which a guest has itself",
                layer.display()
            );
            return Err(unsupported(mount, &reason));
        }
    }
    let options = guest_options(options);
    let is_flag = |option: &&String| FLAGS.contains(&option.as_str());
    let for_guest = options.iter().filter(is_flag).cloned();
    let mut in_guest = mount.clone();
    in_guest.set_typ(Some("bind".to_owned()));
    in_guest.set_source(None);
    in_guest.set_options(Some(["bind".to_owned()].into_iter().chain(for_guest).collect()));
    plan.host_overlays.push(HostOverlay { index, options });
    plan.spec_mounts.push(in_guest);
    Ok(())
}

/// The directories that an overlay with these options shows, and does not change. None of a path
/// with an escape in it.
pub fn lower_layers(options: &[String]) -> impl Iterator<Item = &Path> {
    let lower = options.iter().filter_map(|option| option.strip_prefix("lowerdir="));
    let plain = lower.filter(|paths| !paths.contains('\\'));
    plain.flat_map(|paths| paths.split(':').map(Path::new))
}

/// A mount that the guest makes by itself.
fn own_mount(mount: &Mount, options: &[String]) -> Result<Mount, StorageError> {
    let fstype = mount.typ().as_deref().unwrap_or_default();
    if !GUEST_TYPES.contains(&fstype) {
        let reason = format!(
            "its file system (type `{fstype}`) is the host's; mount it on the host and bind its directory"
        );
        return Err(unsupported(mount, &reason));
    }
    let mut in_guest = mount.clone();
    // The spec's word for both versions; the guest has version 2.
    if fstype == "cgroup2" {
        in_guest.set_typ(Some("cgroup".to_owned()));
    }
    if mount.options().is_some() {
        in_guest.set_options(Some(guest_options(options)));
    }
    Ok(in_guest)
}

/// The options that mean in the guest what they mean on the host.
fn guest_options(options: &[String]) -> Vec<String> {
    let keep = |option: &&String| !PROPAGATION.contains(&option.as_str());
    let translate =
        |option: &String| if option == "rro" { "ro".to_owned() } else { option.clone() };
    options.iter().filter(keep).map(translate).collect()
}

/// The last one of `ro` and `rw` wins.
fn is_readonly(options: &[String]) -> bool {
    let last = options.iter().rev().find(|option| matches!(option.as_str(), "ro" | "rro" | "rw"));
    last.is_some_and(|option| option != "rw")
}

fn has(options: &[String], any: &[&str]) -> bool {
    options.iter().any(|option| any.contains(&option.as_str()))
}

fn unsupported(mount: &Mount, reason: &str) -> StorageError {
    StorageError::Unsupported {
        destination: mount.destination().clone(),
        reason: reason.to_owned(),
    }
}

/// What went wrong as Go programs print it: `no such file or directory`.
fn system_words(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_ascii_lowercase()
}

#[cfg(test)]
mod tests;
