//! What is found when a host is looked at, for people who ask whether it can run VMs.

use std::fs::File;
use std::path::Path;

use kata_linux::program;

use crate::kvm_obstacle;

/// How something stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// As it should be.
    Good,
    /// Containers start, but something is slower, less safe or missing.
    Warning,
    /// No container can start.
    Failed,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at, in a word or two; the same on every host.
    pub probe: &'static str,
    /// How it stands.
    pub outcome: Outcome,
    /// What was found, in words that fit into a line.
    pub detail: String,
    /// What to do about it; `None` where nothing is to be done.
    pub remedy: Option<String>,
}

impl Finding {
    /// Something that is as it should be.
    #[must_use]
    pub fn good(probe: &'static str, detail: impl Into<String>) -> Self {
        Self { probe, outcome: Outcome::Good, detail: detail.into(), remedy: None }
    }

    /// Something that containers start without.
    #[must_use]
    pub fn warning(
        probe: &'static str,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let remedy = Some(remedy.into());
        Self { probe, outcome: Outcome::Warning, detail: detail.into(), remedy }
    }

    /// Something that no container starts without.
    #[must_use]
    pub fn failed(
        probe: &'static str,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let remedy = Some(remedy.into());
        Self { probe, outcome: Outcome::Failed, detail: detail.into(), remedy }
    }

    /// Whether the program `named` is there, and which version of it. Blocks for as long as it
    /// takes to tell.
    #[must_use]
    pub fn of_program(probe: &'static str, named: &Path, remedy: &str) -> Self {
        let path = match program::find(named) {
            Ok(path) => path,
            Err(error) => {
                return Self::failed(probe, format!("{}: {error}", named.display()), remedy);
            }
        };
        match program::version_of(&path) {
            Ok(version) => Self::good(probe, format!("{}, {version}", path.display())),
            Err(error) => Self::failed(
                probe,
                format!("{} --version: {error}", path.display()),
                format!("run it by hand to see why, or {remedy}"),
            ),
        }
    }

    /// Whether the guest kernel can be read, for a hypervisor that says itself at boot whether it
    /// is one.
    #[must_use]
    pub fn of_kernel(kernel: &Path) -> Self {
        const PROBE: &str = "guest kernel";
        match File::open(kernel) {
            Ok(_) => Self::good(PROBE, kernel.display().to_string()),
            Err(error) => Self::failed(
                PROBE,
                format!("{}: {error}", kernel.display()),
                "build one with `make`, or set `kernel` in the configuration",
            ),
        }
    }

    /// Whether the kernel has landlock of `version` at least, with which a VMM shuts itself in.
    #[must_use]
    pub fn of_landlock(version: u32) -> Self {
        const PROBE: &str = "landlock";
        match kata_linux::landlock::version() {
            Some(there) if version <= there => Self::good(PROBE, format!("version {there}")),
            _ => Self::warning(
                PROBE,
                format!("this kernel has none of version {version}, so the VMM has one wall less"),
                "boot a newer kernel, with `landlock` in its list of security modules",
            ),
        }
    }

    /// Whether KVM works, for a hypervisor that `emulates` without it or does not.
    #[must_use]
    pub fn of_kvm(emulates: bool) -> Self {
        const PROBE: &str = "kvm";
        const REMEDY: &str = "switch virtualization on in the firmware (on a virtual machine: nesting) and load kvm_intel or kvm_amd";
        match kvm_obstacle() {
            None => Self::good(PROBE, "/dev/kvm works"),
            Some(obstacle) if emulates => {
                let detail =
                    format!("{obstacle}; VMs run in software emulation, many times slower");
                Self::warning(PROBE, detail, REMEDY)
            }
            Some(obstacle) => {
                let remedy =
                    format!("{REMEDY}, or choose qemu with `hypervisor_name`, which does without");
                Self::failed(PROBE, obstacle, remedy)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_that_is_missing_is_named_with_the_remedy() {
        let found = Finding::of_program("thing", Path::new("/no/such/thing"), "install it");
        assert_eq!(found.outcome, Outcome::Failed);
        assert!(found.detail.starts_with("/no/such/thing: No such file"), "{}", found.detail);
        assert_eq!(found.remedy.as_deref(), Some("install it"));
    }

    #[test]
    fn kernel_that_is_missing_is_named() {
        let found = Finding::of_kernel(Path::new("/no/such/vmlinux"));
        assert_eq!(found.outcome, Outcome::Failed);
        assert!(found.detail.starts_with("/no/such/vmlinux: No such file"), "{}", found.detail);
        assert_eq!(Finding::of_kernel(Path::new("/etc/passwd")).outcome, Outcome::Good);
    }

    #[test]
    fn emulation_makes_a_missing_kvm_bearable() {
        let (with, without) = (Finding::of_kvm(true), Finding::of_kvm(false));
        assert!(with.outcome <= Outcome::Warning);
        assert_eq!(with.outcome == Outcome::Good, without.outcome == Outcome::Good);
        assert_ne!(without.outcome, Outcome::Warning);
    }

    #[test]
    fn outcomes_are_ordered_from_good_to_bad() {
        assert!(Outcome::Good < Outcome::Warning && Outcome::Warning < Outcome::Failed);
    }
}
