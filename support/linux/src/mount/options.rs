//! Option strings as container engines write them, sorted into what the kernel takes them as.

use std::ffi::CString;
use std::io;
use std::path::Path;

use rustix::mount::MountFlags;

use super::{MountAttributes, MountError, Propagation};

/// Bytes of file system options that fit into mount(2)'s page beside its end mark.
pub(super) const PAGE_LIMIT: usize = 4095;

const FLAGS: [(&str, MountFlags); 12] = [
    ("ro", MountFlags::RDONLY),
    ("nosuid", MountFlags::NOSUID),
    ("nodev", MountFlags::NODEV),
    ("noexec", MountFlags::NOEXEC),
    ("sync", MountFlags::SYNCHRONOUS),
    ("dirsync", MountFlags::DIRSYNC),
    ("noatime", MountFlags::NOATIME),
    ("nodiratime", MountFlags::NODIRATIME),
    ("relatime", MountFlags::RELATIME),
    ("strictatime", MountFlags::STRICTATIME),
    ("lazytime", MountFlags::LAZYTIME),
    ("nosymfollow", MountFlags::NOSYMFOLLOW),
];

/// The opposites, which clear the flag again: the last one wins, as with mount(8).
const CLEARING: [(&str, MountFlags); 11] = [
    ("rw", MountFlags::RDONLY),
    ("suid", MountFlags::NOSUID),
    ("dev", MountFlags::NODEV),
    ("exec", MountFlags::NOEXEC),
    ("async", MountFlags::SYNCHRONOUS),
    ("atime", MountFlags::NOATIME),
    ("diratime", MountFlags::NODIRATIME),
    ("norelatime", MountFlags::RELATIME),
    ("nostrictatime", MountFlags::STRICTATIME),
    ("nolazytime", MountFlags::LAZYTIME),
    ("symfollow", MountFlags::NOSYMFOLLOW),
];

const PROPAGATION: [(&str, Propagation, bool); 6] = [
    ("shared", Propagation::Shared, false),
    ("rshared", Propagation::Shared, true),
    ("slave", Propagation::Slave, false),
    ("rslave", Propagation::Slave, true),
    ("private", Propagation::Private, false),
    ("rprivate", Propagation::Private, true),
];

/// Parsed option strings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MountOptions {
    flags: MountFlags,
    /// `Some(true)` for `rbind`, `Some(false)` for `bind`.
    bind: Option<bool>,
    propagation: Option<(Propagation, bool)>,
    /// What the file system itself understands, in order.
    pub(super) data: Vec<String>,
}

impl MountOptions {
    pub(super) fn parse(options: &[String]) -> Result<Self, MountError> {
        let mut parsed =
            Self { flags: MountFlags::empty(), bind: None, propagation: None, data: Vec::new() };
        for option in options {
            parsed.take(option)?;
        }
        Ok(parsed)
    }

    fn take(&mut self, option: &str) -> Result<(), MountError> {
        if let Some((_, flag)) = FLAGS.iter().find(|(name, _)| *name == option) {
            self.flags |= *flag;
        } else if let Some((_, flag)) = CLEARING.iter().find(|(name, _)| *name == option) {
            self.flags -= *flag;
        } else if let Some((_, kind, recursive)) =
            PROPAGATION.iter().find(|(name, ..)| *name == option)
        {
            self.propagation = Some((*kind, *recursive));
        } else {
            match option {
                "bind" => self.bind = Some(false),
                "rbind" => self.bind = Some(true),
                "defaults" | "" => {}
                // `loop` is mount(8)'s own; the others would act on a mount that is already there.
                "loop" | "remount" | "move" | "unbindable" | "runbindable" => {
                    return Err(MountError::UnsupportedOption(option.to_owned()));
                }
                // The kernel splits at commas (an escaped one is for the file system), so a hidden
                // second option is one of its own.
                _ => self.data.push(option.to_owned()),
            }
        }
        Ok(())
    }

    /// Whether this is a bind, and if so whether a recursive one.
    pub(super) fn recursion(&self, fstype: &str) -> Option<bool> {
        self.bind.or((fstype == "bind").then_some(false))
    }

    pub(super) fn propagation(&self) -> Option<Propagation> {
        self.propagation.map(|(kind, _)| kind)
    }

    pub(super) fn propagates_recursively(&self) -> bool {
        self.propagation.is_some_and(|(_, recursive)| recursive)
    }

    /// The flags as attributes of a bind.
    pub(super) fn attributes(&self) -> MountAttributes {
        MountAttributes {
            readonly: self.flags.contains(MountFlags::RDONLY),
            nosuid: self.flags.contains(MountFlags::NOSUID),
            nodev: self.flags.contains(MountFlags::NODEV),
            noexec: self.flags.contains(MountFlags::NOEXEC),
            propagation: self.propagation(),
        }
    }

    /// Bytes of the file system's options, joined.
    pub(super) fn data_length(&self) -> usize {
        self.data.iter().map(|option| option.len() + 1).sum::<usize>().saturating_sub(1)
    }

    /// Calls mount(2).
    pub(super) fn mount(&self, source: &str, target: &Path, fstype: &str) -> io::Result<()> {
        let data = CString::new(self.data.join(","))?;
        let data = (!data.is_empty()).then_some(data);
        Ok(rustix::mount::mount(source, target, fstype, self.flags, data.as_deref())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> MountOptions {
        MountOptions::parse(&options.iter().map(|&one| one.to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn flags_binds_propagation_and_data_are_told_apart() {
        let parsed = parse(&["rbind", "ro", "nosuid", "rprivate", "size=64k", "mode=1777"]);
        assert_eq!(parsed.flags, MountFlags::RDONLY | MountFlags::NOSUID);
        assert_eq!(parsed.recursion("none"), Some(true));
        assert_eq!(parsed.propagation(), Some(Propagation::Private));
        assert!(parsed.propagates_recursively());
        assert_eq!(parsed.data, ["size=64k", "mode=1777"]);
        assert_eq!(parsed.data_length(), "size=64k,mode=1777".len());
    }

    #[test]
    fn last_of_two_opposites_wins() {
        assert!(parse(&["ro", "rw"]).flags.is_empty());
        assert_eq!(parse(&["exec", "noexec"]).flags, MountFlags::NOEXEC);
    }

    #[test]
    fn type_bind_needs_no_option() {
        assert_eq!(parse(&[]).recursion("bind"), Some(false));
        assert_eq!(parse(&[]).recursion("overlay"), None);
    }

    #[test]
    fn options_that_need_more_than_a_mount_are_refused() {
        for option in ["loop", "remount"] {
            assert!(MountOptions::parse(&[option.to_owned()]).is_err());
        }
    }
}
