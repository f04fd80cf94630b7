//! Which limits the group has that a group is to be made in: of Kubernetes' pods, the kubelet
//! limits what all of its containers together may use only if each of them has a limit.

use std::fs;
use std::path::Path;

use super::{CgroupError, Hierarchy, hierarchies, relative_path};

/// The limits of version 1 that are none are the largest number that it takes, rounded down to
/// pages.
const NO_LIMIT: u64 = 1 << 62;

/// Whether a group keeps what is in it below some amount of something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LimitsAbove {
    /// Of the processors' time.
    pub cpu: bool,
    /// Of memory.
    pub memory: bool,
}

impl LimitsAbove {
    /// Those of the group that the group `path`, as in the OCI runtime spec's `cgroupsPath`, is to
    /// be in. What cannot be read limits nothing.
    ///
    /// # Errors
    ///
    /// When the path is none, or the host's hierarchies cannot be listed.
    pub fn of(path: &str) -> Result<Self, CgroupError> {
        let relative = relative_path(path)?;
        let Some(above) = relative.parent().filter(|above| !above.as_os_str().is_empty()) else {
            return Ok(Self::default());
        };
        let all = hierarchies()?;
        let any = |controller: &str, limits: fn(&Path) -> bool| {
            let has = |one: &&Hierarchy| {
                one.controllers.is_empty() || one.controllers.iter().any(|name| name == controller)
            };
            all.iter().filter(has).any(|one| limits(&one.mount_point.join(above)))
        };
        Ok(Self { cpu: any("cpu", limits_cpu), memory: any("memory", limits_memory) })
    }
}

fn limits_memory(dir: &Path) -> bool {
    let read = |file: &str| fs::read_to_string(dir.join(file)).ok();
    let text = read("memory.max").or_else(|| read("memory.limit_in_bytes"));
    text.and_then(|text| text.trim().parse::<u64>().ok()).is_some_and(|bytes| bytes < NO_LIMIT)
}

fn limits_cpu(dir: &Path) -> bool {
    let read = |file: &str| fs::read_to_string(dir.join(file)).ok();
    let text = read("cpu.max").or_else(|| read("cpu.cfs_quota_us")).unwrap_or_default();
    let quota = text.split_whitespace().next().and_then(|quota| quota.parse::<i64>().ok());
    quota.is_some_and(|quota| quota > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_say_what_is_no_limit() {
        let dir = tempfile::tempdir().unwrap();
        let has = |file: &str, text: &str| {
            fs::write(dir.path().join(file), text).unwrap();
            let found = (limits_cpu(dir.path()), limits_memory(dir.path()));
            fs::remove_file(dir.path().join(file)).unwrap();
            found
        };
        assert_eq!(has("memory.max", "max\n"), (false, false));
        assert_eq!(has("memory.max", "67108864\n"), (false, true));
        assert_eq!(has("memory.limit_in_bytes", "9223372036854771712\n"), (false, false));
        assert_eq!(has("memory.limit_in_bytes", "67108864\n"), (false, true));
        assert_eq!(has("cpu.max", "max 100000\n"), (false, false));
        assert_eq!(has("cpu.max", "50000 100000\n"), (true, false));
        assert_eq!(has("cpu.cfs_quota_us", "-1\n"), (false, false));
        assert_eq!(has("cpu.cfs_quota_us", "50000\n"), (true, false));
    }

    #[test]
    fn group_that_is_not_there_limits_nothing() {
        let none = LimitsAbove::default();
        assert_eq!(LimitsAbove::of("/kata-test-that-never-was/c").unwrap(), none);
        assert_eq!(LimitsAbove::of("/c").unwrap(), none);
        assert!(LimitsAbove::of("/..").is_err());
    }
}
