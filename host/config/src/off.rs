//! Keys of upstream whose feature this version lacks. They are accepted with the value that asks
//! for nothing, so that upstream's files load, and refused with any other, so that nobody relies on
//! what is not there.

use crate::setting::Input;
use crate::tree::Value;

/// A key that can only be left off.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OffKey {
    /// Its name in the file.
    pub(crate) name: &'static str,
    /// What may stand there.
    pub(crate) accepted: Accepted,
    /// What to do instead of another value.
    remedy: &'static str,
}

/// The values of an [`OffKey`] that ask for nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Accepted {
    Booleans(&'static [bool]),
    Numbers(&'static [i128]),
    /// Any number: it tunes what is off.
    AnyNumber,
    Texts(&'static [&'static str]),
    /// Any string: it tunes what is off.
    AnyText,
    EmptyList,
    /// Any list: it tunes what is off.
    AnyList,
}

const REMOVE: &str = "remove it";

const fn key(name: &'static str, accepted: Accepted) -> OffKey {
    OffKey { name, accepted, remedy: REMOVE }
}

/// A switch that can only be off.
pub(crate) const fn off(name: &'static str) -> OffKey {
    key(name, Accepted::Booleans(&[false]))
}

/// A switch that can only be on.
pub(crate) const fn on(name: &'static str) -> OffKey {
    key(name, Accepted::Booleans(&[true]))
}

/// A switch between two things of which this version does neither.
pub(crate) const fn either(name: &'static str) -> OffKey {
    key(name, Accepted::Booleans(&[false, true]))
}

/// A number that can only be one of these.
pub(crate) const fn number(name: &'static str, accepted: &'static [i128]) -> OffKey {
    key(name, Accepted::Numbers(accepted))
}

/// A number that tunes what is off.
pub(crate) const fn any_number(name: &'static str) -> OffKey {
    key(name, Accepted::AnyNumber)
}

/// A string that can only be one of these.
pub(crate) const fn text(name: &'static str, accepted: &'static [&'static str]) -> OffKey {
    key(name, Accepted::Texts(accepted))
}

/// A string that tunes what is off.
pub(crate) const fn any_text(name: &'static str) -> OffKey {
    key(name, Accepted::AnyText)
}

/// A list that can only be empty.
pub(crate) const fn empty_list(name: &'static str) -> OffKey {
    key(name, Accepted::EmptyList)
}

/// A list that tunes what is off.
pub(crate) const fn any_list(name: &'static str) -> OffKey {
    key(name, Accepted::AnyList)
}

impl OffKey {
    /// The same key with another advice than to remove it.
    pub(crate) const fn instead(mut self, remedy: &'static str) -> Self {
        self.remedy = remedy;
        self
    }

    /// Accepts a value that asks for nothing; `Err` with a sentence for any other.
    pub(crate) fn check(&self, input: Input<'_>) -> Result<(), String> {
        let parsed;
        let value = match input {
            Input::File(value) => value,
            Input::Annotation(text) => {
                parsed = self.parse(text);
                &parsed
            }
        };
        if !self.accepted.same_type(value) {
            return Err(format!("must be {}, not {}", self.accepted.expected(), input.shown()));
        }
        if self.accepted.contains(value) {
            return Ok(());
        }
        Err(format!("= {} is not supported in this version; {}", value.shown(), self.remedy))
    }

    /// An annotation's text as the type of this key; text that is not of it stays text.
    fn parse(&self, text: &str) -> Value {
        let typed = match self.accepted {
            Accepted::Booleans(_) => text.parse().ok().map(Value::Boolean),
            Accepted::Numbers(_) | Accepted::AnyNumber => text.parse().ok().map(Value::Integer),
            Accepted::EmptyList | Accepted::AnyList => match text {
                "" | "[]" => Some(Value::List(Vec::new())),
                item => Some(Value::List(vec![Value::Text(item.to_owned())])),
            },
            Accepted::Texts(_) | Accepted::AnyText => None,
        };
        typed.unwrap_or_else(|| Value::Text(text.to_owned()))
    }
}

impl Accepted {
    fn same_type(self, value: &Value) -> bool {
        match self {
            Self::Booleans(_) => matches!(value, Value::Boolean(_)),
            Self::Numbers(_) | Self::AnyNumber => {
                matches!(value, Value::Integer(_) | Value::Float(_))
            }
            Self::Texts(_) | Self::AnyText => matches!(value, Value::Text(_)),
            Self::EmptyList | Self::AnyList => matches!(value, Value::List(_)),
        }
    }

    fn contains(self, value: &Value) -> bool {
        match (self, value) {
            (Self::Booleans(accepted), Value::Boolean(flag)) => accepted.contains(flag),
            (Self::Numbers(accepted), Value::Integer(number)) => accepted.contains(number),
            (Self::Texts(accepted), Value::Text(text)) => accepted.contains(&text.as_str()),
            (Self::EmptyList, Value::List(items)) => items.is_empty(),
            (Self::AnyNumber | Self::AnyText | Self::AnyList, _) => true,
            _ => false,
        }
    }

    fn expected(self) -> &'static str {
        match self {
            Self::Booleans(_) => "true or false",
            Self::Numbers(_) | Self::AnyNumber => "a number",
            Self::Texts(_) | Self::AnyText => "a string",
            Self::EmptyList | Self::AnyList => "a list",
        }
    }

    /// The accepted values as the reference page lists them.
    pub(crate) fn listed(self) -> String {
        match self {
            Self::Booleans(&[one]) => format!("`{one}`"),
            Self::Booleans(_) => "any, without effect".to_owned(),
            Self::Numbers(accepted) => {
                accepted.iter().map(|number| format!("`{number}`")).collect::<Vec<_>>().join(", ")
            }
            Self::Texts(accepted) => {
                accepted.iter().map(|text| format!("`{text:?}`")).collect::<Vec<_>>().join(", ")
            }
            Self::EmptyList => "`[]`".to_owned(),
            Self::AnyNumber | Self::AnyText | Self::AnyList => "any, without effect".to_owned(),
        }
    }
}
