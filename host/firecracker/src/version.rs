//! Which versions of the VMM can be used.

/// The oldest version: the first one that tells kernels of its devices through ACPI, as distributions' kernels need it.
const OLDEST: (u32, u32) = (1, 8);

/// Refuses a VMM that is too old, with a sentence. `version` is what it calls itself.
pub(crate) fn check(version: &str) -> Result<(), String> {
    let mut numbers = version.trim_start_matches('v').split(['.', '-']).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if OLDEST <= (major, minor) => Ok(()),
        _ => {
            let printable: String =
                version.chars().filter(char::is_ascii_graphic).take(40).collect();
            let (major, minor) = OLDEST;
            Err(format!(
                "its version is {printable:?}; install Firecracker {major}.{minor} or later"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_nameless_versions_are_refused() {
        for new in ["1.8.0", "v1.10.1", "1.17.0-dev", "2.0.0"] {
            assert_eq!(check(new), Ok(()), "{new}");
        }
        assert!(check("1.7.0").unwrap_err().contains("\"1.7.0\""));
        assert!(check("0.25.2").is_err() && check("").is_err() && check("1").is_err());
    }
}
