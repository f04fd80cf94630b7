//! How much memory the host has, and how to use less of it.
#![expect(
    unsafe_code,
    reason = "advice about a mapping can take its content away; the allocator is told by a C call"
)]

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

/// Has all threads of the caller take memory from one heap. By itself the C library gives each new
/// thread a heap of its own, which keeps what the thread has used (mallopt(3), `M_ARENA_MAX`): so
/// this is for a program whose threads have little to do and end soon. To be called while there is
/// one thread. Does nothing where the C library is not GNU's.
pub fn keep_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number of the allocator's, which nobody uses meanwhile, for there is no
    // other thread.
    let taken = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    #[cfg(target_env = "gnu")]
    debug_assert_eq!(taken, 1, "one heap is always enough");
}

/// Hands back the pages of the caller's own code and constants (not of its libraries). What is used
/// again comes back by itself from the page cache, a few microseconds for each 64 KiB of it; for a
/// program that is through with most of what it does, and will live long.
///
/// Constants are those before the code, where rustc's linker has them; GNU's puts them behind it,
/// and they stay.
pub fn hand_back() -> io::Result<()> {
    let program = own_program(&fs::read_to_string("/proc/self/maps")?)
        .ok_or_else(|| io::Error::other("/proc/self/maps does not show this program's code"))?;
    let start: *mut c_void = std::ptr::with_exposed_provenance_mut(program.start);
    // SAFETY: the pages are those of a file, which nothing may write to and nothing has written to,
    // as the loader does only to data, and to code with text relocations, which rustc makes none
    // of: the kernel fills them in again with the same bytes (madvise(2), MADV_DONTNEED).
    Ok(unsafe { madvise(start, program.len(), Advice::LinuxDontNeed) }?)
}

/// The mapping of /proc/PID/maps (proc_pid_maps(5)) that this function is in, and the constants
/// before it, which are the same file's beginning and need no relocation. `None` unless the code
/// can be executed and not written to.
fn own_program(maps: &str) -> Option<Range<usize>> {
    let here = own_program as fn(&str) -> Option<Range<usize>> as usize;
    let mut before: Option<Mapping<'_>> = None;
    for code in maps.lines().filter_map(Mapping::of) {
        if code.permissions != "r-xp" || !code.range.contains(&here) {
            before = Some(code);
            continue;
        }
        let constants = before.filter(|before| {
            before.permissions == "r--p"
                && before.offset == 0
                && before.file == code.file
                && before.range.end == code.range.start
        });
        let start = constants.map_or(code.range.start, |constants| constants.range.start);
        return code.file.is_some().then_some(start..code.range.end);
    }
    None
}

/// A line of /proc/PID/maps.
struct Mapping<'a> {
    range: Range<usize>,
    permissions: &'a str,
    offset: usize,
    /// Device and inode; `None` of memory that is no file's.
    file: Option<(&'a str, &'a str)>,
}

impl<'a> Mapping<'a> {
    fn of(line: &'a str) -> Option<Self> {
        let mut fields = line.split_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let permissions = fields.next()?;
        let number = |text| usize::from_str_radix(text, 16).ok();
        let offset = number(fields.next()?)?;
        let file = Some((fields.next()?, fields.next()?)).filter(|(_, inode)| *inode != "0");
        Some(Self { range: number(start)?..number(end)?, permissions, offset, file })
    }
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
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let program = own_program(&maps).unwrap();
        // SAFETY: the same mappings as in `hand_back`, and nothing is taken away.
        unsafe {
            let start = std::ptr::with_exposed_provenance_mut(program.start);
            madvise(start, program.len(), Advice::LinuxPopulateRead).unwrap();
        }
        let ranges = maps.lines().filter_map(Mapping::of).map(|mapping| mapping.range);
        let parts: Vec<_> = ranges.filter(|range| program.contains(&range.start)).collect();
        let before: Vec<_> = parts.iter().map(|part| resident(part.start)).collect();
        hand_back().unwrap();
        for (part, before) in parts.iter().zip(before) {
            assert!(resident(part.start) < before, "{part:x?} had {before} KiB");
        }
    }

    #[test]
    fn only_code_and_the_constants_before_it_count() {
        let here = own_program as fn(&str) -> Option<Range<usize>> as usize & !0xfff;
        let (start, end) = (here - 0x2000, here + 0x1000);
        let code = format!("{here:x}-{end:x} r-xp 00002000 08:01 7 /bin/it\n");
        let after = |before: &str| own_program(&format!("{start:x}-{before}\n{code}"));
        let beginning = format!("{here:x} r--p 00000000 08:01 7 /bin/it");
        assert_eq!(after(&beginning), Some(start..end));
        for other in [
            // What a loader may have written to is no constant.
            beginning.replace("00000000", "00001000"),
            beginning.replace("r--p", "rw-p"),
            // What is no file's would be lost, and what is another's is none of ours.
            format!("{here:x} r--p 00000000 00:00 0"),
            beginning.replace(" 7 ", " 8 "),
            beginning.replace(&format!("{here:x}"), &format!("{:x}", here - 0x1000)),
        ] {
            assert_eq!(after(&other), Some(here..end), "{other}");
        }
        assert_eq!(own_program(""), None);
        assert_eq!(own_program("0-ffffffffffffffff rw-p 00000000 08:01 7 /bin/it\n"), None);
        assert_eq!(own_program("0-ffffffffffffffff r-xp 00000000 00:00 0\n"), None);
        assert_eq!(own_program("no map\n0-1 r-xp 00000000 08:01 7\n"), None);
    }
}
