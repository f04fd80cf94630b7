//! How many files the agent and its containers may have open.

use std::fs;
use std::io;

use rustix::process::{Resource, Rlimit, setrlimit};

/// What systemd and container engines have long given to containers whose specification names no
/// limit; the kernel's own default for `fs.nr_open`, too.
const WANTED: u64 = 1 << 20;

/// The bound of what any process may ask for (proc_sys_fs(5)).
const NR_OPEN: &str = "/proc/sys/fs/nr_open";

/// What systemd raises that to, and hosts have therefore: as much as a specification may ask for.
const BOUND: &str = "1073741816";

/// Raises the agent's limit, soft and hard, from the 1024 and 4096 that the kernel gives to its
/// first process. Containers inherit it as they inherit their engine's elsewhere, unless their
/// specification has one of its own, which may be higher.
///
/// # Errors
///
/// Fails without `CAP_SYS_RESOURCE`; the limit is then as before.
pub fn raise_limit() -> io::Result<()> {
    // Without it, a specification that asks for more than the kernel's own bound is refused.
    let _ = fs::write(NR_OPEN, BOUND);
    let limit = limit(fs::read_to_string(NR_OPEN).ok().as_deref());
    setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum: Some(limit) })?;
    Ok(())
}

/// `nr_open` is the file's text, `None` if it cannot be read: then the kernel refuses what is too
/// much.
fn limit(nr_open: Option<&str>) -> u64 {
    nr_open.and_then(|text| text.trim().parse().ok()).map_or(WANTED, |bound| WANTED.min(bound))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_stays_below_the_kernels_bound() {
        assert_eq!(limit(Some("1073741816\n")), WANTED);
        assert_eq!(limit(Some("65536\n")), 65536);
        assert_eq!(limit(None), WANTED);
    }
}
