//! The layers: which folder holds what, and what its crates may depend on. [`LAYERS`] is the only
//! place that says so: crates are checked against it, and the table in ARCHITECTURE.md is made of
//! it.

use std::fmt::Write;

use crate::workspace::Workspace;

/// Crates with the same purpose and the same rights. A folder stands for itself and all below it.
#[derive(Debug)]
struct Layer {
    /// Its folders. A crate belongs to the first layer that has it.
    folders: &'static [&'static str],
    /// What is in it.
    what: &'static str,
    /// What its crates may depend on, in tests, too: folders, or names of [`GROUPS`].
    may_use: &'static [&'static str],
}

/// Host crates that know one matter each, and not each other.
const LEAVES: (&str, &[&str]) = (
    "the leaves",
    &[
        "host/agent-client",
        "host/config",
        "host/hypervisor",
        "host/network",
        "host/storage",
        "host/timeline",
    ],
);

/// Host crates that drive one VMM each.
const DRIVERS: (&str, &[&str]) =
    ("the drivers", &["host/cloud-hypervisor", "host/firecracker", "host/krun", "host/qemu"]);

const GROUPS: &[(&str, &[&str])] = &[LEAVES, DRIVERS];

const LAYERS: &[Layer] = &[
    Layer {
        folders: &["bin/kata-agent"],
        what: "the guest's program",
        may_use: &["guest", "wire", "support"],
    },
    Layer {
        folders: &["bin"],
        what: "the host's programs, and `kata-image`, which builds what the guest boots",
        may_use: &["host", "image", "wire", "support"],
    },
    Layer {
        folders: &["host/task"],
        what: "containerd's Task API over one sandbox",
        may_use: &["host/runtime", "host/sandbox", "wire", "support"],
    },
    Layer {
        folders: &["host/runtime"],
        what: "configuration + OCI spec + driver → plans",
        may_use: &["host/sandbox", LEAVES.0, DRIVERS.0, "wire", "support"],
    },
    // It takes a plan, not a file, and a trait, not a driver.
    Layer {
        folders: &["host/sandbox"],
        what: "the running sandbox: ledger of processes, boot, cleanup",
        may_use: &[
            "host/agent-client",
            "host/hypervisor",
            "host/network",
            "host/storage",
            "host/timeline",
            "wire",
            "support",
        ],
    },
    Layer { folders: LEAVES.1, what: "the leaves: one matter each", may_use: &["wire", "support"] },
    Layer {
        folders: DRIVERS.1,
        what: "the drivers: the traits of `host/hypervisor`, each for one VMM",
        may_use: &["host/hypervisor", "wire", "support"],
    },
    Layer {
        folders: &["guest/service"],
        what: "the agent's protocol",
        may_use: &["guest/setup", "guest/container", "wire", "support"],
    },
    Layer {
        folders: &["guest/setup", "guest/container"],
        what: "the agent's other parts: the work of PID 1, and containers",
        may_use: &["wire", "support"],
    },
    Layer {
        folders: &["image"],
        what: "builders of what the guest boots",
        may_use: &["image", "support"],
    },
    Layer {
        folders: &["wire"],
        what: "what crosses a boundary: types and codecs",
        may_use: &["wire", "support"],
    },
    Layer {
        folders: &["support"],
        what: "Linux and files, and hooks of the OCI specification; knows no VM",
        may_use: &["support"],
    },
    Layer {
        folders: &["tests/contract"],
        what: "what every driver promises, as tests that each of them passes",
        may_use: &["tests/e2e", LEAVES.0, DRIVERS.0, "wire", "support"],
    },
    Layer {
        folders: &["tests/e2e"],
        what: "real engines, real guests, driven from outside",
        may_use: &["host/hypervisor", "host/timeline", "image", "wire", "support"],
    },
    Layer {
        folders: &["tests/guest"],
        what: "the agent in a VM, by its protocol alone",
        may_use: &["host/hypervisor", "image", "wire", "support"],
    },
    Layer {
        folders: &["tests/host-vm"],
        what: "a machine with KVM, and one with the engines of other releases of Debian, for the tests of `tests/e2e`",
        may_use: &["tests/e2e", "host/hypervisor", "wire", "support"],
    },
    Layer {
        folders: &["tests/kubernetes"],
        what: "pods, by what a kubelet says to containerd",
        may_use: &["tests/e2e", "wire", "support"],
    },
    // It makes manual pages from the definitions of command lines.
    Layer {
        folders: &["xtask"],
        what: "checks of the structure; generated files and manual pages",
        may_use: &[
            "host/config",
            "host/hypervisor",
            "host/runtime",
            "bin/kata-image",
            "bin/kata-runtime",
        ],
    },
];

/// Every crate without a layer, every layer without a crate, and every dependency that the table
/// does not allow.
pub(crate) fn violations(workspace: &Workspace) -> Vec<String> {
    let mut found = Vec::new();
    for member in &workspace.crates {
        let from = member.folder.as_str();
        if layer_of(from).is_none() {
            found.push(format!("{from}: belongs to no layer; add it to xtask/src/layers.rs"));
            continue;
        }
        for to in member.uses.iter().filter(|to| !may_use(from, to)) {
            found.push(format!("{from}/Cargo.toml: {from} must not depend on {to}"));
        }
    }
    let empty = LAYERS
        .iter()
        .flat_map(|layer| layer.folders)
        .filter(|folder| !workspace.crates.iter().any(|member| contains(folder, &member.folder)));
    found.extend(empty.map(|folder| format!("xtask/src/layers.rs: {folder} holds no crate")));
    found
}

/// Whether the crate in folder `from` may depend on the one in folder `to`.
fn may_use(from: &str, to: &str) -> bool {
    layer_of(from).is_some_and(|layer| {
        layer.may_use.iter().any(|right| match group(right) {
            Some(folders) => folders.iter().any(|folder| contains(folder, to)),
            None => contains(right, to),
        })
    })
}

fn layer_of(folder: &str) -> Option<&'static Layer> {
    LAYERS.iter().find(|layer| layer.folders.iter().any(|one| contains(one, folder)))
}

fn group(name: &str) -> Option<&'static [&'static str]> {
    GROUPS.iter().find(|(group, _)| *group == name).map(|(_, folders)| *folders)
}

/// Whether `folder` is `outer` or lies in it.
fn contains(outer: &str, folder: &str) -> bool {
    folder.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The table in ARCHITECTURE.md.
pub(crate) fn table() -> String {
    let mut table = String::from("| folder | what | may use |\n|---|---|---|\n");
    for layer in LAYERS {
        let folders = listed(layer.folders);
        let rights = listed(layer.may_use);
        // Writing to a string does not fail.
        let _ = writeln!(table, "| {folders} | {} | {rights} |", layer.what);
    }
    table
}

fn listed(names: &[&str]) -> String {
    let shown = |name: &&str| match group(name) {
        Some(_) => (*name).to_owned(),
        None => format!("`{name}`"),
    };
    names.iter().map(shown).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_of_the_design_are_allowed() {
        for (from, to) in [
            ("bin/containerd-shim-kata-v2", "host/task"),
            ("host/task", "host/runtime"),
            ("host/task", "support/hooks"),
            ("guest/container", "support/hooks"),
            ("host/runtime", "host/qemu"),
            ("host/runtime", "host/config"),
            ("host/sandbox", "host/agent-client"),
            ("host/qemu", "host/hypervisor"),
            ("host/storage", "support/linux"),
            ("guest/service", "guest/container"),
            ("bin/kata-agent", "guest/service"),
            ("wire/channel", "support/linux"),
            ("tests/contract", "host/qemu"),
            ("xtask", "bin/kata-runtime"),
        ] {
            assert!(may_use(from, to), "{from} -> {to}");
        }
    }

    #[test]
    fn dependencies_upwards_and_across_are_not() {
        for (from, to) in [
            ("host/sandbox", "host/config"),
            ("host/sandbox", "host/qemu"),
            ("host/sandbox", "host/runtime"),
            ("host/storage", "host/hypervisor"),
            ("host/qemu", "host/config"),
            ("host/runtime", "host/task"),
            ("host/task", "host/storage"),
            ("host/task", "host/config"),
            ("guest/setup", "guest/container"),
            ("guest/service", "host/sandbox"),
            ("bin/kata-agent", "host/config"),
            ("bin/kata-image", "bin/kata-agent"),
            ("wire/channel", "host/hypervisor"),
            ("support/linux", "wire/channel"),
            ("image/initrd", "guest/setup"),
            ("tests/e2e", "bin/kata-runtime"),
            ("tests/e2e", "host/task"),
        ] {
            assert!(!may_use(from, to), "{from} -> {to}");
        }
    }

    #[test]
    fn crate_that_nobody_placed_has_no_layer() {
        assert!(layer_of("host/firecracker").is_some());
        assert!(layer_of("host/everything").is_none());
        assert!(layer_of("somewhere/else").is_none());
        assert!(layer_of("binary").is_none());
    }

    #[test]
    fn table_names_folders_as_code_and_groups_in_words() {
        let table = table();
        let row = table.lines().find(|line| line.starts_with("| `host/runtime`")).unwrap();
        assert!(row.ends_with("| `host/sandbox`, the leaves, the drivers, `wire`, `support` |"));
    }
}
