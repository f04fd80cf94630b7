//! The kernel's configuration: fragments merged into one list, and the check that Kconfig has kept
//! all of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The fragments by name, in the order in which they are read.
const FRAGMENTS: &[(&str, &str)] = &[
    ("base", include_str!("../fragments/base.config")),
    ("virtio", include_str!("../fragments/virtio.config")),
    ("filesystems", include_str!("../fragments/filesystems.config")),
    ("containers", include_str!("../fragments/containers.config")),
    ("network", include_str!("../fragments/network.config")),
    ("hotplug", include_str!("../fragments/hotplug.config")),
    ("security", include_str!("../fragments/security.config")),
    ("qemu", include_str!("../fragments/qemu.config")),
    ("firecracker", include_str!("../fragments/firecracker.config")),
    ("cloud-hypervisor", include_str!("../fragments/cloud-hypervisor.config")),
    ("krun", include_str!("../fragments/krun.config")),
];

/// The value of a symbol that is off.
const OFF: &str = "n";

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigurationError {
    /// A line of a fragment is neither a symbol nor a comment.
    #[error(
        "fragment {fragment}, line {line}: {text:?} is no symbol; write CONFIG_NAME=value or # CONFIG_NAME is not set"
    )]
    Line {
        /// The fragment.
        fragment: String,
        /// The line's number, from 1.
        line: usize,
        /// What stands there.
        text: String,
    },
    /// Symbols stand in a fragment without a word on why.
    #[error(
        "fragment {fragment}, line {line}: {symbol} begins a group without a comment that says why it is there"
    )]
    Unexplained {
        /// The fragment.
        fragment: String,
        /// The line's number, from 1.
        line: usize,
        /// The symbol.
        symbol: String,
    },
    /// Two fragments want different values.
    #[error("{symbol} is {first} in fragment {first_fragment} and {second} in {second_fragment}")]
    Conflict {
        /// The symbol.
        symbol: String,
        /// One value.
        first: String,
        /// Its fragment.
        first_fragment: String,
        /// Another value.
        second: String,
        /// Its fragment.
        second_fragment: String,
    },
    /// Kconfig has made something else of the merged list.
    #[error(
        "the kernel's configuration is not what the fragments want, most often because a symbol that it depends on is missing: {}",
        .0.join("; ")
    )]
    Changed(
        /// A sentence for each symbol that was dropped or changed.
        Vec<String>,
    ),
}

/// What the fragments want, merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    symbols: BTreeMap<String, Wanted>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    value: String,
    fragment: String,
}

impl Configuration {
    /// The fragments of this repository.
    ///
    /// # Errors
    /// When a fragment has a line that is no symbol, a group without a reason, or contradicts
    /// another.
    pub fn merged() -> Result<Self, ConfigurationError> {
        Self::of(FRAGMENTS)
    }

    fn of(fragments: &[(&str, &str)]) -> Result<Self, ConfigurationError> {
        let mut merged = Self { symbols: BTreeMap::new() };
        for (fragment, text) in fragments {
            merged.add(fragment, text)?;
        }
        Ok(merged)
    }

    fn add(&mut self, fragment: &str, text: &str) -> Result<(), ConfigurationError> {
        let mut explained = false;
        for (number, line) in text.lines().enumerate().map(|(at, line)| (at + 1, line.trim_end())) {
            let (symbol, value) = match parse(line) {
                Line::Blank => {
                    explained = false;
                    continue;
                }
                Line::Comment => {
                    explained = true;
                    continue;
                }
                Line::Symbol(symbol, value) => (symbol.to_owned(), value.to_owned()),
                Line::Other => {
                    return Err(ConfigurationError::Line {
                        fragment: fragment.to_owned(),
                        line: number,
                        text: line.to_owned(),
                    });
                }
            };
            if !explained {
                let fragment = fragment.to_owned();
                return Err(ConfigurationError::Unexplained { fragment, line: number, symbol });
            }
            self.want(symbol, Wanted { value, fragment: fragment.to_owned() })?;
            explained = true;
        }
        Ok(())
    }

    /// Several fragments may want the same: each says what it needs.
    fn want(&mut self, symbol: String, wanted: Wanted) -> Result<(), ConfigurationError> {
        match self.symbols.get(&symbol) {
            Some(earlier) if earlier.value != wanted.value => Err(ConfigurationError::Conflict {
                symbol,
                first: earlier.value.clone(),
                first_fragment: earlier.fragment.clone(),
                second: wanted.value,
                second_fragment: wanted.fragment,
            }),
            Some(_) => Ok(()),
            None => {
                self.symbols.insert(symbol, wanted);
                Ok(())
            }
        }
    }

    /// The list in the form that Kconfig reads (`KCONFIG_ALLCONFIG`), sorted by symbol.
    #[must_use]
    pub fn to_kconfig(&self) -> String {
        let mut text = String::new();
        for (symbol, Wanted { value, .. }) in &self.symbols {
            let _ = if value == OFF {
                writeln!(text, "# {symbol} is not set")
            } else {
                writeln!(text, "{symbol}={value}")
            };
        }
        text
    }

    /// Checks a `.config` that Kconfig has made of [`Self::to_kconfig`].
    ///
    /// # Errors
    /// Names every symbol that was dropped or changed, with its fragment.
    pub fn check(&self, config: &str) -> Result<(), ConfigurationError> {
        let made: BTreeMap<&str, &str> = config
            .lines()
            .filter_map(|line| match parse(line) {
                Line::Symbol(symbol, value) => Some((symbol, value)),
                _ => None,
            })
            .collect();
        let different = self.symbols.iter().filter_map(|(symbol, Wanted { value, fragment })| {
            let got = made.get(symbol.as_str()).copied().unwrap_or(OFF);
            (got != value).then(|| match (value.as_str(), got) {
                (_, OFF) => format!("{symbol}={value} of fragment {fragment} was dropped"),
                (OFF, _) => format!("{symbol}, off in fragment {fragment}, was set to {got}"),
                _ => format!("{symbol}={value} of fragment {fragment} became {got}"),
            })
        });
        let different: Vec<String> = different.collect();
        if different.is_empty() { Ok(()) } else { Err(ConfigurationError::Changed(different)) }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    Blank,
    Comment,
    /// A symbol, with its prefix, and its value; [`OFF`] where it is not set.
    Symbol(&'a str, &'a str),
    Other,
}

fn parse(line: &str) -> Line<'_> {
    if line.is_empty() {
        return Line::Blank;
    }
    if let Some(comment) = line.strip_prefix('#') {
        let symbol = comment.strip_prefix(' ').and_then(|rest| rest.strip_suffix(" is not set"));
        return match symbol.filter(|symbol| is_symbol(symbol)) {
            Some(symbol) => Line::Symbol(symbol, OFF),
            None => Line::Comment,
        };
    }
    match line.split_once('=') {
        Some((symbol, value)) if is_symbol(symbol) && !value.is_empty() => {
            Line::Symbol(symbol, value)
        }
        _ => Line::Other,
    }
}

fn is_symbol(word: &str) -> bool {
    word.strip_prefix("CONFIG_").is_some_and(|name| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fragments_of_the_repository_merge_and_switch_modules_off() {
        let merged = Configuration::merged().unwrap().to_kconfig();
        for line in
            ["# CONFIG_MODULES is not set", "CONFIG_PVH=y", "CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES=y"]
        {
            assert!(merged.lines().any(|merged| merged == line), "{line} is missing");
        }
    }

    #[test]
    fn merged_list_is_kept_whole_by_a_kconfig_that_drops_nothing() {
        let configuration = Configuration::merged().unwrap();
        configuration.check(&configuration.to_kconfig()).unwrap();
    }

    #[test]
    fn dropped_changed_and_added_symbols_are_named_with_their_fragment() {
        let text = "# why\nCONFIG_A=y\nCONFIG_B=16\n# CONFIG_C is not set\n";
        let configuration = Configuration::of(&[("some", text)]).unwrap();
        let error = configuration.check("CONFIG_B=8\nCONFIG_C=y\n").unwrap_err().to_string();
        for part in [
            "CONFIG_A=y of fragment some was dropped",
            "CONFIG_B=16 of fragment some became 8",
            "CONFIG_C, off in fragment some, was set to y",
        ] {
            assert!(error.contains(part), "{part} is not in: {error}");
        }
    }

    #[test]
    fn contradiction_names_both_fragments() {
        let error =
            Configuration::of(&[("a", "# x\nCONFIG_A=y\n"), ("b", "# x\n# CONFIG_A is not set\n")])
                .unwrap_err();
        assert_eq!(error.to_string(), "CONFIG_A is y in fragment a and n in b");
    }

    #[test]
    fn group_without_a_reason_is_refused() {
        for (text, place) in [
            ("# x\nCONFIG_A=y\n\nCONFIG_B=y\n", "line 4: CONFIG_B"),
            // A fragment's head says what it is for, and not why its first group is in it.
            ("# Head.\n\nCONFIG_A=y\n", "line 3: CONFIG_A"),
        ] {
            let error = Configuration::of(&[("a", text)]).unwrap_err();
            assert!(error.to_string().starts_with(&format!("fragment a, {place}")), "{error}");
        }
    }

    #[test]
    fn misspelt_line_is_named() {
        let error = Configuration::of(&[("a", "# x\nCONFG_A=y\n")]).unwrap_err();
        assert!(error.to_string().starts_with("fragment a, line 2: \"CONFG_A=y\""), "{error}");
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "(.{0,20}\n){0,10}") {
            let _ = Configuration::of(&[("any", &text)]);
        }
    }
}
