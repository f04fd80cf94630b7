//! Ids that come from the host and become names of files.

use crate::status::invalid;

/// Longest id; with the agent's directories around it, paths stay far below the system's limit.
const MAX_ID: usize = 128;

/// Checks an id of a container or a process: letters, digits, `_`, `.` and `-`, and no name that
/// means something to the file system.
///
/// # Errors
///
/// INVALID_ARGUMENT, quoting a bounded part of the id.
pub(crate) fn check<'a>(what: &str, id: &'a str) -> ttrpc::Result<&'a str> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let good =
        (1..=MAX_ID).contains(&id.len()) && id.bytes().all(allowed) && !matches!(id, "." | "..");
    if good {
        return Ok(id);
    }
    let shown: String = id.chars().take(MAX_ID).collect();
    Err(invalid(format!(
        "{shown:?} is no {what} id: expected 1 to {MAX_ID} letters, digits, '_', '.' or '-'"
    )))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn check_refuses_what_could_leave_a_directory() {
        for bad in ["", ".", "..", "a/b", "../x", "a b", "ä", &"x".repeat(129)] {
            assert!(check("container", bad).is_err(), "{bad:?}");
        }
        for good in ["a", "0f3c", "web_1.2-x", "...", "-"] {
            assert_eq!(check("container", good).unwrap(), good);
        }
    }

    proptest! {
        #[test]
        fn check_passes_only_single_path_components(id in ".{0,140}") {
            if check("process", &id).is_ok() {
                let path = std::path::Path::new(&id);
                let components: Vec<_> = path.components().collect();
                prop_assert!(matches!(components[..], [std::path::Component::Normal(_)]));
            }
        }
    }
}
