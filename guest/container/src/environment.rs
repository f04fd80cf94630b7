//! A process's environment, as runc makes it from the specification's list.

use std::ffi::CString;

/// Why an environment cannot be given to a process.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvironmentError {
    /// Not of the form NAME=value.
    #[error("invalid environment variable {0:?}: expected NAME=value")]
    Invalid(String),
}

/// Variables in order, each name once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Environment {
    variables: Vec<(String, String)>,
}

impl Environment {
    /// Takes the specification's list: a name that comes again replaces the value where the name
    /// came first.
    ///
    /// # Errors
    ///
    /// Fails for an entry without `=` or name, or with a NUL.
    pub fn from_list(list: &[String]) -> Result<Self, EnvironmentError> {
        let mut environment = Self::default();
        for entry in list {
            let invalid = || EnvironmentError::Invalid(entry.clone());
            let (name, value) = entry.split_once('=').ok_or_else(invalid)?;
            if name.is_empty() || entry.contains('\0') {
                return Err(invalid());
            }
            environment.set(name, value);
        }
        Ok(environment)
    }

    /// The value of `name`; empty if there is none.
    #[must_use]
    pub fn get(&self, name: &str) -> &str {
        let found = self.variables.iter().find(|(known, _)| known == name);
        found.map_or("", |(_, value)| value.as_str())
    }

    /// Sets `$HOME` from the container's user database, unless it has a value.
    pub fn default_home(&mut self, passwd: &str, uid: u32) {
        if self.get("HOME").is_empty() {
            self.set("HOME", home_of(passwd, uid).unwrap_or("/"));
        }
    }

    /// The form that `execve` takes.
    #[must_use]
    pub fn to_strings(&self) -> Vec<CString> {
        self.variables
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .filter_map(|entry| CString::new(entry).ok())
            .collect()
    }

    fn set(&mut self, name: &str, value: &str) {
        match self.variables.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => value.clone_into(old),
            None => self.variables.push((name.to_owned(), value.to_owned())),
        }
    }
}

/// The home directory of `uid` in a passwd(5) file; lines that make no sense are skipped.
fn home_of(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.nth(2)?.parse() == Ok(uid);
        // After name, password and uid come gid, comment and home.
        fields.nth(2).filter(|home| found && !home.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(entries: &[&str]) -> Vec<String> {
        entries.iter().map(|&entry| entry.to_owned()).collect()
    }

    #[test]
    fn from_list_keeps_order_and_the_last_value() {
        let environment = Environment::from_list(&list(&["A=1", "B=x=y", "A=2"])).unwrap();
        assert_eq!(environment.to_strings(), [c"A=2".to_owned(), c"B=x=y".to_owned()]);
    }

    #[test]
    fn from_list_refuses_what_is_no_variable() {
        for bad in ["A", "=1", "A=\0"] {
            assert!(Environment::from_list(&list(&[bad])).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn default_home_comes_from_passwd_of_the_container() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n\nbroken\nweb:x:33:33::/srv:/bin/false\n";
        for (uid, home) in [(0, "/root"), (33, "/srv"), (7, "/")] {
            let mut environment = Environment::default();
            environment.default_home(passwd, uid);
            assert_eq!(environment.get("HOME"), home);
        }
    }

    #[test]
    fn default_home_replaces_an_empty_one_in_its_place() {
        let mut environment = Environment::from_list(&list(&["HOME=", "A=1"])).unwrap();
        environment.default_home("", 0);
        assert_eq!(environment.to_strings(), [c"HOME=/".to_owned(), c"A=1".to_owned()]);
    }

    proptest! {
        #[test]
        fn home_of_any_text_never_panics(passwd in "[a-z0-9:\n]{0,200}", uid in 0u32..5) {
            let _ = home_of(&passwd, uid);
        }
    }
}
