//! The OCI runtime specification to and from the agent's messages.
//!
//! The protocol froze an older specification and cannot tell an absent value from a zero, so:
//!
//! * `*_to_wire` refuses what the messages have no field for, and a zero that would be read as
//!   absent where the two differ ([`ConvertError::NotCarried`]). Nothing is dropped in silence.
//! * `*_from_wire` reads zero and empty as absent, except where the wire's zero is the safer
//!   reading (empty capability sets, `oomScoreAdj`). It reads what this module writes and what
//!   the runtimes of Kata Containers 4 write.
//!
//! The reference for fields and their names in errors is
//! <https://github.com/opencontainers/runtime-spec> (config.md and config-linux.md).

mod linux;
mod process;
mod resources;
mod seccomp;
mod spec;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub use process::{process_from_wire, process_to_wire};
pub use resources::{resources_from_wire, resources_to_wire};
pub use spec::{spec_from_wire, spec_to_wire};

/// Why a configuration cannot cross the wall. Fields are named as in config.json.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConvertError {
    /// The messages have no field for this, or none for this value of it.
    #[error(
        "the agent protocol cannot carry {field}; remove it from the container's configuration"
    )]
    NotCarried {
        /// The field, e.g. `linux.personality`.
        field: &'static str,
    },
    /// A path is not text, as protobuf strings must be.
    #[error("the agent protocol cannot carry {field} {path:?} because it is not UTF-8")]
    NotUtf8 {
        /// The field.
        field: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// A value is outside of what the receiving type can hold or knows.
    #[error("{field} cannot be {value:?}")]
    BadValue {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
    },
}

/// Refuses `field` when it says something.
fn refuse(field: &'static str, says_something: bool) -> Result<(), ConvertError> {
    if says_something { Err(ConvertError::NotCarried { field }) } else { Ok(()) }
}

/// A list's or map's content, none when it is absent.
fn or_empty<T: Clone + Default>(value: &Option<T>) -> T {
    value.clone().unwrap_or_default()
}

/// The wire's zero, false or empty value is the specification's absent one.
fn unless_empty<T: Default + PartialEq>(value: T) -> Option<T> {
    (value != T::default()).then_some(value)
}

fn path_to_wire(field: &'static str, path: &Path) -> Result<String, ConvertError> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| ConvertError::NotUtf8 { field, path: path.to_owned() })
}

fn optional_path_to_wire(
    field: &'static str,
    path: Option<&PathBuf>,
) -> Result<String, ConvertError> {
    path.map_or_else(|| Ok(String::new()), |path| path_to_wire(field, path))
}

fn path_from_wire(path: String) -> Option<PathBuf> {
    unless_empty(path).map(PathBuf::from)
}

fn list_to_wire<T, W>(
    list: &Option<Vec<T>>,
    convert: impl FnMut(&T) -> Result<W, ConvertError>,
) -> Result<Vec<W>, ConvertError> {
    list.iter().flatten().map(convert).collect()
}

/// An empty list of the wire is an absent one.
fn list_from_wire<W, T>(
    list: Vec<W>,
    convert: impl FnMut(W) -> Result<T, ConvertError>,
) -> Result<Option<Vec<T>>, ConvertError> {
    if list.is_empty() {
        return Ok(None);
    }
    list.into_iter().map(convert).collect::<Result<_, _>>().map(Some)
}

/// A number in another width.
fn number<T, U>(field: &'static str, value: T) -> Result<U, ConvertError>
where
    T: Copy + ToString,
    U: TryFrom<T>,
{
    U::try_from(value).map_err(|_| bad_value(field, &value.to_string()))
}

/// A name of the specification, e.g. `SCMP_ACT_ERRNO`.
fn name<T: std::str::FromStr>(field: &'static str, text: &str) -> Result<T, ConvertError> {
    text.parse().map_err(|_| bad_value(field, text))
}

fn bad_value(field: &'static str, value: &str) -> ConvertError {
    // The text may come from the other side: an error stays a sentence.
    ConvertError::BadValue { field, value: value.chars().take(64).collect() }
}
