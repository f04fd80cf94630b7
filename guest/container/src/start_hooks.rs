//! The startContainer hooks: programs of the container's own, which its init runs before the
//! command (runtime-spec, "startContainer Hooks"). They have the container's namespaces, user,
//! capabilities and system call filter.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kata_hooks::{HookError, HookState};
use oci_spec::runtime::{Hook, Spec};

use crate::create::BUNDLES;

/// The hooks of one container, with what they are told of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct StartHooks {
    hooks: Vec<Hook>,
    id: String,
    oci_version: String,
    bundle: PathBuf,
    annotations: BTreeMap<String, String>,
}

impl StartHooks {
    /// Those of container `id`, of which there may be none.
    pub(crate) fn of(spec: &Spec, id: &str) -> Self {
        let hooks = spec.hooks().as_ref().and_then(|hooks| hooks.start_container().clone());
        let Some(hooks) = hooks.filter(|list| !list.is_empty()) else { return Self::default() };
        Self {
            hooks,
            id: id.to_owned(),
            oci_version: spec.version().clone(),
            bundle: Path::new(BUNDLES).join(id),
            annotations: spec.annotations().clone().unwrap_or_default().into_iter().collect(),
        }
    }

    /// To be called by the container's init, where its command will run.
    pub(crate) fn run(&self) -> Result<(), HookError> {
        let state = HookState {
            oci_version: &self.oci_version,
            id: &self.id,
            status: "created",
            pid: std::process::id(),
            bundle: &self.bundle,
            annotations: self.annotations.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect(),
        };
        kata_hooks::run_in_container(&self.hooks, &state)
    }
}
