//! Which versions of a VMM can be used.

use std::path::Path;

use crate::{Finding, Outcome};

/// The oldest version of a VMM that a driver can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OldestVersion {
    /// The VMM's name, as people know it.
    pub vmm: &'static str,
    /// The first numbers of the version, the most significant one first. Those that follow do not
    /// matter.
    pub numbers: &'static [u32],
}

impl OldestVersion {
    /// Refuses a VMM that is older, or whose version is none, with a sentence. `version` is what it
    /// calls itself, as in `v1.10.1-dirty`.
    pub fn check(&self, version: &str) -> Result<(), String> {
        let numbers: Option<Vec<u32>> = version
            .trim_start_matches('v')
            .split(['.', '-'])
            .take(self.numbers.len())
            .map(|number| number.parse().ok())
            .collect();
        if numbers.is_some_and(|numbers| self.numbers <= numbers.as_slice()) {
            return Ok(());
        }
        let printable: String = version.chars().filter(char::is_ascii_graphic).take(40).collect();
        let oldest = self.numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(".");
        Err(format!("its version is {printable:?}; install {} {oldest} or later", self.vmm))
    }

    /// Whether the VMM's program is there, and new enough. Blocks for as long as it takes to tell
    /// its version, which is its last word.
    #[must_use]
    pub fn find(&self, program: &Path, remedy: &str) -> Finding {
        let found = Finding::of_program("hypervisor", program, remedy);
        let version = found.detail.rsplit(' ').next().unwrap_or_default();
        match self.check(version) {
            Err(reason) if found.outcome == Outcome::Good => {
                Finding::failed(found.probe, found.detail, reason)
            }
            _ => found,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_and_nameless_versions_are_refused() {
        let oldest = OldestVersion { vmm: "Firecracker", numbers: &[1, 8] };
        for new in ["1.8.0", "v1.10.1", "1.17.0-dev", "2.0.0"] {
            assert_eq!(oldest.check(new), Ok(()), "{new}");
        }
        let refusal = oldest.check("1.7.0").unwrap_err();
        assert_eq!(refusal, "its version is \"1.7.0\"; install Firecracker 1.8 or later");
        for old in ["0.25.2", "", "1", "x\n"] {
            assert!(oldest.check(old).is_err(), "{old}");
        }
    }

    #[test]
    fn only_as_many_numbers_count_as_are_named() {
        let oldest = OldestVersion { vmm: "Cloud Hypervisor", numbers: &[51] };
        assert_eq!((oldest.check("v54.0.0"), oldest.check("54.x-dirty")), (Ok(()), Ok(())));
        assert!(oldest.check("v38.0").is_err());
    }
}
