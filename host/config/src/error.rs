//! What can be wrong with a configuration.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::tree::Entry;

/// Where a setting was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The file.
    pub file: Arc<PathBuf>,
    /// The line in it, from 1.
    pub line: usize,
    /// The key with its tables, as it stands in the file: `hypervisor.qemu.path`.
    pub key: String,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A quoted key may hold anything, and this ends in logs and on terminals.
        write!(f, "{}:{}: `{}`", self.file.display(), self.line, self.key.escape_debug())
    }
}

/// What is wrong with the value of `entry`.
pub(crate) fn invalid(entry: &Entry, problem: String) -> ConfigError {
    ConfigError::Invalid { origin: entry.origin.clone(), problem }
}

/// Why a configuration or an annotation was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that was named explicitly cannot be used.
    #[error("the configuration file {} named by {by} cannot be found; correct the path or remove the setting", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// What named it: `KATA_CONF_FILE` or `ConfigPath`.
        by: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The runtime's name in the engine asks for a configuration of its own, and there is none.
    #[error(
        "io.containerd.kata-{variant}.v2 takes its configuration from configuration-{variant}.toml, and none of these exists: {}; write one of them, or use io.containerd.kata.v2",
        Paths(looked_for)
    )]
    NoVariant {
        /// The word in the runtime's name.
        variant: String,
        /// The files that were looked for, none of which exists.
        looked_for: Vec<PathBuf>,
    },
    /// A file was named by a relative path, which would be taken relative to the container's
    /// bundle.
    #[error("the configuration file {} named by {by} is not an absolute path; write it from the root", path.display())]
    Relative {
        /// The path.
        path: PathBuf,
        /// What named it.
        by: &'static str,
    },
    /// A file or drop-in directory exists but cannot be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Somebody other than root could have written the file or directory.
    #[error("the configuration {} {problem}, so that others than root decide what root runs; {remedy}", path.display())]
    Untrusted {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// The command that mends it.
        remedy: String,
    },
    /// The file is not TOML.
    #[error("{}:{line}: this is not TOML: {reason}", file.display())]
    Syntax {
        /// The file.
        file: Arc<PathBuf>,
        /// The line, from 1.
        line: usize,
        /// The parser's words.
        reason: String,
    },
    /// A key or table that does not exist.
    #[error("{origin} is not known{}; remove it or correct its name", Suggestion(.suggestion))]
    Unknown {
        /// Where it stands.
        origin: Origin,
        /// The known name that looks most like it, if one does.
        suggestion: Option<String>,
    },
    /// A key's value cannot be accepted.
    #[error("{origin} {problem}")]
    Invalid {
        /// Where it stands.
        origin: Origin,
        /// What is wrong and what to write instead.
        problem: String,
    },
    /// An annotation that the administrator has not allowed.
    #[error(
        "annotation {name} is not allowed on this host; remove it, or have the administrator add \"{entry}\" to `enable_annotations`"
    )]
    AnnotationDenied {
        /// The annotation.
        name: String,
        /// What `enable_annotations` would have to list.
        entry: String,
    },
    /// An annotation that no administrator can allow.
    #[error("annotation {name} is never accepted: {reason}; remove it")]
    AnnotationForbidden {
        /// The annotation.
        name: String,
        /// Why.
        reason: &'static str,
    },
    /// An annotation that does not exist.
    #[error("annotation {name} is not known{}; remove it or correct its name", Suggestion(.suggestion))]
    AnnotationUnknown {
        /// The annotation.
        name: String,
        /// The known name that looks most like it, if one does.
        suggestion: Option<String>,
    },
    /// An annotation's value cannot be accepted.
    #[error("annotation {name} {problem}")]
    AnnotationInvalid {
        /// The annotation.
        name: String,
        /// What is wrong and what to write instead.
        problem: String,
    },
}

/// Prints ` (did you mean …?)`, or nothing.
struct Suggestion<'a>(&'a Option<String>);

impl fmt::Display for Suggestion<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => write!(f, " (did you mean `{name}`?)"),
            None => Ok(()),
        }
    }
}

/// The name of `known` that `name` was probably meant to be.
pub(crate) fn closest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    // One slip for every four letters: enough for a typing error, too little to turn one key into
    // another.
    let allowed = (name.len() / 4).clamp(1, 3);
    known
        .into_iter()
        .map(|candidate| (strsim::osa_distance(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, candidate)| candidate.to_owned())
}

/// Paths as a list in a sentence.
struct Paths<'a>(&'a [PathBuf]);

impl fmt::Display for Paths<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paths: Vec<_> = self.0.iter().map(|path| path.display().to_string()).collect();
        f.write_str(&paths.join(", "))
    }
}
