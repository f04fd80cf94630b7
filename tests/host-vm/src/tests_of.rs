//! The end-to-end tests' binaries, as cargo builds them.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// A test binary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestBinary {
    /// The test's name, like `lifecycle`.
    pub name: String,
    /// The program.
    pub path: PathBuf,
}

/// The packages whose tests are of use in a machine with KVM.
const PACKAGES: [&str; 5] = [
    "kata-e2e",
    "kata-guest-tests",
    "kata-driver-contract",
    "kata-cloud-hypervisor",
    "kata-firecracker",
];

/// The binaries of the tests `names`, built if they are not yet.
pub fn test_binaries(names: &[&str]) -> Result<Vec<TestBinary>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["test", "--locked", "--no-run", "--quiet", "--message-format=json"]);
    command.args(PACKAGES.map(|package| format!("--package={package}")));
    command.args(names.iter().map(|name| format!("--test={name}")));
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = command.output().context("cannot run cargo")?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "the end-to-end tests cannot be built: {errors}");
    let built: Vec<TestBinary> =
        String::from_utf8_lossy(&output.stdout).lines().filter_map(artifact).collect();
    for name in names {
        ensure!(built.iter().any(|binary| binary.name == *name), "cargo has built no test {name}");
    }
    Ok(built)
}

/// What one message of cargo says about a test (The Cargo Book, "External tools").
fn artifact(message: &str) -> Option<TestBinary> {
    let message: Value = serde_json::from_str(message).ok()?;
    let target = &message["target"];
    let is_test = target["kind"].as_array()?.iter().any(|kind| kind == "test");
    let path = message["executable"].as_str().filter(|_| is_test)?;
    Some(TestBinary { name: target["name"].as_str()?.to_owned(), path: path.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tests_are_taken() {
        let message = |kind| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"kind":["{kind}"],"name":"pods"}},"executable":"/t/pods-1"}}"#
            )
        };
        let expected = TestBinary { name: "pods".to_owned(), path: "/t/pods-1".into() };
        assert_eq!(artifact(&message("test")), Some(expected));
        assert_eq!(artifact(&message("bin")), None);
        assert_eq!(artifact(r#"{"reason":"build-finished"}"#), None);
    }
}
