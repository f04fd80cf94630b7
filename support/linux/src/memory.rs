//! How much memory the host has, and how to use less of it.
#![expect(unsafe_code, reason = "advice about a mapping can take its content away")]

use std::ffi::c_void;
use std::fs;
use std::io;
use std::ops::Range;

use rustix::mm::{Advice, madvise};

/// The host's memory in MiB (`MemTotal` of proc_meminfo(5)).
pub fn total_mib() -> io::Result<u32> {
    let info = rustix::system::sysinfo();
    let bytes = u128::from(info.totalram) * u128::from(info.mem_unit);
    u32::try_from(bytes >> 20).map_err(io::Error::other)
}

/// Hands back the pages of the caller's own code (not of its libraries). What is run again comes
/// back by itself from the page cache, a few microseconds for each 64 KiB of it; for a program that
/// is through with most of what it does, and will live long.
pub fn hand_back_code() -> io::Result<()> {
    let code = own_code(&fs::read_to_string("/proc/self/maps")?)
        .ok_or_else(|| io::Error::other("/proc/self/maps does not show this program's code"))?;
    let start: *mut c_void = std::ptr::with_exposed_provenance_mut(code.start);
    // SAFETY: the pages are those of a file, which nothing may write to and nothing has written to:
    // the kernel fills them in again with the same bytes (madvise(2), MADV_DONTNEED).
    Ok(unsafe { madvise(start, code.len(), Advice::LinuxDontNeed) }?)
}

/// The mapping of /proc/PID/maps (proc_pid_maps(5)) that this function is in. `None` unless it can
/// be executed and not written to.
fn own_code(maps: &str) -> Option<Range<usize>> {
    let here = own_code as fn(&str) -> Option<Range<usize>> as usize;
    let parsed = maps.lines().filter_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let address = |text| usize::from_str_radix(text, 16).ok();
        Some((address(start)?..address(end)?, rest.starts_with("r-xp")))
    });
    let (range, _) =
        parsed.into_iter().find(|(range, is_code)| *is_code && range.contains(&here))?;
    Some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As much of the mapping that starts there as is in memory, in KiB (proc_pid_smaps(5)).
    fn resident(start: usize) -> u64 {
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let from = smaps.split(&format!("{start:x}-")).nth(1).unwrap();
        let line = from.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn this_host_has_some() {
        assert!(total_mib().unwrap() > 0);
    }

    #[test]
    fn code_that_was_handed_back_is_gone_and_still_runs() {
        let code = own_code(&fs::read_to_string("/proc/self/maps").unwrap()).unwrap();
        // SAFETY: the same mapping as in `hand_back_code`, and nothing is taken away.
        unsafe {
            let start = std::ptr::with_exposed_provenance_mut(code.start);
            madvise(start, code.len(), Advice::LinuxPopulateRead).unwrap();
        }
        let before = resident(code.start);
        hand_back_code().unwrap();
        assert!(resident(code.start) < before, "{before} KiB before");
    }

    #[test]
    fn only_code_counts_as_code() {
        assert_eq!(own_code(""), None);
        assert_eq!(own_code("0-ffffffffffffffff rw-p 00000000 00:00 0\n"), None);
        assert_eq!(own_code("no map\n0-1 r-xp 00000000 00:00 0\n"), None);
    }
}
