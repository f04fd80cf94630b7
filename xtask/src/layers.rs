//! The arrows between the layers. The folder is the layer:
//!
//! ```text
//!   bin ──▶ host/task ──▶ host/runtime ──▶ host/sandbox ──▶ host leaves ──▶ wire ──▶ support
//!                              │                              ▲
//!                              ├──────▶ drivers ──▶ host/hypervisor
//!                              └──────▶ host/config
//!   bin ──▶ guest ──▶ wire ──▶ support          bin ──▶ image ──▶ wire, support
//! ```

use crate::workspace::Workspace;

/// Host crates that know one matter each, and not each other.
const LEAVES: &[&str] =
    &["config", "hooks", "hypervisor", "agent-client", "network", "storage", "timeline"];

/// Host crates that drive one VMM each.
const DRIVERS: &[&str] = &["qemu", "krun", "cloud-hypervisor", "firecracker"];

/// Top folders that hold crates.
const LAYERS: &[&str] = &["bin", "host", "wire", "guest", "image", "support", "tests", "xtask"];

/// Every crate outside the table, and every arrow that the table does not have.
pub(crate) fn violations(workspace: &Workspace) -> Vec<String> {
    let mut found = Vec::new();
    for member in &workspace.crates {
        let from = member.folder.as_str();
        if !has_place(from) {
            found.push(format!(
                "{from}: the layer table in xtask/src/layers.rs has no place for it; put it into a layer"
            ));
            continue;
        }
        for to in member.uses.iter().filter(|to| !may_use(from, to)) {
            found.push(format!("{from}/Cargo.toml: {from} must not depend on {to}"));
        }
    }
    found
}

fn split(folder: &str) -> (&str, &str) {
    folder.split_once('/').unwrap_or((folder, ""))
}

fn has_place(folder: &str) -> bool {
    match split(folder) {
        ("host", name) => {
            LEAVES.contains(&name)
                || DRIVERS.contains(&name)
                || matches!(name, "sandbox" | "runtime" | "task")
        }
        (layer, _) => LAYERS.contains(&layer),
    }
}

/// Whether the crate in folder `from` may depend on the one in folder `to`.
fn may_use(from: &str, to: &str) -> bool {
    let (layer, name) = split(from);
    let (target, target_name) = split(to);
    let foundation = matches!(target, "wire" | "support");
    match layer {
        "support" => target == "support",
        "wire" => foundation,
        "guest" => foundation || target == "guest",
        "image" => foundation || target == "image",
        "host" => foundation || (target == "host" && host_may_use(name, target_name)),
        // The agent runs behind the wall.
        "bin" if name == "kata-agent" => foundation || target == "guest",
        "bin" => foundation || matches!(target, "host" | "guest" | "image"),
        "tests" => target != "bin",
        // It makes manual pages from the definitions of command lines.
        "xtask" => true,
        _ => false,
    }
}

fn host_may_use(name: &str, target: &str) -> bool {
    match name {
        "task" => matches!(target, "runtime" | "sandbox" | "hooks"),
        "runtime" => target != "task",
        // It takes a plan, not a file, and a trait, not a driver.
        "sandbox" => LEAVES.contains(&target) && target != "config",
        driver if DRIVERS.contains(&driver) => target == "hypervisor",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrows_of_the_design_are_allowed() {
        for (from, to) in [
            ("bin/containerd-shim-kata-v2", "host/task"),
            ("host/task", "host/runtime"),
            ("host/runtime", "host/qemu"),
            ("host/runtime", "host/config"),
            ("host/sandbox", "host/agent-client"),
            ("host/qemu", "host/hypervisor"),
            ("host/storage", "support/linux"),
            ("guest/service", "guest/container"),
            ("bin/kata-agent", "guest/service"),
            ("wire/channel", "support/linux"),
            ("tests/e2e", "host/task"),
            ("xtask", "bin/kata-runtime"),
        ] {
            assert!(may_use(from, to), "{from} -> {to}");
        }
    }

    #[test]
    fn arrows_upwards_and_across_are_not() {
        for (from, to) in [
            ("host/sandbox", "host/config"),
            ("host/sandbox", "host/qemu"),
            ("host/sandbox", "host/runtime"),
            ("host/storage", "host/hypervisor"),
            ("host/qemu", "host/config"),
            ("host/runtime", "host/task"),
            ("host/task", "host/storage"),
            ("host/task", "host/config"),
            ("guest/service", "host/sandbox"),
            ("bin/kata-agent", "host/config"),
            ("bin/kata-image", "bin/kata-agent"),
            ("wire/channel", "host/hypervisor"),
            ("support/linux", "wire/channel"),
            ("image/initrd", "guest/setup"),
            ("tests/e2e", "bin/kata-runtime"),
        ] {
            assert!(!may_use(from, to), "{from} -> {to}");
        }
    }

    #[test]
    fn host_crate_that_nobody_placed_is_reported() {
        assert!(has_place("host/firecracker"));
        assert!(!has_place("host/everything"));
        assert!(!has_place("somewhere/else"));
    }
}
