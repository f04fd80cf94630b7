//! The types that a key can have: how each is read from a file or an annotation, and how it is
//! written.

use std::path::{Path, PathBuf};

use crate::tree::Value;

/// Where a value comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Input<'a> {
    /// A configuration file.
    File(&'a Value),
    /// An annotation, which is always text.
    Annotation(&'a str),
}

impl Input<'_> {
    /// The value as a user would recognise it.
    pub(crate) fn shown(self) -> String {
        match self {
            Self::File(value) => value.shown(),
            Self::Annotation(text) => Value::Text(text.to_owned()).shown(),
        }
    }
}

/// A type that a key can have.
pub(crate) trait Setting: Sized {
    /// The type in words that follow "must be".
    fn expected() -> String;
    /// Reads a value of a file; `None` when it is not of this type.
    fn from_value(value: &Value) -> Option<Self>;
    /// Reads the text of an annotation; `None` when it is not of this type.
    fn from_text(text: &str) -> Option<Self>;
    /// The value as TOML.
    fn to_toml(&self) -> String;
}

/// Reads a setting, or says what was expected instead.
pub(crate) fn read<T: Setting>(input: Input<'_>) -> Result<T, String> {
    match input {
        Input::File(value) => T::from_value(value),
        Input::Annotation(text) => T::from_text(text),
    }
    .ok_or_else(|| format!("must be {}, not {}", T::expected(), input.shown()))
}

impl Setting for bool {
    fn expected() -> String {
        "true or false".to_owned()
    }
    fn from_value(value: &Value) -> Option<Self> {
        if let Value::Boolean(flag) = value { Some(*flag) } else { None }
    }
    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }
    fn to_toml(&self) -> String {
        self.to_string()
    }
}

impl Setting for u32 {
    fn expected() -> String {
        format!("a whole number from 0 to {}", Self::MAX)
    }
    fn from_value(value: &Value) -> Option<Self> {
        if let Value::Integer(number) = value { Self::try_from(*number).ok() } else { None }
    }
    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }
    fn to_toml(&self) -> String {
        self.to_string()
    }
}

impl Setting for f64 {
    fn expected() -> String {
        "a number".to_owned()
    }
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Float(number) => number.is_finite().then_some(*number),
            // Every count of CPUs is far below the numbers that a float cannot hold exactly.
            Value::Integer(number) => i32::try_from(*number).ok().map(Self::from),
            _ => None,
        }
    }
    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok().filter(|number: &Self| number.is_finite())
    }
    fn to_toml(&self) -> String {
        // `{:?}` always has a point, which TOML needs to see a float.
        format!("{self:?}")
    }
}

impl Setting for String {
    fn expected() -> String {
        "a string without control characters".to_owned()
    }
    fn from_value(value: &Value) -> Option<Self> {
        if let Value::Text(text) = value { Self::from_text(text) } else { None }
    }
    fn from_text(text: &str) -> Option<Self> {
        // These end in argument lists and on kernel command lines; a newline or a NUL has no
        // business there.
        (!text.chars().any(char::is_control)).then(|| text.to_owned())
    }
    fn to_toml(&self) -> String {
        toml::Value::String(self.clone()).to_string()
    }
}

impl Setting for PathBuf {
    fn expected() -> String {
        "an absolute path".to_owned()
    }
    fn from_value(value: &Value) -> Option<Self> {
        String::from_value(value).map(Self::from).filter(|path| path.is_absolute())
    }
    fn from_text(_: &str) -> Option<Self> {
        // Law: no annotation names a path of the host.
        None
    }
    fn to_toml(&self) -> String {
        self.to_string_lossy().into_owned().to_toml()
    }
}

/// `""` stands for `None`.
impl Setting for Option<PathBuf> {
    fn expected() -> String {
        "an absolute path or \"\"".to_owned()
    }
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Text(text) if text.is_empty() => Some(None),
            other => PathBuf::from_value(other).map(Some),
        }
    }
    fn from_text(_: &str) -> Option<Self> {
        // Law: no annotation names a path of the host.
        None
    }
    fn to_toml(&self) -> String {
        self.as_deref().unwrap_or(Path::new("")).to_path_buf().to_toml()
    }
}

/// In an annotation, items are separated by `;`.
impl<T: Setting> Setting for Vec<T> {
    fn expected() -> String {
        format!("a list, each item {}", T::expected())
    }
    fn from_value(value: &Value) -> Option<Self> {
        if let Value::List(items) = value {
            items.iter().map(T::from_value).collect()
        } else {
            None
        }
    }
    fn from_text(text: &str) -> Option<Self> {
        text.split(';').map(str::trim).filter(|item| !item.is_empty()).map(T::from_text).collect()
    }
    fn to_toml(&self) -> String {
        let items: Vec<String> = self.iter().map(T::to_toml).collect();
        format!("[{}]", items.join(", "))
    }
}

/// A directory of the host that every guest sees: `path`, `path:ro` or `path:rw`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindMount {
    /// The directory, absolute.
    pub source: PathBuf,
    /// Whether the guest may only read it. The default; writing needs `:rw`.
    pub read_only: bool,
}

impl Setting for BindMount {
    fn expected() -> String {
        "an absolute path, with \":ro\" or \":rw\" after it or not".to_owned()
    }
    fn from_value(value: &Value) -> Option<Self> {
        let Value::Text(text) = value else { return None };
        let (path, read_only) = match text.strip_suffix(":rw") {
            Some(path) => (path, false),
            None => (text.strip_suffix(":ro").unwrap_or(text), true),
        };
        let source = PathBuf::from_value(&Value::Text(path.to_owned()))?;
        Some(Self { source, read_only })
    }
    fn from_text(_: &str) -> Option<Self> {
        // Law: no annotation names a path of the host.
        None
    }
    fn to_toml(&self) -> String {
        let mode = if self.read_only { "ro" } else { "rw" };
        format!("{}:{mode}", self.source.display()).to_toml()
    }
}

/// Declares an enum whose values are words in the file.
macro_rules! choice {
    (
        $(#[doc = $about:literal])*
        pub enum $Choice:ident { $( $(#[doc = $doc:literal])* $Variant:ident = $word:literal, )+ }
    ) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $Choice { $( $(#[doc = $doc])* $Variant, )+ }

        impl $Choice {
            /// The word in the configuration file.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $( Self::$Variant => $word, )+ }
            }
        }

        impl $crate::setting::Setting for $Choice {
            fn expected() -> String {
                [$( concat!("\"", $word, "\""), )+].join(" or ")
            }
            fn from_value(value: &$crate::tree::Value) -> Option<Self> {
                match value {
                    $crate::tree::Value::Text(text) => Self::from_text(text),
                    _ => None,
                }
            }
            fn from_text(text: &str) -> Option<Self> {
                match text { $( $word => Some(Self::$Variant), )+ _ => None }
            }
            fn to_toml(&self) -> String {
                format!("\"{}\"", self.as_str())
            }
        }
    };
}
pub(crate) use choice;

choice! {
    /// How much a component says, from all to little.
    pub enum LogLevel {
        /// Everything.
        Trace = "trace",
        /// What helps to find a defect.
        Debug = "debug",
        /// What happened.
        Info = "info",
        /// What looks wrong but was survived.
        Warn = "warn",
        /// What failed.
        Error = "error",
    }
}

impl LogLevel {
    /// This level, or `Debug` when `enable_debug` asks for more than it.
    pub(crate) fn with_debug(self, enable_debug: bool) -> Self {
        if enable_debug { self.min(Self::Debug) } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bind_mount_is_read_only_unless_asked() {
        let read = |text: &str| BindMount::from_value(&Value::Text(text.to_owned()));
        assert!(read("/a").unwrap().read_only);
        assert!(read("/a:ro").unwrap().read_only);
        assert!(!read("/a:rw").unwrap().read_only);
        assert_eq!(read("a"), None);
    }

    #[test]
    fn numbers_outside_their_range_are_refused() {
        assert_eq!(u32::from_value(&Value::Integer(-1)), None);
        assert_eq!(u32::from_value(&Value::Integer(1 << 32)), None);
        assert_eq!(f64::from_value(&Value::Float(f64::NAN)), None);
        assert_eq!(f64::from_text("inf"), None);
    }

    #[test]
    fn string_with_a_newline_is_refused() {
        assert_eq!(String::from_text("a\nb"), None);
    }
}
