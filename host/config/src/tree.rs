//! TOML as a tree in which every key remembers where it was written, so that several files can be
//! merged and an error can still name file and line.

use std::path::PathBuf;
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use crate::{ConfigError, Origin};

/// A TOML value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Text(String),
    /// Wide enough for everything TOML files of Kata hold, which includes the largest 64-bit
    /// unsigned number.
    Integer(i128),
    Float(f64),
    Boolean(bool),
    /// Accepted by no key.
    Datetime,
    List(Vec<Value>),
    Table(Table),
}

/// A TOML table in the order of its file.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Table {
    pub(crate) entries: Vec<Entry>,
}

/// One key of a table.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) origin: Origin,
    pub(crate) value: Value,
}

impl Value {
    /// The value as a user would write it, cut to a length that fits into a sentence.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Text(text) => {
                let short: String = text.chars().take(60).collect();
                let dots = if short.len() < text.len() { "…" } else { "" };
                format!("{short:?}{dots}")
            }
            Self::Integer(number) => number.to_string(),
            Self::Float(number) => number.to_string(),
            Self::Boolean(flag) => flag.to_string(),
            Self::Datetime => "a date".to_owned(),
            Self::List(items) if items.is_empty() => "[]".to_owned(),
            Self::List(_) => "a list".to_owned(),
            Self::Table(_) => "a table".to_owned(),
        }
    }
}

impl Table {
    /// Parses one file.
    pub(crate) fn parse(file: &Arc<PathBuf>, text: &str) -> Result<Self, ConfigError> {
        let root = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
            file: Arc::clone(file),
            line: error.span().map_or(1, |span| line_of(text, span.start)),
            reason: error.message().to_owned(),
        })?;
        Ok(Reader { file, text }.table("", root.get_ref()))
    }

    /// The entry `name`.
    pub(crate) fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// Removes and returns the entry `name`.
    pub(crate) fn take(&mut self, name: &str) -> Option<Entry> {
        let index = self.entries.iter().position(|entry| entry.name == name)?;
        Some(self.entries.remove(index))
    }

    /// The table `name`, if it is one.
    pub(crate) fn table_mut(&mut self, name: &str) -> Option<&mut Self> {
        match self.entries.iter_mut().find(|entry| entry.name == name).map(|entry| &mut entry.value)
        {
            Some(Value::Table(table)) => Some(table),
            _ => None,
        }
    }

    /// Puts `over` on top: tables are merged key by key, everything else (lists too) is replaced.
    pub(crate) fn merge(&mut self, over: Self) {
        for new in over.entries {
            match self.entries.iter_mut().find(|old| old.name == new.name) {
                None => self.entries.push(new),
                Some(old) => match (&mut old.value, new.value) {
                    (Value::Table(below), Value::Table(above)) => below.merge(above),
                    (_, value) => *old = Entry { value, name: new.name, origin: new.origin },
                },
            }
        }
    }
}

/// Converts the parser's tree of one file.
struct Reader<'a> {
    file: &'a Arc<PathBuf>,
    text: &'a str,
}

impl Reader<'_> {
    fn table(&self, above: &str, table: &DeTable<'_>) -> Table {
        let mut entries: Vec<_> = table.iter().collect();
        // The parser sorts by name; whoever reads an error expects the first one of the file.
        entries.sort_by_key(|(key, _)| key.span().start);
        let entries = entries
            .into_iter()
            .map(|(key, value)| {
                let name = key.get_ref().to_string();
                let dotted =
                    if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
                let value = self.value(&dotted, value.get_ref());
                let line = line_of(self.text, key.span().start);
                let origin = Origin { file: Arc::clone(self.file), line, key: dotted };
                Entry { name, origin, value }
            })
            .collect();
        Table { entries }
    }

    fn value(&self, dotted: &str, value: &DeValue<'_>) -> Value {
        match value {
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix())
                .map_or(Value::Float(f64::INFINITY), Value::Integer),
            DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
            DeValue::Boolean(flag) => Value::Boolean(*flag),
            DeValue::Datetime(_) => Value::Datetime,
            DeValue::Array(items) => {
                Value::List(items.iter().map(|item| self.value(dotted, item.get_ref())).collect())
            }
            DeValue::Table(table) => Value::Table(self.table(dotted, table)),
        }
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &str, text: &str) -> Table {
        Table::parse(&Arc::new(PathBuf::from(name)), text).unwrap()
    }

    #[test]
    fn merge_replaces_lists_and_keeps_the_origin_of_each_key() {
        let mut base = parse("base", "[a]\nlist = [1, 2]\nkept = true\n");
        base.merge(parse("drop-in", "\n[a]\n\nlist = [3]\n"));

        let a = base.table_mut("a").unwrap();
        assert_eq!(a.get("list").unwrap().value, Value::List(vec![Value::Integer(3)]));
        assert_eq!(a.get("list").unwrap().origin.to_string(), "drop-in:4: `a.list`");
        assert_eq!(a.get("kept").unwrap().origin.to_string(), "base:3: `a.kept`");
    }

    #[test]
    fn syntax_error_names_the_line() {
        let error = Table::parse(&Arc::new("f".into()), "a = 1\nb = [\n").unwrap_err();
        assert!(error.to_string().starts_with("f:"), "{error}");
    }
}
