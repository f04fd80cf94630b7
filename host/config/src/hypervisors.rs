//! The hypervisors that have a section, and which of them is chosen.
//!
//! A further one is a section in a file of its own, a field of [`HostConfig`], and a line in each
//! `match` here.

use std::path::Path;

use crate::error::invalid;
use crate::section::Section;
use crate::setting::{Input, choice};
use crate::tree::{Entry, Table, Value};
use crate::{ConfigError, HostConfig, Qemu, VirtioFs, VmSettings};

choice! {
    /// The hypervisors that this version has a driver for.
    pub enum HypervisorName {
        /// krun where it can do what the sandbox needs, else QEMU.
        Auto = "auto",
        /// Cloud Hypervisor.
        CloudHypervisor = "clh",
        /// Firecracker.
        Firecracker = "firecracker",
        /// The VMM that is installed with this software.
        Krun = "krun",
        /// QEMU.
        Qemu = "qemu",
    }
}

/// Hypervisors of upstream, whose sections may stand in a file as long as they are not chosen.
pub(crate) const OTHER_HYPERVISORS: &[&str] =
    &["cloud-hypervisor", "dragonball", "openvmm", "remote", "stratovirt", "acrn"];

/// What can be done with a section whatever its type.
pub(crate) trait Visitor {
    /// What comes of it.
    type Outcome;
    /// Does it.
    fn visit<S: Section>(self, section: &mut S) -> Self::Outcome;
}

impl HostConfig {
    /// What every hypervisor has, of the one that is chosen: of QEMU as long as that is
    /// [`HypervisorName::Auto`].
    #[must_use]
    pub fn vm(&self) -> &VmSettings {
        match self.runtime.hypervisor_name {
            HypervisorName::CloudHypervisor => &self.clh.vm,
            HypervisorName::Firecracker => &self.firecracker.vm,
            HypervisorName::Krun => &self.krun.vm,
            HypervisorName::Qemu | HypervisorName::Auto => &self.qemu.vm,
        }
    }

    /// Whether the memory of a VM follows the limits of its containers once it runs, where the
    /// driver can do that.
    #[must_use]
    pub fn enables_virtio_mem(&self) -> bool {
        match self.runtime.hypervisor_name {
            HypervisorName::CloudHypervisor => self.clh.enable_virtio_mem,
            HypervisorName::Firecracker | HypervisorName::Krun => false,
            HypervisorName::Qemu | HypervisorName::Auto => self.qemu.enable_virtio_mem,
        }
    }

    /// Whether the section of QEMU asks for something that the one of krun does not, and that would
    /// be lost on krun.
    #[must_use]
    pub fn asks_for_qemu(&self, prefix: &Path) -> bool {
        let defaults = Qemu::defaults(prefix);
        let shared = self.qemu.vm == defaults.vm || self.qemu.vm == self.krun.vm;
        // Whom QEMU runs as, and how it does its I/O, is nothing that krun would lose.
        let own = Qemu {
            vm: defaults.vm.clone(),
            rootless: defaults.rootless,
            block_device_aio: defaults.block_device_aio,
            // By itself it asks for nothing.
            template_path: defaults.template_path.clone(),
            ..self.qemu.clone()
        };
        let own = own == defaults;
        !(shared && own)
    }

    /// The file server of the hypervisor that is chosen; `None` if it has none beside it.
    #[must_use]
    pub fn virtio_fs(&self) -> Option<&VirtioFs> {
        match self.runtime.hypervisor_name {
            HypervisorName::CloudHypervisor => Some(&self.clh.virtio_fs),
            HypervisorName::Firecracker | HypervisorName::Krun => None,
            HypervisorName::Qemu | HypervisorName::Auto => Some(&self.qemu.virtio_fs),
        }
    }

    /// Visits the section of one hypervisor; of QEMU for [`HypervisorName::Auto`].
    pub(crate) fn visit<V: Visitor>(&mut self, name: HypervisorName, visitor: V) -> V::Outcome {
        match name {
            HypervisorName::CloudHypervisor => visitor.visit(&mut self.clh),
            HypervisorName::Firecracker => visitor.visit(&mut self.firecracker),
            HypervisorName::Krun => visitor.visit(&mut self.krun),
            HypervisorName::Qemu | HypervisorName::Auto => visitor.visit(&mut self.qemu),
        }
    }

    /// Sets a key of the chosen hypervisor's section, as an annotation writes it.
    pub(crate) fn annotate_hypervisor(&mut self, key: &str, text: &str) -> Result<(), String> {
        self.visit(self.runtime.hypervisor_name, Annotated { key, text })
    }
}

struct Annotated<'a> {
    key: &'a str,
    text: &'a str,
}

impl Visitor for Annotated<'_> {
    type Outcome = Result<(), String>;

    fn visit<S: Section>(self, section: &mut S) -> Self::Outcome {
        crate::annotation::set(section, self.key, self.text)
    }
}

/// The hypervisor that the section `name` is for; `None` if it has no driver here.
pub(crate) fn of_section(name: &str) -> Option<HypervisorName> {
    [
        HypervisorName::CloudHypervisor,
        HypervisorName::Firecracker,
        HypervisorName::Krun,
        HypervisorName::Qemu,
    ]
    .into_iter()
    .find(|known| known.as_str() == name)
}

/// What a configuration chooses: by name, or by having the section of one only. Refuses a
/// hypervisor that has no driver here.
pub(crate) fn choice_of(root: &Table) -> Result<HypervisorName, ConfigError> {
    if let Some(chosen) = named(root) {
        return match &chosen.value {
            Value::Text(name) if OTHER_HYPERVISORS.contains(&name.as_str()) => {
                let problem = format!(
                    "= \"{name}\" chooses a hypervisor that is not built into this version; set it to {}",
                    <HypervisorName as crate::setting::Setting>::expected()
                );
                Err(invalid(chosen, problem))
            }
            // Everything else that is wrong is told when the key is read.
            value => Ok(crate::setting::read(Input::File(value)).unwrap_or(HypervisorName::Auto)),
        };
    }
    let Some(Value::Table(sections)) = root.get("hypervisor").map(|entry| &entry.value) else {
        return Ok(HypervisorName::Auto);
    };
    let mut ours = sections.entries.iter().filter_map(|section| of_section(&section.name));
    match (ours.next(), ours.next(), sections.entries.as_slice()) {
        (Some(only), None, _) => Ok(only),
        (None, _, [other, ..]) if OTHER_HYPERVISORS.contains(&other.name.as_str()) => {
            let problem = "is the only hypervisor configured, and is not built into this version; \
                add [hypervisor.qemu] or set runtime.hypervisor_name = \"auto\"";
            Err(invalid(other, problem.to_owned()))
        }
        _ => Ok(HypervisorName::Auto),
    }
}

fn named(root: &Table) -> Option<&Entry> {
    match root.get("runtime").map(|entry| &entry.value) {
        Some(Value::Table(runtime)) => runtime.get("hypervisor_name"),
        _ => None,
    }
}
