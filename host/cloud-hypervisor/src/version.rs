//! Which versions of the VMM can be used.

/// The oldest major version: the first one that has landlock. Older ones would take the setting and do nothing.
const OLDEST: u32 = 42;

/// Refuses a VMM that is too old, with a sentence. `version` is what it calls itself.
pub(crate) fn check(version: &str) -> Result<(), String> {
    let major =
        version.trim_start_matches('v').split('.').next().and_then(|major| major.parse().ok());
    match major {
        Some(major) if OLDEST <= major => Ok(()),
        _ => {
            let printable: String =
                version.chars().filter(char::is_ascii_graphic).take(40).collect();
            Err(format!("its version is {printable:?}; install Cloud Hypervisor {OLDEST} or later"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_nameless_versions_are_refused() {
        assert_eq!(check("v54.0.0"), Ok(()));
        assert_eq!(check("54.0.0-dirty"), Ok(()));
        assert!(check("v38.0").unwrap_err().contains("\"v38.0\""));
        assert!(check("").is_err() && check("x\n").is_err());
    }
}
