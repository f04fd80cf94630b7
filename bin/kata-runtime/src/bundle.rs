//! A bundle: the directory with `config.json`, and what the command line has to know of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use kata_host_runtime::role_of;
use kata_shim_api::stand_in::{NetworkNamespace, Shown};
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Mount, Spec};

/// Mounts with files that whoever looks from the host does not reach.
const IN_GUEST: [&str; 3] = ["tmpfs", "ramfs", "overlay"];

/// A bundle that was read.
#[derive(Debug)]
pub(crate) struct Bundle {
    /// Absolute, without links.
    pub(crate) path: PathBuf,
    pub(crate) spec: Spec,
}

impl Bundle {
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let path = path
            .canonicalize()
            .with_context(|| format!("there is no bundle at {}", path.display()))?;
        let file = path.join("config.json");
        if !file.exists() {
            bail!("JSON specification file {} not found", file.display());
        }
        let spec =
            Spec::load(&file).with_context(|| format!("cannot understand {}", file.display()))?;
        Ok(Self { path, spec })
    }

    /// Whether the first process wants a terminal.
    pub(crate) fn terminal(&self) -> bool {
        self.spec.process().as_ref().and_then(|process| process.terminal()).unwrap_or_default()
    }

    /// The cgroup on the host; empty if the spec has none.
    pub(crate) fn cgroup(&self) -> String {
        let path = self.spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_ref());
        path.map(|path| path.display().to_string()).unwrap_or_default()
    }

    fn namespaces(&self) -> impl Iterator<Item = &LinuxNamespace> {
        let linux = self.spec.linux().as_ref();
        linux.and_then(|linux| linux.namespaces().as_ref()).into_iter().flatten()
    }

    /// Where the container is on the network. That the host's own cannot be is said by whoever
    /// plans the VM.
    pub(crate) fn network(&self) -> NetworkNamespace {
        match self.namespaces().find(|one| one.typ() == LinuxNamespaceType::Network) {
            None => NetworkNamespace::Callers,
            Some(one) => match one.path() {
                None => NetworkNamespace::New,
                Some(path) if path.as_os_str().is_empty() => NetworkNamespace::New,
                Some(path) => NetworkNamespace::At(path.clone()),
            },
        }
    }

    /// The sandbox that container `id` belongs to, by the id of its first container: its own,
    /// unless annotations name another.
    pub(crate) fn sandbox(&self, id: &str) -> Result<String> {
        Ok(role_of(self.spec.annotations().as_ref())?.sandbox_of(id).to_owned())
    }

    /// Whether the container is to be in namespaces of another's: named by a path, and that of the
    /// network by a process, for an engine may have made it for this one alone.
    pub(crate) fn joins_another(&self) -> bool {
        let is_joined = |one: &LinuxNamespace| match (one.typ(), one.path()) {
            (_, None) => false,
            (LinuxNamespaceType::Network, Some(path)) => path.starts_with("/proc"),
            (_, Some(_)) => true,
        };
        self.namespaces().any(is_joined)
    }

    pub(crate) fn annotations(&self) -> BTreeMap<String, String> {
        self.spec.annotations().clone().unwrap_or_default().into_iter().collect()
    }

    /// The directories of the host that the sandbox's owner has to see: the root file system, and
    /// layers of overlays, which may be mounted where mounts do not come by themselves.
    pub(crate) fn layers(&self) -> Vec<PathBuf> {
        let overlays = self.spec.mounts().iter().flatten();
        let overlays = overlays.filter(|mount| mount.typ().as_deref() == Some("overlay"));
        let options = overlays.filter_map(|mount| mount.options().as_deref());
        let lower = options.flat_map(kata_storage::lower_layers);
        // What is not there, the kernel will say.
        let lower = lower.filter(|path| path.is_dir()).map(Path::to_owned);
        [self.rootfs()].into_iter().chain(lower).collect()
    }

    /// The root file system on the host.
    pub(crate) fn rootfs(&self) -> PathBuf {
        let path = self.spec.root().as_ref().map(|root| root.path().clone());
        self.path.join(path.unwrap_or_else(|| "rootfs".into()))
    }

    /// What whoever enters the stand-in's mount namespace sees: the root file system, and the
    /// directories and files of the host in it.
    pub(crate) fn shown(&self) -> Vec<Shown> {
        let root = self.spec.root().as_ref();
        let root = Shown {
            source: Some(self.rootfs()),
            target: "/".into(),
            readonly: root.and_then(|root| root.readonly()).unwrap_or_default(),
        };
        let mounts = self.spec.mounts().iter().flatten();
        let mut others: Vec<Shown> = mounts.filter_map(|mount| self.shown_of(mount)).collect();
        // What is mounted below what is empty would have no place.
        let targets: Vec<PathBuf> = others.iter().map(|shown| shown.target.clone()).collect();
        let is_below = |one: &PathBuf, above: &PathBuf| one != above && one.starts_with(above);
        others.retain(|shown| {
            shown.source.is_some() || !targets.iter().any(|one| is_below(one, &shown.target))
        });
        [root].into_iter().chain(others).collect()
    }

    fn shown_of(&self, mount: &Mount) -> Option<Shown> {
        let options = mount.options().as_deref().unwrap_or_default();
        let has = |name: &str| options.iter().any(|option| option == name);
        let target = mount.destination().clone();
        let kind = mount.typ().as_deref().unwrap_or_default();
        if kind == "bind" || has("bind") || has("rbind") {
            let source = Some(self.path.join(mount.source().as_ref()?));
            return Some(Shown { source, target, readonly: has("ro") });
        }
        let hidden = Shown { source: None, target, readonly: true };
        IN_GUEST.contains(&kind).then_some(hidden)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(spec: serde_json::Value) -> Bundle {
        Bundle { path: "/b".into(), spec: serde_json::from_value(spec).unwrap() }
    }

    #[test]
    fn memory_of_the_guests_is_hidden_unless_something_is_mounted_in_it() {
        let mount = |destination: &str, kind: &str, options: &[&str]| serde_json::json!({ "destination": destination, "type": kind, "source": "/s", "options": options });
        let bundle = bundle(serde_json::json!({ "ociVersion": "1.0.2", "mounts": [
            mount("/proc", "proc", &[]),
            mount("/dev", "tmpfs", &[]),
            mount("/dev/shm", "bind", &["rbind"]),
            mount("/tmp", "tmpfs", &[]),
            mount("/odd", "tmpfs", &["rbind", "ro"]),
        ]}));
        let shown =
            |target: &str| bundle.shown().into_iter().find(|one| one.target == Path::new(target));
        assert_eq!(shown("/proc").or(shown("/dev")), None);
        assert_eq!(shown("/dev/shm").unwrap().source, Some("/s".into()));
        assert_eq!(shown("/tmp").unwrap().source, None);
        assert_eq!(shown("/odd").unwrap().source, Some("/s".into()));
    }

    #[test]
    fn namespace_of_a_process_or_with_a_path_is_anothers() {
        let joins = |kind: &str, path: Option<&str>| {
            let namespace = match path {
                Some(path) => serde_json::json!({ "type": kind, "path": path }),
                None => serde_json::json!({ "type": kind }),
            };
            let linux = serde_json::json!({ "namespaces": [{ "type": "mount" }, namespace] });
            bundle(serde_json::json!({ "ociVersion": "1.0.2", "linux": linux })).joins_another()
        };
        assert!(joins("ipc", Some("/proc/7/ns/ipc")) && joins("network", Some("/proc/7/ns/net")));
        assert!(!joins("network", Some("/run/netns/n")) && !joins("network", None));
        assert!(!joins("pid", None));
    }

    #[test]
    fn a_sandbox_that_is_named_by_no_id_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let sandbox = |named: &str| {
            let annotations = serde_json::json!({ "io.kubernetes.cri.sandbox-id": named });
            let spec = serde_json::json!({ "ociVersion": "1.0.2", "annotations": annotations });
            std::fs::write(directory.path().join("config.json"), spec.to_string()).unwrap();
            Bundle::load(directory.path()).unwrap().sandbox("c1")
        };
        assert_eq!(sandbox("p1").unwrap(), "p1");
        assert_eq!(sandbox("").unwrap(), "c1");
        for named in ["/etc", "../..", "..", "/proc/1"] {
            assert!(sandbox(named).unwrap_err().to_string().contains("sandbox id"), "{named}");
        }
    }
}
