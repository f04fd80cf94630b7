//! The bundle, as far as the shim needs it before there is a sandbox.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

use anyhow::Context;
use kata_host_runtime::{ContainerRole, role_of};
use serde::Deserialize;

/// The part of `config.json` that tells a container's place. The rest is the server's business, and
/// is not even looked at here: `start` must be quick, and `delete` must work when it makes no
/// sense.
#[derive(Debug, Default, Deserialize)]
struct Annotations {
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
}

/// What the container in `bundle` is to its sandbox. Without a `config.json` (a sandbox that
/// containerd makes without a container) it is one of its own.
pub(crate) fn role(bundle: &Path) -> anyhow::Result<ContainerRole> {
    let path = bundle.join("config.json");
    let spec: Annotations = match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text)
            .with_context(|| format!("cannot understand {}", path.display()))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Annotations::default(),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    Ok(role_of(spec.annotations.as_ref())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role_with(config: Option<&str>) -> anyhow::Result<ContainerRole> {
        let bundle = tempfile::tempdir().unwrap();
        if let Some(config) = config {
            fs::write(bundle.path().join("config.json"), config).unwrap();
        }
        role(bundle.path())
    }

    #[test]
    fn a_bundle_without_config_is_a_sandbox_of_its_own() {
        assert_eq!(role_with(None).unwrap(), ContainerRole::Single);
        assert_eq!(role_with(Some("{}")).unwrap(), ContainerRole::Single);
        assert_eq!(
            role_with(Some(r#"{"annotations":null,"process":{"args":3}}"#)).unwrap(),
            ContainerRole::Single
        );
    }

    #[test]
    fn a_member_of_a_pod_names_its_sandbox() {
        let config = r#"{"annotations":{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"s1"}}"#;
        assert_eq!(role_with(Some(config)).unwrap(), ContainerRole::PodMember("s1".into()));
    }

    #[test]
    fn a_broken_config_is_an_error_that_names_it() {
        assert!(role_with(Some("{")).unwrap_err().to_string().contains("config.json"));
    }
}
