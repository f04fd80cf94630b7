//! `spec`: a config.json to start from. It is runc's, so that the two can be compared, with a
//! hostname of our own. A guest always has cgroup namespaces, which runc knows for some hosts only.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};

use anyhow::{Context, Result, bail};
use oci_spec::runtime::VERSION as SPEC_VERSION;

use crate::cli::SpecArgs;

/// All of it but the specification's version, for which there is [`VERSION_PLACE`].
const TEMPLATE: &str = include_str!("spec.json");

const VERSION_PLACE: &str = "OCI_VERSION";

pub(super) fn run(args: &SpecArgs) -> Result<()> {
    if args.rootless {
        bail!(
            "virtual machines need root, so there is no bundle for somebody else; run without --rootless"
        );
    }
    let path = args.bundle.join("config.json");
    let mut file = match OpenOptions::new().write(true).create_new(true).open(&path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!("File {} exists. Remove it first", path.display())
        }
        opened => opened.with_context(|| format!("cannot create {}", path.display()))?,
    };
    file.write_all(text().as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}

fn text() -> String {
    // runc's ends without a newline.
    TEMPLATE.trim_end().replace(VERSION_PLACE, SPEC_VERSION)
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::Spec;

    use super::*;

    #[test]
    fn specification_is_of_the_version_that_is_told_and_lets_no_device_through() {
        let spec: Spec = serde_json::from_str(&text()).unwrap();
        assert_eq!(spec.version(), SPEC_VERSION);
        let resources = spec.linux().as_ref().unwrap().resources().as_ref().unwrap();
        let rules = resources.devices().as_ref().unwrap();
        assert!(rules.len() == 1 && !rules[0].allow(), "{rules:?}");
    }
}
