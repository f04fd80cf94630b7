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

/// Hands back memory that a program at rest can do without: the pages of its own code and constants
/// (not of its libraries), and those of its heap in which nothing is. What is used again comes back
/// by itself, the code from the page cache, a few microseconds for each 64 KiB of it; for a program
/// that is through with most of what it does, and will live long.
pub fn hand_back() -> io::Result<()> {
    let program = own_program(&fs::read_to_string("/proc/self/maps")?)
        .ok_or_else(|| io::Error::other("/proc/self/maps does not show this program's code"))?;
    let start: *mut c_void = std::ptr::with_exposed_provenance_mut(program.start);
    // SAFETY: the pages are those of a file, which nothing may write to and nothing has written to:
    // the kernel fills them in again with the same bytes (madvise(2), MADV_DONTNEED).
    unsafe { madvise(start, program.len(), Advice::LinuxDontNeed) }?;
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's own locks, and gives up only what is free (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
    Ok(())
}

/// The mapping of /proc/PID/maps (proc_pid_maps(5)) that this function is in, and the constants
/// before it, which are the file's beginning and need no relocation. `None` unless the code can be
/// executed and not written to.
fn own_program(maps: &str) -> Option<Range<usize>> {
    let here = own_program as fn(&str) -> Option<Range<usize>> as usize;
    let mut before: Option<Range<usize>> = None;
    for line in maps.lines() {
        let Some((range, is_code, is_beginning)) = mapping(line) else { continue };
        if is_code && range.contains(&here) {
            let constants = before.filter(|before| before.end == range.start);
            return Some(constants.map_or(range.start, |before| before.start)..range.end);
        }
        before = is_beginning.then_some(range);
    }
    None
}

/// Where a mapping is, whether it is code, and whether it is the beginning of a file, to be read
/// only.
fn mapping(line: &str) -> Option<(Range<usize>, bool, bool)> {
    let mut fields = line.split_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let (permissions, offset) = (fields.next()?, fields.next()?);
    let number = |text| usize::from_str_radix(text, 16).ok();
    let is_beginning = permissions == "r--p" && number(offset) == Some(0);
    Some((number(start)?..number(end)?, permissions == "r-xp", is_beginning))
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
    fn what_was_handed_back_is_gone_and_the_program_still_runs() {
        let program = own_program(&fs::read_to_string("/proc/self/maps").unwrap()).unwrap();
        // SAFETY: the same mappings as in `hand_back`, and nothing is taken away.
        unsafe {
            let start = std::ptr::with_exposed_provenance_mut(program.start);
            madvise(start, program.len(), Advice::LinuxPopulateRead).unwrap();
        }
        let before = resident(program.start);
        hand_back().unwrap();
        assert!(resident(program.start) < before, "{before} KiB before");
    }

    #[test]
    fn only_code_and_the_constants_before_it_count() {
        let here = own_program as fn(&str) -> Option<Range<usize>> as usize & !0xfff;
        let (start, end) = (here - 0x2000, here + 0x1000);
        let code = format!("{here:x}-{end:x} r-xp 00002000 08:01 7 /bin/it\n");
        let before = |permissions: &str, offset: &str| {
            format!("{start:x}-{here:x} {permissions} {offset} 08:01 7 /bin/it\n{code}")
        };
        assert_eq!(own_program(&before("r--p", "00000000")), Some(start..end));
        // What a loader may have written to is no constant.
        assert_eq!(own_program(&before("r--p", "00001000")), Some(here..end));
        assert_eq!(own_program(&before("rw-p", "00000000")), Some(here..end));
        let apart = format!("{start:x}-{:x} r--p 00000000 08:01 7 /bin/it\n{code}", here - 0x1000);
        assert_eq!(own_program(&apart), Some(here..end));
        assert_eq!(own_program(""), None);
        assert_eq!(own_program("0-ffffffffffffffff rw-p 00000000 00:00 0\n"), None);
        assert_eq!(own_program("no map\n0-1 r-xp 00000000 00:00 0\n"), None);
    }
}
