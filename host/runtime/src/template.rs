//! The template that sandboxes go on from, where the administrator has it so.

use std::io;
use std::path::Path;

use kata_config::WorkloadLimits;
use kata_hypervisor::{HypervisorError, LaterDisks, VmSpec};
use thiserror::Error;

use crate::disks::POD_DEVICES;
use crate::{Runtime, RuntimeError, plan, room};

/// The name of the guest that becomes a template.
const NAME: &str = "template";

/// Why there is no template now, or one still.
#[derive(Debug, Error)]
pub enum TemplateError {
    /// The VM cannot be planned with this configuration.
    #[error(transparent)]
    Plan(#[from] RuntimeError),
    /// The guest could not be booted or saved.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// The old one cannot be removed.
    #[error("cannot remove the template")]
    Remove(#[source] io::Error),
}

impl Runtime {
    /// The directory of the template; `None` where the configuration wants none.
    #[must_use]
    pub fn template(&self) -> Option<&Path> {
        let wanted = self.config.qemu.enable_template && self.hypervisor().capabilities().templates;
        wanted.then_some(&self.config.qemu.template_path)
    }

    /// Makes the template of sandboxes without limits of their own in `directory`, in place of one
    /// that is there. Call it from a thread that lives until it returns.
    pub async fn make_template(&self, directory: &Path) -> Result<(), TemplateError> {
        let host = plan::host(self)?;
        let size = kata_config::sandbox_size(&self.config, WorkloadLimits::default(), host)
            .map_err(RuntimeError::from)?;
        let (memory, vcpus) = (room::memory(self, size), room::vcpus(self, size, host));
        let mut spec = plan::vm(self, NAME, size, &memory, &vcpus)?;
        shape(self, &mut spec);
        let patience = self.config.agent.connect_deadline();
        Ok(self.hypervisor().make_template(&spec, directory, patience).await?)
    }

    /// Takes the template away, also where the configuration wants none any more; none is fine.
    pub fn remove_template(&self) -> Result<(), TemplateError> {
        let directory = &self.config.qemu.template_path;
        kata_qemu::remove_template(directory).map_err(TemplateError::Remove)
    }

    /// Whether there is a template, of whatever VM.
    #[must_use]
    pub fn has_template(&self) -> bool {
        kata_qemu::has_template(&self.config.qemu.template_path)
    }
}

/// Where a template is wanted, makes the VM one that can be from it: lone containers and pods then
/// have the same places for what comes later.
pub(crate) fn shape(runtime: &Runtime, spec: &mut VmSpec) {
    let Some(directory) = runtime.template() else { return };
    spec.template = Some(directory.to_owned());
    if !spec.disks.is_empty() {
        // The driver says that there is none for it.
        return;
    }
    spec.hot_plug = true;
    let LaterDisks { readonly, writable } = spec.later_disks;
    spec.later_disks = LaterDisks { readonly, writable: writable.max(POD_DEVICES) };
}
