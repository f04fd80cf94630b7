//! A bundle: the directory with `config.json`, and what the command line has to know of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use kata_host_runtime::role_of;
use kata_shim_api::stand_in::{NetworkNamespace, Shown};
use oci_spec::runtime::{LinuxNamespaceType, Spec};

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

    /// Where the container is on the network. That the host's own cannot be is said by whoever
    /// plans the VM.
    pub(crate) fn network(&self) -> NetworkNamespace {
        let linux = self.spec.linux().as_ref();
        let all = linux.and_then(|linux| linux.namespaces().as_ref()).into_iter().flatten();
        match all.into_iter().find(|one| one.typ() == LinuxNamespaceType::Network) {
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

    pub(crate) fn annotations(&self) -> BTreeMap<String, String> {
        self.spec.annotations().clone().unwrap_or_default().into_iter().collect()
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
            source: self.rootfs(),
            target: "/".into(),
            readonly: root.and_then(|root| root.readonly()).unwrap_or_default(),
        };
        let binds = self.spec.mounts().iter().flatten().filter_map(|mount| {
            let options = mount.options().as_deref().unwrap_or_default();
            let has = |name: &str| options.iter().any(|option| option == name);
            let is_bind = mount.typ().as_deref() == Some("bind") || has("bind") || has("rbind");
            let source = self.path.join(mount.source().as_ref().filter(|_| is_bind)?);
            let target = mount.destination().clone();
            Some(Shown { source, target, readonly: has("ro") })
        });
        [root].into_iter().chain(binds).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
