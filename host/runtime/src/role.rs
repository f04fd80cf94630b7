//! What a container is to its sandbox, as the engine says in the spec's annotations.
//!
//! Under CRI-O all annotations of a pod end up there, so a family of keys that another engine would
//! use may be the pod's author speaking.

use std::collections::HashMap;

use kata_linux::identifier::{self, IdentifierError};
use serde::Deserialize;
use thiserror::Error;

/// The annotation keys of an engine.
#[derive(Debug, PartialEq, Eq)]
struct Family {
    engine: &'static str,
    /// A container's kind.
    kind: &'static str,
    /// The id of the sandbox that a container belongs to.
    sandbox: &'static str,
}

const CONTAINERD: Family = Family {
    engine: "containerd",
    kind: "io.kubernetes.cri.container-type",
    sandbox: "io.kubernetes.cri.sandbox-id",
};

const CRI_O: Family = Family {
    engine: "CRI-O",
    kind: "io.kubernetes.cri-o.ContainerType",
    sandbox: "io.kubernetes.cri-o.SandboxID",
};

const FAMILIES: [Family; 3] = [
    CONTAINERD,
    CRI_O,
    Family {
        engine: "dockershim",
        kind: "io.kubernetes.docker.type",
        sandbox: "io.kubernetes.sandbox.id",
    },
];

/// containerd's annotations for the resources of a whole pod.
const QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
const MEMORY: &str = "io.kubernetes.cri.sandbox-memory";

/// CRI-O's annotation for the resources of a whole pod, the sum of its containers', as CRI's
/// `LinuxContainerResources` in JSON: its older name and its newer one (CRI-O, pkg/annotations).
const CRI_O_RESOURCES: [&str; 2] =
    ["io.kubernetes.cri-o.PodLinuxResources", "pod-linux-resources.crio.io"];

/// What Podman puts into the annotations of all of its containers.
const PODMAN: (&str, &str) = ("io.container.manager", "libpod");

type Annotations = HashMap<String, String>;

/// A container's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerRole {
    /// Alone in a sandbox of its own.
    Single,
    /// The first of a pod: it stands for the sandbox, and others join it.
    PodSandbox,
    /// Joins the sandbox with this id, which can be a file name and nothing else.
    PodMember(String),
}

impl ContainerRole {
    /// The sandbox of container `id`, by the id of its first container.
    #[must_use]
    pub fn sandbox_of<'a>(&'a self, id: &'a str) -> &'a str {
        match self {
            Self::PodMember(sandbox) => sandbox,
            Self::Single | Self::PodSandbox => id,
        }
    }
}

/// Why annotations name no place.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RoleError {
    /// The sandbox's id is none.
    #[error("annotation {key}: {source}")]
    Sandbox {
        /// Where it is named.
        key: &'static str,
        /// What is wrong with it.
        source: IdentifierError,
    },
    /// Two engines' keys are there, and one of them is not the engine's.
    #[error(
        "the annotations of {one} and of {other} disagree on the sandbox that the container belongs to; leave those away that the engine does not set itself"
    )]
    Disagreement {
        /// An engine.
        one: &'static str,
        /// Another.
        other: &'static str,
    },
}

/// Reads the role from a spec's annotations. A container that names a sandbox without saying its
/// own kind is taken for a member.
pub fn role_of(annotations: Option<&Annotations>) -> Result<ContainerRole, RoleError> {
    let mut found: Option<(&Family, ContainerRole)> = None;
    for family in families(annotations) {
        let role = family.role(annotations)?;
        match &found {
            Some((first, known)) if *known != role => {
                let (one, other) = (first.engine, family.engine);
                return Err(RoleError::Disagreement { one, other });
            }
            Some(_) => {}
            None => found = Some((family, role)),
        }
    }
    Ok(found.map_or(ContainerRole::Single, |(_, role)| role))
}

/// Takes out what the annotations say of a sandbox: the role is [`ContainerRole::Single`] then.
pub fn make_single(annotations: &mut Annotations) {
    for family in &FAMILIES {
        annotations.remove(family.kind);
        annotations.remove(family.sandbox);
    }
}

/// Whether Podman has written the annotations, which uses CRI-O's keys.
#[must_use]
pub fn are_of_podman(annotations: Option<&Annotations>) -> bool {
    annotations.and_then(|all| all.get(PODMAN.0)).is_some_and(|name| name == PODMAN.1)
}

/// Whether CRI-O has written the annotations.
#[must_use]
pub fn are_of_cri_o(annotations: Option<&Annotations>) -> bool {
    families(annotations).any(|family| *family == CRI_O) && !are_of_podman(annotations)
}

fn families(annotations: Option<&Annotations>) -> impl Iterator<Item = &'static Family> {
    let has = move |key: &str| annotations.is_some_and(|all| all.contains_key(key));
    FAMILIES.iter().filter(move |family| has(family.kind) || has(family.sandbox))
}

impl Family {
    fn role(&self, annotations: Option<&Annotations>) -> Result<ContainerRole, RoleError> {
        let get = |key| annotations.and_then(|all| all.get(key)).map(String::as_str);
        let sandbox = get(self.sandbox).filter(|id| !id.is_empty());
        match (get(self.kind), sandbox) {
            (Some("sandbox" | "podsandbox"), _) => Ok(ContainerRole::PodSandbox),
            (Some("container") | None, Some(id)) => {
                identifier::check("sandbox id", id)
                    .map_err(|source| RoleError::Sandbox { key: self.sandbox, source })?;
                Ok(ContainerRole::PodMember(id.to_owned()))
            }
            _ => Ok(ContainerRole::Single),
        }
    }
}

/// The limits of a whole pod that its engine tells beforehand; `None` where it does not. The units
/// are those of the OCI spec.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct PodLimits {
    pub(crate) quota: Option<i64>,
    pub(crate) period: Option<u64>,
    pub(crate) memory: Option<i64>,
}

/// As CRI's messages are written in JSON. 0 is none.
#[derive(Default, Deserialize)]
#[serde(default)]
struct CriResources {
    cpu_period: i64,
    cpu_quota: i64,
    memory_limit_in_bytes: i64,
}

impl PodLimits {
    /// containerd's or CRI-O's, where it alone speaks.
    pub(crate) fn of(annotations: Option<&Annotations>) -> Self {
        let mut speaking = families(annotations);
        match (speaking.next(), speaking.next()) {
            (None, _) | (Some(&CONTAINERD), None) => Self::of_containerd(annotations),
            (Some(&CRI_O), None) => Self::of_cri_o(annotations),
            _ => Self::default(),
        }
    }

    fn of_containerd(annotations: Option<&Annotations>) -> Self {
        let number = |key: &str| annotations?.get(key)?.parse::<i64>().ok();
        Self {
            quota: number(QUOTA),
            period: number(PERIOD).and_then(|period| u64::try_from(period).ok()),
            memory: number(MEMORY),
        }
    }

    /// CRI-O sets one of the names. The other one may be the pod's author speaking: then neither
    /// counts.
    fn of_cri_o(annotations: Option<&Annotations>) -> Self {
        let mut told = CRI_O_RESOURCES.iter().filter_map(|key| annotations?.get(*key));
        let (Some(text), None) = (told.next(), told.next()) else { return Self::default() };
        let told: CriResources = serde_json::from_str(text).unwrap_or_default();
        let positive = |number: i64| Some(number).filter(|number| *number > 0);
        Self {
            quota: positive(told.cpu_quota),
            period: positive(told.cpu_period).and_then(|period| u64::try_from(period).ok()),
            memory: positive(told.memory_limit_in_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CRI: (&str, &str) = ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id");
    const CRIO: (&str, &str) =
        ("io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID");

    fn annotations(pairs: &[(&str, &str)]) -> Annotations {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn role(pairs: &[(&str, &str)]) -> Result<ContainerRole, RoleError> {
        role_of(Some(&annotations(pairs)))
    }

    #[test]
    fn roles_of_containerd_and_cri_o() {
        assert_eq!(role(&[(CRI.0, "sandbox"), (CRI.1, "p1")]), Ok(ContainerRole::PodSandbox));
        let member = |id: &str| Ok(ContainerRole::PodMember(id.to_owned()));
        assert_eq!(role(&[(CRI.0, "container"), (CRI.1, "p1")]), member("p1"));
        assert_eq!(role(&[(CRI.1, "p1")]), member("p1"));
        assert_eq!(role(&[(CRIO.0, "container"), (CRIO.1, "p2")]), member("p2"));
        assert_eq!(role(&[("other", "container")]), Ok(ContainerRole::Single));
        assert_eq!(role_of(None), Ok(ContainerRole::Single));
    }

    #[test]
    fn the_sandbox_of_a_member_is_another_ones() {
        assert_eq!(ContainerRole::PodMember("p1".to_owned()).sandbox_of("c1"), "p1");
        assert_eq!(ContainerRole::PodSandbox.sandbox_of("p1"), "p1");
    }

    #[test]
    fn a_sandbox_that_would_leave_its_directory_is_refused_with_its_key() {
        for id in ["/etc", "..", "../x", ".x", "a/b", "a\0b"] {
            for key in [CRI.1, CRIO.1, "io.kubernetes.sandbox.id"] {
                let error = role(&[(key, id)]).unwrap_err().to_string();
                assert!(
                    error.starts_with(&format!("annotation {key}: the sandbox id ")),
                    "{error}"
                );
            }
        }
    }

    #[test]
    fn kind_and_sandbox_come_from_one_engine_and_two_must_agree() {
        let crio = [(CRIO.0, "container"), (CRIO.1, "p2")];
        let with = |more: &[(&str, &str)]| role(&[&crio, more].concat());
        let member = Ok(ContainerRole::PodMember("p2".to_owned()));
        assert_eq!(with(&[(CRI.0, "container"), (CRI.1, "p2")]), member);
        for lie in [(CRI.1, "p1"), (CRI.0, "sandbox"), (CRI.0, "container")] {
            let error = with(&[lie]).unwrap_err().to_string();
            assert!(error.contains("containerd and of CRI-O disagree"), "{error}");
        }
    }

    #[test]
    fn a_pods_size_is_containerds_to_tell() {
        let size = [(QUOTA, "200000"), (PERIOD, "100000"), (MEMORY, "1048576")];
        let of = |more: &[(&str, &str)]| PodLimits::of(Some(&annotations(&[&size, more].concat())));
        let told =
            PodLimits { quota: Some(200_000), period: Some(100_000), memory: Some(1_048_576) };
        assert_eq!(of(&[(CRI.0, "sandbox")]), told);
        assert_eq!(of(&[(CRIO.0, "sandbox")]), PodLimits::default());
        assert_eq!(of(&[(CRIO.0, "sandbox"), (CRI.0, "sandbox")]), PodLimits::default());
        assert_eq!(PodLimits::of(None), PodLimits::default());
    }

    #[test]
    fn a_pods_size_is_cri_os_to_tell_under_one_name() {
        let size = r#"{"cpu_period":100000,"cpu_quota":200000,"cpu_shares":2048,"memory_limit_in_bytes":1048576}"#;
        let [older, newer] = CRI_O_RESOURCES;
        let of = |pairs: &[(&str, &str)]| {
            PodLimits::of(Some(&annotations(&[&[(CRIO.0, "sandbox")], pairs].concat())))
        };
        let told =
            PodLimits { quota: Some(200_000), period: Some(100_000), memory: Some(1_048_576) };
        assert_eq!(of(&[(older, size)]), told);
        assert_eq!(of(&[(newer, size)]), told);
        for nothing in [&[(older, size), (newer, size)][..], &[(older, "null")], &[(older, "{}")]] {
            assert_eq!(of(nothing), PodLimits::default(), "{nothing:?}");
        }
    }

    #[test]
    fn annotations_tell_cri_o_from_podman() {
        let of = |pairs: &[(&str, &str)]| {
            let all = annotations(pairs);
            (are_of_cri_o(Some(&all)), are_of_podman(Some(&all)))
        };
        assert_eq!(of(&[(CRIO.0, "container")]), (true, false));
        assert_eq!(of(&[(CRIO.0, "container"), PODMAN]), (false, true));
        assert_eq!(of(&[(CRI.0, "container")]), (false, false));
    }

    #[test]
    fn without_what_they_say_of_a_sandbox_annotations_are_a_single_containers() {
        let mut all = annotations(&[(CRIO.0, "container"), (CRIO.1, "p"), PODMAN]);
        make_single(&mut all);
        assert_eq!(role_of(Some(&all)), Ok(ContainerRole::Single));
        assert!(are_of_podman(Some(&all)));
    }
}
