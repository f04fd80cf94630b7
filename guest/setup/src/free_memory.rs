//! How much memory the kernel keeps free.

use std::fs;
use std::io;

/// In KiB (proc_sys_vm(5)).
const MIN_FREE: &str = "/proc/sys/vm/min_free_kbytes";

/// Brings the kernel's reserve of free memory back to what it is by default. Where transparent huge
/// pages are to be had, which they are from 512 MiB on, the kernel raises it to 22 MiB and more (at
/// most a twentieth of the memory) so that it finds room for them, and counts half as much again as
/// not available. It does so when it boots, and when memory is added.
/// Where that fails, the log says so.
pub fn lower_reserve() {
    if let Err(error) = try_to_lower() {
        tracing::warn!(%error, "the kernel keeps more memory free than it needs");
    }
}

fn try_to_lower() -> io::Result<()> {
    let info = rustix::system::sysinfo();
    let total = info.totalram * u64::from(info.mem_unit) / 1024;
    let present = fs::read_to_string(MIN_FREE)?.trim().parse().map_err(io::Error::other)?;
    let default = default_reserve(total);
    if default < present { fs::write(MIN_FREE, default.to_string()) } else { Ok(()) }
}

/// The kernel's own rule, of and in KiB: four times the square root, from 128 KiB to 256 MiB.
fn default_reserve(total: u64) -> u64 {
    (total * 16).isqrt().clamp(128, 256 << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserve_grows_more_slowly_than_memory() {
        assert_eq!(default_reserve(16), 128);
        assert_eq!(default_reserve(256 << 10), 2048);
        assert_eq!(default_reserve(2 << 20), 5792);
        assert_eq!(default_reserve(1 << 40), 256 << 10);
    }
}
