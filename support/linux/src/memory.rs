//! How much memory the host has.

use std::io;

/// The host's memory in MiB (`MemTotal` of proc_meminfo(5)).
pub fn total_mib() -> io::Result<u32> {
    let info = rustix::system::sysinfo();
    let bytes = u128::from(info.totalram) * u128::from(info.mem_unit);
    u32::try_from(bytes >> 20).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_some() {
        assert!(total_mib().unwrap() > 0);
    }
}
