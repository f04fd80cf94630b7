//! Mount options, as mount(8) writes them.

use rustix::mount::MountFlags;

/// Options, sorted by who takes them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Options {
    /// For the mount itself.
    pub(super) flags: MountFlags,
    /// For the file system, separated by commas.
    pub(super) data: String,
    /// Whether a bind mount takes along what is mounted below its source.
    pub(super) recursive: bool,
    /// `mode=`, in octal.
    pub(super) mode: Option<u32>,
}

/// Options that are told to agents, not to the kernel.
const FOR_AGENTS: [&str; 3] = ["X-kata.", "io.katacontainers.", "fsgid="];

impl Options {
    pub(super) fn parse(options: &[String]) -> Self {
        let mut parsed =
            Self { flags: MountFlags::empty(), data: String::new(), recursive: false, mode: None };
        for option in options.iter().flat_map(|option| option.split(',')) {
            let is_for_agents = FOR_AGENTS.iter().any(|prefix| option.starts_with(prefix));
            if option.is_empty() || is_for_agents || parsed.set_flag(option) {
                continue;
            }
            if let Some(mode) = option.strip_prefix("mode=") {
                parsed.mode = u32::from_str_radix(mode, 8).ok();
            }
            if !parsed.data.is_empty() {
                parsed.data.push(',');
            }
            parsed.data.push_str(option);
        }
        parsed
    }

    /// Whether `option` is a flag; if so, sets or clears it.
    fn set_flag(&mut self, option: &str) -> bool {
        let (flag, on) = match option {
            "ro" => (MountFlags::RDONLY, true),
            "rw" => (MountFlags::RDONLY, false),
            "nosuid" => (MountFlags::NOSUID, true),
            "suid" => (MountFlags::NOSUID, false),
            "nodev" => (MountFlags::NODEV, true),
            "dev" => (MountFlags::NODEV, false),
            "noexec" => (MountFlags::NOEXEC, true),
            "exec" => (MountFlags::NOEXEC, false),
            "sync" => (MountFlags::SYNCHRONOUS, true),
            "async" => (MountFlags::SYNCHRONOUS, false),
            "dirsync" => (MountFlags::DIRSYNC, true),
            "noatime" => (MountFlags::NOATIME, true),
            "nodiratime" => (MountFlags::NODIRATIME, true),
            "relatime" => (MountFlags::RELATIME, true),
            "strictatime" => (MountFlags::STRICTATIME, true),
            "rbind" => {
                self.recursive = true;
                return true;
            }
            "bind" | "defaults" | "private" | "rprivate" | "slave" | "rslave" => return true,
            _ => return false,
        };
        self.flags.set(flag, on);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Options {
        Options::parse(&options.iter().map(|&option| option.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn parse_sorts_flags_and_data() {
        let options = parse(&["noexec,nosuid", "nodev", "mode=1777", "size=65536k"]);
        assert_eq!(options.flags, MountFlags::NOEXEC | MountFlags::NOSUID | MountFlags::NODEV);
        assert_eq!(options.data, "mode=1777,size=65536k");
        assert_eq!(options.mode, Some(0o1777));
    }

    #[test]
    fn parse_later_flag_wins_and_agents_options_are_dropped() {
        let options = parse(&["ro", "rw", "X-kata.overlay-upper", "fsgid=5", "rbind"]);
        assert_eq!(options.flags, MountFlags::empty());
        assert_eq!(options.data, "");
        assert!(options.recursive);
    }
}
