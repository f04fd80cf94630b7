//! Which modules a guest needs, and in which order they must be loaded.

use std::collections::BTreeSet;

use crate::package::KernelPackage;
use crate::{compression, modinfo, signature};

/// The modules that a container guest needs where its kernel has them not built in, most urgent
/// first: what the agent's channel to the host needs comes before what containers need.
pub const GUEST_MODULES: &[&str] = &[
    // Buses: microvm and Firecracker have MMIO, q35 and the others PCI.
    "virtio_mmio",
    "virtio_pci",
    // The agent's channel, either of the two.
    "virtio_console",
    "vsock",
    "vmw_vsock_virtio_transport",
    "virtio_rng",
    // Root file systems and mounts.
    "fuse",
    "virtiofs",
    "virtio_blk",
    "overlay",
    "virtio_net",
];

/// Those that a guest can do without, and has where its kernel's package has them: memory that
/// comes while it runs.
pub(crate) const OPTIONAL_MODULES: &[&str] = &["virtio_mem"];

/// Why the guest's modules cannot be gathered.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// A module is neither in the package nor built in.
    #[error(
        "the kernel {release} has no module {module}{}; use a kernel that has it",
        needed_by(needed_for.as_deref())
    )]
    Missing {
        /// The module that is missing.
        module: String,
        /// The module that depends on it; `None` if the guest itself needs it.
        needed_for: Option<String>,
        /// The kernel's release.
        release: String,
    },
    /// A module cannot be unpacked.
    #[error("the module {module} of the kernel package is damaged")]
    Unpack {
        /// The module.
        module: String,
        /// What went wrong.
        source: std::io::Error,
    },
    /// A module is not an ELF file.
    #[error("the module {module} of the kernel package is not a kernel module")]
    Parse {
        /// The module.
        module: String,
        /// What is wrong with it.
        source: object::Error,
    },
}

fn needed_by(module: Option<&str>) -> String {
    module.map_or_else(|| ", which the guest needs".into(), |m| format!(", which {m} needs"))
}

/// A module to be loaded in the guest.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct GuestModule {
    /// Its absolute path in the guest.
    pub(crate) path: String,
    /// Its file, uncompressed and, unless the kernel insists on it, without a signature.
    pub(crate) data: Vec<u8>,
}

/// The wanted modules and all that they depend on, each after what it depends on. Built-in ones
/// are left out.
///
/// # Errors
/// When one is missing from the package or damaged.
pub(crate) fn in_load_order<'a>(
    package: &KernelPackage,
    wanted: impl IntoIterator<Item = &'a str>,
) -> Result<Vec<GuestModule>, ModuleError> {
    let mut order = LoadOrder { package, seen: BTreeSet::new(), modules: Vec::new() };
    for name in wanted {
        order.add(&name.replace('-', "_"), None)?;
    }
    Ok(order.modules)
}

struct LoadOrder<'a> {
    package: &'a KernelPackage,
    seen: BTreeSet<String>,
    modules: Vec<GuestModule>,
}

impl LoadOrder<'_> {
    fn add(&mut self, name: &str, needed_for: Option<&str>) -> Result<(), ModuleError> {
        // A module counts as seen before its dependencies are: a circle ends here too.
        if self.package.is_builtin(name) || !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        let Some(module) = self.package.module(name) else {
            return Err(ModuleError::Missing {
                module: name.to_owned(),
                needed_for: needed_for.map(str::to_owned),
                release: self.package.release().to_owned(),
            });
        };
        let data = compression::decompress(&module.data)
            .map_err(|source| ModuleError::Unpack { module: name.to_owned(), source })?;
        let depends = modinfo::depends(&data)
            .map_err(|source| ModuleError::Parse { module: name.to_owned(), source })?;
        for dependency in depends {
            self.add(&dependency, Some(name))?;
        }
        let keep_signature = self.package.insists_on_signatures();
        let data = if keep_signature { data } else { signature::strip(data) };
        let path = format!("/lib/modules/{}/{}", self.package.release(), module.path);
        self.modules.push(GuestModule { path, data });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::package::tests::package;
    use proptest::prelude::*;

    fn names(modules: &[GuestModule]) -> Vec<&str> {
        let file = |module: &GuestModule| module.path.rfind('/').map_or(0, |slash| slash + 1);
        modules.iter().map(|module| module.path[file(module)..].trim_end_matches(".ko")).collect()
    }

    #[test]
    fn load_order_puts_dependencies_first_and_each_module_once() {
        let kernel = package(
            &[
                ("virtio_console", "virtio,virtio_ring"),
                ("virtio_mmio", "virtio_ring,virtio"),
                ("virtio_ring", "virtio"),
                ("virtio", ""),
                ("unrelated", ""),
            ],
            &[],
        );
        let modules = in_load_order(&kernel, ["virtio_mmio", "virtio_console"]).unwrap();
        assert_eq!(names(&modules), ["virtio", "virtio_ring", "virtio_mmio", "virtio_console"]);
        assert_eq!(modules[0].path, "/lib/modules/6.1.0/kernel/virtio.ko");
    }

    #[test]
    fn load_order_leaves_built_in_modules_out() {
        let kernel = package(&[("virtiofs", "fuse")], &["fuse", "virtio_blk"]);
        let modules = in_load_order(&kernel, ["virtio-blk", "virtiofs"]).unwrap();
        assert_eq!(names(&modules), ["virtiofs"]);
    }

    #[test]
    fn load_order_without_a_module_names_it_and_who_needs_it() {
        let kernel = package(&[("virtiofs", "fuse")], &[]);
        let error = in_load_order(&kernel, ["virtiofs"]).unwrap_err().to_string();
        assert_eq!(
            error,
            "the kernel 6.1.0 has no module fuse, which virtiofs needs; use a kernel that has it"
        );
        let error = in_load_order(&kernel, ["overlay"]).unwrap_err().to_string();
        assert!(error.contains("overlay, which the guest needs"), "{error}");
    }

    proptest! {
        /// Whatever the dependencies (without circles), no module comes before what it needs.
        #[test]
        fn load_order_respects_any_dependencies(
            edges in prop::collection::vec((0usize..12, 0usize..12), 0..40),
            wanted in prop::collection::vec(0usize..12, 1..6),
        ) {
            let needs = |n: usize| -> Vec<String> {
                let lower = edges.iter().filter(|&&(from, to)| from == n && to < from);
                lower.map(|(_, to)| format!("m{to}")).collect()
            };
            let all: Vec<(String, String)> =
                (0..12).map(|n| (format!("m{n}"), needs(n).join(","))).collect();
            let modules: Vec<(&str, &str)> =
                all.iter().map(|(name, needs)| (name.as_str(), needs.as_str())).collect();
            let wanted: Vec<String> = wanted.iter().map(|n| format!("m{n}")).collect();
            let kernel = package(&modules, &[]);
            let order = in_load_order(&kernel, wanted.iter().map(String::as_str)).unwrap();
            let order = names(&order);
            for name in &wanted {
                prop_assert!(order.contains(&name.as_str()));
            }
            for (place, name) in order.iter().enumerate() {
                for needed in needs(name[1..].parse().unwrap()) {
                    prop_assert!(order[..place].contains(&needed.as_str()));
                }
                prop_assert!(!order[..place].contains(name));
            }
        }
    }
}
