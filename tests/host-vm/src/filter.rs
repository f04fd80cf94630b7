//! Which test files run, as a test harness is told: by parts of their names.

use anyhow::{Result, bail};

use crate::rounds::Hypervisor;

/// What the arguments of a test name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    parts: Vec<String>,
    /// Only tell what would run.
    pub lists: bool,
}

impl Filter {
    /// Takes parts of names, and `--list`. Whether output is captured makes no difference: none is.
    pub fn of(arguments: impl IntoIterator<Item = String>) -> Result<Self> {
        let mut filter = Self::default();
        for argument in arguments {
            match argument.as_str() {
                "--list" => filter.lists = true,
                "--nocapture" | "--no-capture" | "--show-output" => {}
                option if option.starts_with('-') => bail!(
                    "there is no option {option}; name parts of what is to run, like `kill` or `kill with krun`, or `--list`"
                ),
                _ => filter.parts.push(argument),
            }
        }
        Ok(filter)
    }

    /// Whether a test file runs with a hypervisor: all do, or those whose name has one of the parts
    /// in it.
    pub(crate) fn takes(&self, file: &str, hypervisor: Hypervisor) -> bool {
        let name = name(file, hypervisor);
        self.parts.is_empty() || self.parts.iter().any(|part| name.contains(part))
    }
}

/// What a test file is called when it runs with a hypervisor.
pub(crate) fn name(file: &str, hypervisor: Hypervisor) -> String {
    format!("{file} with {hypervisor}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(arguments: &[&str]) -> Result<Filter> {
        Filter::of(arguments.iter().map(|&argument| argument.to_owned()))
    }

    #[test]
    fn files_are_named_by_parts() {
        let takes = |arguments: &[&str], file| {
            filter(arguments).unwrap().takes(file, Hypervisor::CloudHypervisor)
        };
        assert!(takes(&[], "kill"));
        assert!(takes(&["kill"], "kill") && takes(&["kill"], "kill_by_hand"));
        assert!(takes(&["pods", "kill"], "kill") && !takes(&["pods"], "kill"));
        assert!(takes(&["with Cloud"], "kill") && !takes(&["kill with krun"], "kill"));
    }

    #[test]
    fn option_that_would_be_ignored_is_refused() {
        assert!(filter(&["--list", "kill", "--nocapture"]).unwrap().lists);
        let error = filter(&["--exact", "kill"]).unwrap_err().to_string();
        assert!(error.contains("--exact"), "{error}");
    }
}
