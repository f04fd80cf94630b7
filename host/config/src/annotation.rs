//! Annotations: what a pod may change, if the administrator lets it.
//!
//! Whoever writes a pod is not whoever owns the host. So an annotation works only if
//! `enable_annotations` lists its exact name, and what chooses a path, a program, its arguments or
//! a kernel parameter is refused even then: each such annotation has been a way from a pod to root
//! on the host (CVE-2020-27151, CVE-2026-44210, CVE-2026-50540).

use std::collections::HashMap;

use crate::annotation_names::{CONFIG_PATH_REASON, RENAMED, allowable, forbidden};
use crate::error::closest;
use crate::section::Section;
use crate::setting::Input;
use crate::{ConfigError, HostConfig};

/// What all annotations that change the configuration begin with.
const PREFIX: &str = "io.katacontainers.config.";

/// Upstream's annotation that loads another configuration file.
const CONFIG_PATH: &str = "io.katacontainers.config_path";

/// What is wrong with an annotation that is in the tables here, but has no key. A test holds that
/// there is none.
const NO_KEY: &str = "is not supported in this version; remove it";

impl HostConfig {
    /// What `enable_annotations` lists in vain, because no pod may ever set it, each with the
    /// reason.
    pub fn listed_in_vain(&self) -> impl Iterator<Item = (&str, &'static str)> {
        let listed = self.vm().enable_annotations.iter();
        listed.filter_map(|name| forbidden(name).map(|reason| (name.as_str(), reason)))
    }

    /// This configuration as the annotations of a pod change it. Annotations outside
    /// `io.katacontainers.config` are not looked at; one inside that is unknown, not allowed or
    /// wrong is an error.
    pub fn with_annotations(
        &self,
        annotations: &HashMap<String, String>,
    ) -> Result<Self, ConfigError> {
        let mut ours: Vec<(&String, &String)> = annotations
            .iter()
            .filter(|(name, _)| name.starts_with(PREFIX) || *name == CONFIG_PATH)
            .collect();
        // A map has no order; without one, which of two mistakes is reported would change from run
        // to run.
        ours.sort();

        let mut config = self.clone();
        for (name, text) in &ours {
            config.annotate(self, name, text)?;
        }
        config.check_agreement(&ours)?;
        Ok(config)
    }

    /// Refuses annotations that the file's keys, or others of them, do not go with.
    fn check_agreement(&self, annotations: &[(&String, &String)]) -> Result<(), ConfigError> {
        let Some((section, key, problem)) = self.contradictions().next() else { return Ok(()) };
        let is_meant = |name: &str| {
            let entry = name.rsplit('.').next().unwrap_or(name);
            entry == key || problem.contains(&format!("`{entry}`"))
        };
        let meant = annotations.iter().find(|(name, _)| is_meant(name)).or(annotations.last());
        let name = meant.map(|(name, _)| (*name).clone()).unwrap_or_default();
        let problem =
            format!("leads to what is not possible: `hypervisor.{section}.{key}` {problem}");
        Err(ConfigError::AnnotationInvalid { name, problem })
    }

    /// Applies one annotation; `base` says what is allowed.
    fn annotate(&mut self, base: &Self, name: &str, text: &str) -> Result<(), ConfigError> {
        let Some(rest) = name.strip_prefix(PREFIX) else {
            let name = name.to_owned();
            return Err(ConfigError::AnnotationForbidden { name, reason: CONFIG_PATH_REASON });
        };
        let entry = rest.strip_prefix("hypervisor.").unwrap_or(rest);
        if let Some(reason) = forbidden(entry) {
            return Err(ConfigError::AnnotationForbidden { name: name.to_owned(), reason });
        }
        let renamed = RENAMED.iter().find(|(from, _)| *from == entry).map(|(_, to)| *to);
        // `hypervisor.` before the name of a runtime or agent annotation is no annotation, nor is
        // its lack before the others.
        let of_hypervisor = !(entry.starts_with("runtime.") || entry.starts_with("agent."));
        let known = allowable().any(|known| known == entry)
            && of_hypervisor == rest.starts_with("hypervisor.");
        if !known {
            let suggestion = closest(entry, allowable());
            return Err(ConfigError::AnnotationUnknown { name: name.to_owned(), suggestion });
        }
        if !base.vm().enable_annotations.iter().any(|allowed| allowed == entry) {
            let (name, entry) = (name.to_owned(), entry.to_owned());
            return Err(ConfigError::AnnotationDenied { name, entry });
        }
        self.assign(renamed.unwrap_or(entry), text)
            .map_err(|problem| ConfigError::AnnotationInvalid { name: name.to_owned(), problem })
    }

    /// Sets the key `[section.]key`, where no section means the hypervisor's.
    fn assign(&mut self, key: &str, text: &str) -> Result<(), String> {
        match key {
            "default_memory" => {
                let mib = memory_mib(text)?.to_string();
                return self.annotate_hypervisor(key, &mib);
            }
            "agent.kernel_modules" => {
                check_modules(text)?;
            }
            _ => {}
        }
        match key.split_once('.') {
            Some(("runtime", key)) => set(&mut self.runtime, key, text),
            Some(("agent", key)) => set(&mut self.agent, key, text),
            _ => self.annotate_hypervisor(key, text),
        }
    }
}

/// Sets a key of a section as an annotation writes it.
pub(crate) fn set<S: Section>(section: &mut S, key: &str, text: &str) -> Result<(), String> {
    let input = Input::Annotation(text);
    if let Some(off) = S::OFF.iter().find(|off| off.name == key) {
        return off.check(input);
    }
    if section.set(key, input)? { Ok(()) } else { Err(NO_KEY.to_owned()) }
}

/// Reads an amount of memory: MiB, or a number with one of Kubernetes' units (`512Mi`, `2Gi`, `2G`,
/// …). Rounded up to MiB.
fn memory_mib(text: &str) -> Result<u32, String> {
    const MIB: u64 = 1 << 20;
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let scale: Option<u64> = match unit.trim() {
        "" | "Mi" | "MiB" => Some(MIB),
        "B" => Some(1),
        "K" | "k" | "KB" => Some(1000),
        "Ki" | "KiB" => Some(1 << 10),
        "M" | "MB" => Some(1_000_000),
        "G" | "GB" => Some(1_000_000_000),
        "Gi" | "GiB" => Some(1 << 30),
        "T" | "TB" => Some(1_000_000_000_000),
        "Ti" | "TiB" => Some(1 << 40),
        _ => None,
    };
    let bytes = number.parse::<u64>().ok().zip(scale).and_then(|(n, scale)| n.checked_mul(scale));
    bytes.and_then(|bytes| u32::try_from(bytes.div_ceil(MIB)).ok()).ok_or_else(|| {
        format!("must be an amount of memory in MiB or with a unit, as in \"2Gi\", not {text:?}")
    })
}

/// Module names only: a module's parameters are kernel parameters, which no annotation sets.
fn check_modules(text: &str) -> Result<(), String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let modules = || text.split(';').map(str::trim).filter(|module| !module.is_empty());
    match modules().find(|module| !module.chars().all(is_name)) {
        None => Ok(()),
        Some(module) => Err(format!(
            "must be names of kernel modules separated by \";\", without parameters, which only the administrator sets; {module:?} is none"
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::annotation_names::check_enabled;
    use crate::section::Key;

    fn with(enabled: &[&str], annotations: &[(&str, &str)]) -> Result<HostConfig, String> {
        let mut config = HostConfig::defaults(Path::new("/usr/local"));
        config.qemu.vm.enable_annotations = enabled.iter().map(ToString::to_string).collect();
        check_enabled(&config.qemu.vm.enable_annotations)?;
        let map = annotations
            .iter()
            .map(|(name, text)| (format!("{PREFIX}{name}"), (*text).to_owned()))
            .collect();
        config.with_annotations(&map).map_err(|error| error.to_string())
    }

    #[test]
    fn allowed_annotation_changes_its_key() {
        let config = with(
            &["default_memory", "default_max_vcpus", "runtime.create_container_timeout"],
            &[
                ("hypervisor.default_memory", "1Gi"),
                ("hypervisor.default_max_vcpus", "3"),
                ("runtime.create_container_timeout", "77"),
            ],
        )
        .unwrap();
        assert_eq!(config.qemu.vm.default_memory, 1024);
        assert_eq!(config.qemu.vm.default_maxvcpus, 3);
        assert_eq!(config.agent.create_container_timeout, 77);
    }

    #[test]
    fn annotation_is_denied_unless_listed() {
        for name in allowable() {
            let full = match name.split_once('.') {
                Some(("runtime" | "agent", _)) => name.to_owned(),
                _ => format!("hypervisor.{name}"),
            };
            let error = with(&[], &[(&full, "1")]).unwrap_err();
            assert!(error.contains("is not allowed") && error.contains(name), "{error}");
        }
    }

    #[test]
    fn every_allowable_name_has_a_key() {
        for name in allowable() {
            let mut config = HostConfig::defaults(Path::new("/usr/local"));
            let key = RENAMED.iter().find(|(from, _)| *from == name).map_or(name, |(_, to)| to);
            assert_ne!(config.assign(key, "1").err().as_deref(), Some(NO_KEY), "{name}");
        }
    }

    #[test]
    fn nothing_that_is_a_path_an_argument_or_a_kernel_parameter_can_be_allowed() {
        let config = HostConfig::defaults(Path::new("/usr/local"));
        let qualified = |prefix: &str, keys: Vec<Key>| -> Vec<(String, String)> {
            keys.into_iter().map(|key| (format!("{prefix}{}", key.name), key.expected)).collect()
        };
        let mut keys = qualified("", config.qemu.keys());
        keys.extend(qualified("runtime.", config.runtime.keys()));
        keys.extend(qualified("agent.", config.agent.keys()));
        for (name, expected) in keys {
            let free_text = expected.contains("path") || expected.contains("a string");
            if free_text && name != "agent.kernel_modules" {
                let section = if name.contains('.') { "" } else { "hypervisor." };
                let set = format!("{section}{name}");
                assert!(with(&[&name], &[(&set, "x")]).is_err(), "{name} must not be allowable");
            }
        }
    }

    #[test]
    fn what_no_pod_may_set_is_listed_in_vain() {
        let set = [("hypervisor.kernel_params", "debug")];
        let error = with(&["kernel_params"], &set).unwrap_err();
        assert!(error.contains("parameters of the guest kernel"), "{error}");
        let config = with(&["kernel_params", "default_vcpus"], &[]).unwrap();
        assert_eq!(
            config.listed_in_vain().map(|(name, _)| name).collect::<Vec<_>>(),
            ["kernel_params"]
        );
    }

    #[test]
    fn pattern_in_enable_annotations_is_refused() {
        assert!(with(&[".*"], &[]).unwrap_err().contains("exact names"));
        assert!(with(&["default_v.*"], &[]).unwrap_err().contains("exact names"));
        assert!(with(&["default_vcpu"], &[]).unwrap_err().contains("default_vcpus"));
    }

    #[test]
    fn forbidden_and_unknown_annotations_say_so() {
        let forbidden = with(&[], &[("hypervisor.path", "/bin/sh")]).unwrap_err();
        assert!(forbidden.contains("never accepted"), "{forbidden}");
        let unknown = with(&[], &[("hypervisor.default_vcpu", "2")]).unwrap_err();
        assert!(unknown.contains("did you mean `default_vcpus`"), "{unknown}");
        let bare = with(&["default_vcpus"], &[("default_vcpus", "2")]).unwrap_err();
        assert!(bare.contains("not known"), "{bare}");

        let map = HashMap::from([(CONFIG_PATH.to_owned(), "/tmp/x".to_owned())]);
        let config = HostConfig::defaults(Path::new("/usr/local"));
        assert!(config.with_annotations(&map).unwrap_err().to_string().contains("never accepted"));
    }

    #[test]
    fn annotation_for_a_missing_feature_may_only_switch_it_off() {
        let enabled = &["enable_iommu"];
        assert!(with(enabled, &[("hypervisor.enable_iommu", "false")]).is_ok());
        let error = with(enabled, &[("hypervisor.enable_iommu", "true")]).unwrap_err();
        assert!(error.contains("enable_iommu = true is not supported"), "{error}");
    }

    #[test]
    fn module_parameters_are_refused_in_an_annotation() {
        let enabled = &["agent.kernel_modules"];
        let config = with(enabled, &[("agent.kernel_modules", "tun; veth")]).unwrap();
        assert_eq!(config.agent.kernel_modules, ["tun", "veth"]);
        assert!(with(enabled, &[("agent.kernel_modules", "tun debug=1")]).is_err());
    }

    #[test]
    fn memory_takes_units_and_rounds_up() {
        assert_eq!(memory_mib("512"), Ok(512));
        assert_eq!(memory_mib("512Mi"), Ok(512));
        assert_eq!(memory_mib("1G"), Ok(954));
        assert_eq!(memory_mib("1B"), Ok(1));
        assert!(memory_mib("").is_err());
        assert!(memory_mib("-1").is_err());
        assert!(memory_mib("99999999999999999999").is_err());
        assert!(memory_mib("18446744073709551615Ti").is_err());
    }
}
