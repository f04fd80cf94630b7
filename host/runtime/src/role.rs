//! What a container is to its sandbox, as the engine says in the spec's annotations.

use std::collections::HashMap;

/// Annotation keys for a container's kind: containerd's CRI, CRI-O, dockershim.
const KIND_KEYS: [&str; 3] = [
    "io.kubernetes.cri.container-type",
    "io.kubernetes.cri-o.ContainerType",
    "io.kubernetes.docker.type",
];

/// Annotation keys for the id of the sandbox that a container belongs to, in the same order.
const SANDBOX_KEYS: [&str; 3] =
    ["io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID", "io.kubernetes.sandbox.id"];

/// A container's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerRole {
    /// Alone in a sandbox of its own.
    Single,
    /// The first of a pod: it stands for the sandbox, and others join it.
    PodSandbox,
    /// Joins the sandbox with this id.
    PodMember(String),
}

/// Reads the role from a spec's annotations. A container that names a sandbox without saying its own kind is taken for a member.
#[must_use]
pub fn role_of(annotations: Option<&HashMap<String, String>>) -> ContainerRole {
    let get = |key: &str| annotations.and_then(|all| all.get(key)).map(String::as_str);
    let kind = KIND_KEYS.iter().find_map(|key| get(key));
    let sandbox = SANDBOX_KEYS.iter().find_map(|key| get(key)).filter(|id| !id.is_empty());
    match (kind, sandbox) {
        (Some("sandbox" | "podsandbox"), _) => ContainerRole::PodSandbox,
        (Some("container") | None, Some(id)) => ContainerRole::PodMember(id.to_owned()),
        _ => ContainerRole::Single,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(pairs: &[(&str, &str)]) -> ContainerRole {
        let annotations =
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        role_of(Some(&annotations))
    }

    #[test]
    fn roles_of_containerd_and_cri_o() {
        let (kind, id) = ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id");
        assert_eq!(role(&[(kind, "sandbox"), (id, "p1")]), ContainerRole::PodSandbox);
        assert_eq!(role(&[(kind, "container"), (id, "p1")]), ContainerRole::PodMember("p1".into()));
        let crio = [
            ("io.kubernetes.cri-o.ContainerType", "container"),
            ("io.kubernetes.cri-o.SandboxID", "p2"),
        ];
        assert_eq!(role(&crio), ContainerRole::PodMember("p2".into()));
        assert_eq!(role(&[("other", "container")]), ContainerRole::Single);
        assert_eq!(role_of(None), ContainerRole::Single);
    }
}
