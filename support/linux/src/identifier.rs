//! Ids that come from outside and end up in paths: the one rule for them all.

/// Longest id accepted: containerd allows 76 characters, CRI-O uses 64.
const MAX_LENGTH: usize = 128;

/// Why an id or namespace is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdentifierError {
    /// Nothing was given.
    #[error("the {what} is missing")]
    Missing {
        /// "container id", "namespace" and the like.
        what: &'static str,
    },
    /// Too long to be used in paths.
    #[error("the {what} has {length} characters, at most {MAX_LENGTH} are allowed")]
    TooLong {
        /// "container id", "namespace" and the like.
        what: &'static str,
        /// How long it is.
        length: usize,
    },
    /// Something that could leave a directory, or be taken for an option or for a hidden file.
    #[error(
        "the {what} {value:?} may only hold letters, digits, '.', '_', '+' and '-', and must begin with a letter or digit"
    )]
    Malformed {
        /// "container id", "namespace" and the like.
        what: &'static str,
        /// What was given.
        value: String,
    },
}

/// Accepts `value` if it can be a file name and nothing else: letters, digits, `.`, `_`, `+`, `-`,
/// beginning with a letter or digit.
///
/// `what` names it in the error.
pub fn check(what: &'static str, value: &str) -> Result<(), IdentifierError> {
    let Some(first) = value.chars().next() else { return Err(IdentifierError::Missing { what }) };
    if value.len() > MAX_LENGTH {
        return Err(IdentifierError::TooLong { what, length: value.len() });
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '+' | '-');
    if !first.is_ascii_alphanumeric() || !value.chars().all(allowed) {
        return Err(IdentifierError::Malformed { what, value: value.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_accepts_what_engines_use() {
        for id in [
            "a",
            "redis-1",
            "k8s.io",
            "my_container-1.2+x",
            "moby",
            "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        ] {
            assert_eq!(check("id", id), Ok(()), "{id}");
        }
    }

    #[test]
    fn check_refuses_what_could_leave_a_directory() {
        for id in ["", ".", "..", ".x", "../x", "/etc", "a/b", "-x", "_x", "+x", "a b", "a\0", "é"]
        {
            assert!(check("id", id).is_err(), "{id:?}");
        }
        assert!(check("id", &"a".repeat(129)).is_err());
    }
}
