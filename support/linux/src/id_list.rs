//! Lists of processors and memory nodes as people and the kernel write them: `0-3,8`
//! (cgroup-v2.rst, `cpuset.cpus`; cpuset(7), "List format").

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// The highest number that a list may have. No kernel knows more processors than 8192.
const HIGHEST: u32 = 8191;

/// The longest text that is read, in bytes: more than the longest list that the kernel writes.
const LONGEST: usize = 64 << 10;

/// A text that is no list of numbers.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum IdListError {
    /// Something else is written there.
    #[error("`{0}` is no list like `0-3,8`, of numbers up to {HIGHEST}")]
    NoList(String),
    /// It is not even read.
    #[error("{0} bytes are too many for a list of numbers up to {HIGHEST}")]
    TooLong(usize),
}

/// A set of numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdList(BTreeSet<u32>);

impl IdList {
    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether everything in it is in `other`, too.
    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        self.0.is_subset(&other.0)
    }

    /// What is in either of both.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        Self(self.0.union(&other.0).copied().collect())
    }
}

impl FromStr for IdList {
    type Err = IdListError;

    /// An empty text is an empty list.
    fn from_str(text: &str) -> Result<Self, IdListError> {
        if text.len() > LONGEST {
            return Err(IdListError::TooLong(text.len()));
        }
        let wrong = || IdListError::NoList(text.to_owned());
        let number = |word: &str| match word.parse::<u32>() {
            Ok(number) if number <= HIGHEST => Ok(number),
            _ => Err(wrong()),
        };
        let text = text.trim();
        if text.is_empty() {
            return Ok(Self::default());
        }
        // Ranges may overlap, and so many that a set would take long.
        let mut is_in = vec![false; HIGHEST as usize + 1];
        for word in text.split(',') {
            let (first, last) = word.split_once('-').unwrap_or((word, word));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(wrong());
            }
            is_in[first as usize..=last as usize].fill(true);
        }
        Ok(Self((0..=HIGHEST).filter(|id| is_in[*id as usize]).collect()))
    }
}

impl fmt::Display for IdList {
    /// With ranges where numbers follow each other, as the kernel does.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.iter().copied().peekable();
        let mut comma = "";
        while let Some(first) = rest.next() {
            let mut last = first;
            while let Some(next) = rest.next_if_eq(&(last + 1)) {
                last = next;
            }
            write!(f, "{comma}{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
            comma = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(text: &str) -> IdList {
        text.parse().unwrap()
    }

    #[test]
    fn ranges_and_single_numbers_make_one_set() {
        assert_eq!(list("3,0-1,2,7\n").to_string(), "0-3,7");
        assert_eq!(list("").to_string(), "");
        assert!(list(" ").is_empty() && !list("0").is_empty());
        assert_eq!(list("0-1").or(&list("3")).to_string(), "0-1,3");
        assert!(list("1,3").is_within(&list("0-3")) && !list("4").is_within(&list("0-3")));
    }

    #[test]
    fn anything_else_is_no_list() {
        for wrong in ["a", "1-", "-1", "2-1", "0,,1", "0-8192", "4294967296", "0x1", "+1 2"] {
            let error = wrong.parse::<IdList>().unwrap_err();
            assert!(error.to_string().starts_with(&format!("`{wrong}` is no list")), "{error}");
        }
        let endless = "0-8191,".repeat(10_000);
        assert_eq!(endless.parse::<IdList>(), Err(IdListError::TooLong(70_000)));
        let overlapping = "0-8191,".repeat(9_000) + "5";
        assert_eq!(list(&overlapping), list("0-8191"));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(numbers in prop::collection::btree_set(0..=HIGHEST, 0..40)) {
            let list = IdList(numbers);
            prop_assert_eq!(list.to_string().parse::<IdList>(), Ok(list));
        }
    }
}
