//! One value of a QEMU command line option: `first,key=value,key=value`.

use std::fmt::Display;

/// A value under construction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OptionValue(String);

impl OptionValue {
    /// Begins with `first`, the name of a device, object or back end.
    pub(crate) fn new(first: impl Display) -> Self {
        Self(escape(first))
    }

    /// Appends `key=value`.
    pub(crate) fn with(mut self, key: &str, value: impl Display) -> Self {
        self.0 += &format!(",{key}={}", escape(value));
        self
    }
}

impl From<OptionValue> for String {
    fn from(value: OptionValue) -> Self {
        value.0
    }
}

/// A comma ends a value, two stand for one (QEMU's manual, "Device options").
fn escape(value: impl Display) -> String {
    value.to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_in_values_are_doubled() {
        let value = OptionValue::new("rng-random").with("id", "r").with("filename", "/a,b=c");
        assert_eq!(String::from(value), "rng-random,id=r,filename=/a,,b=c");
    }
}
