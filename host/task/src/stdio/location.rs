//! Where a stream goes, as engines write it.

use std::path::PathBuf;

/// Where a stream goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Location {
    /// It is not wanted.
    Nowhere,
    /// A fifo or file that is there already.
    Path(PathBuf),
    /// A file to append to, made if need be.
    File(PathBuf),
    /// A program that reads both output streams.
    Program {
        /// Absolute.
        path: PathBuf,
        /// Its arguments, without its own name.
        args: Vec<String>,
    },
}

/// Why a location makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum LocationError {
    #[error(
        "{text:?} has a scheme that is not supported: use a path, fifo://, file:// or binary://"
    )]
    Scheme { text: String },
    #[error("{text:?} has no absolute path")]
    NotAbsolute { text: String },
    #[error("{text:?} has a malformed % sequence")]
    Escape { text: String },
    #[error("{text:?} cannot be read from: stdin must be a fifo")]
    NotForStdin { text: String },
}

impl Location {
    /// Reads a location as containerd's shims do.
    pub(crate) fn of(text: &str) -> Result<Self, LocationError> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return match text {
                "" => Ok(Self::Nowhere),
                path => absolute(path.to_owned(), text).map(Self::Path),
            };
        };
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        match scheme {
            "fifo" => absolute(unescape(path, false, text)?, text).map(Self::Path),
            "file" => absolute(unescape(path, false, text)?, text).map(Self::File),
            "binary" => {
                let path = absolute(unescape(path, false, text)?, text)?;
                Ok(Self::Program { path, args: arguments(query, text)? })
            }
            _ => Err(LocationError::Scheme { text: text.to_owned() }),
        }
    }
}

/// A query's keys, each followed by the first value that it has: `a=1&b&a=2` is `a 1 b ""`.
fn arguments(query: &str, text: &str) -> Result<Vec<String>, LocationError> {
    let mut keys: Vec<String> = Vec::new();
    let mut args = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let key = unescape(key, true, text)?;
        if !keys.contains(&key) {
            args.push(key.clone());
            args.push(unescape(value, true, text)?);
            keys.push(key);
        }
    }
    Ok(args)
}

fn absolute(path: String, text: &str) -> Result<PathBuf, LocationError> {
    if path.starts_with('/') {
        Ok(path.into())
    } else {
        Err(LocationError::NotAbsolute { text: text.to_owned() })
    }
}

/// Undoes percent-encoding (RFC 3986, 2.1); in a query `+` is a space besides.
fn unescape(part: &str, query: bool, text: &str) -> Result<String, LocationError> {
    let malformed = || LocationError::Escape { text: text.to_owned() };
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match first {
            b'%' => {
                let (digits, tail) = tail.split_at_checked(2).ok_or_else(malformed)?;
                let digits = str::from_utf8(digits)
                    .ok()
                    .filter(|digits| !digits.starts_with('+'))
                    .ok_or_else(malformed)?;
                bytes.push(u8::from_str_radix(digits, 16).map_err(|_| malformed())?);
                rest = tail;
            }
            b'+' if query => bytes.push(b' '),
            byte => bytes.push(*byte),
        }
    }
    String::from_utf8(bytes).map_err(|_| malformed())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn program(path: &str, args: &[&str]) -> Location {
        Location::Program {
            path: path.into(),
            args: args.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn every_form_is_understood() {
        for (text, expected) in [
            ("", Location::Nowhere),
            ("/run/x/stdout", Location::Path("/run/x/stdout".into())),
            ("/run/50%/stdout", Location::Path("/run/50%/stdout".into())),
            ("fifo:///run/x", Location::Path("/run/x".into())),
            ("file:///var/log/a%20b", Location::File("/var/log/a b".into())),
            ("binary:///bin/logger", program("/bin/logger", &[])),
            (
                "binary:///bin/logger?a=1&b=x+y%26&c&a=2",
                program("/bin/logger", &["a", "1", "b", "x y&", "c", ""]),
            ),
        ] {
            assert_eq!(Location::of(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        for text in [
            "relative",
            "file://relative/x",
            "ttrpc+unix:///x?streaming_id=1",
            "file:///a%2",
            "file:///a%zz",
            "file:///%+1",
        ] {
            assert!(Location::of(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_path_survives_escaping(path in "/.{0,30}") {
            let escaped: String = path.bytes().map(|byte| format!("%{byte:02X}")).collect();
            prop_assert_eq!(Location::of(&format!("file://{escaped}")).unwrap(), Location::File(path.into()));
        }

        #[test]
        fn garbage_never_panics(text in ".{0,60}") {
            let _ = Location::of(&text);
            let _ = Location::of(&format!("binary:///{text}"));
        }
    }
}
