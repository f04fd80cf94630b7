//! Whether this kernel lets a process restrict itself (landlock(7)).

#![expect(unsafe_code, reason = "landlock_create_ruleset(2) has no safe wrapper")]

use std::ptr::null;

/// Asks for the version, and makes no ruleset (linux/landlock.h).
const CREATE_RULESET_VERSION: libc::c_uint = 1;

/// The version of landlock's interface that the running kernel has, 1 or more; `None` where it has
/// none or it is switched off.
#[must_use]
pub fn version() -> Option<u32> {
    // SAFETY: with this flag the call reads no attributes, so a null pointer of length 0 is what it
    // wants.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            null::<libc::c_void>(),
            0_usize,
            CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(version).ok().filter(|&version| version > 0)
}
