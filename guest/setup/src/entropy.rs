//! Feeding the kernel's random number generator.
#![expect(unsafe_code, reason = "RNDADDENTROPY and RNDRESEEDCRNG have no safe wrapper")]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;

/// More than this is of no use to a generator with 256 bits of state.
pub const MAX_SEED: usize = 4096;

/// `_IOW('R', 0x03, int[2])` of linux/random.h.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
/// `_IO('R', 0x07)` of linux/random.h.
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// Why the generator could not be seeded.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// The host sent nothing, or too much.
    #[error("{length} bytes of seed were given, expected 1 to {MAX_SEED}")]
    Length {
        /// How much was given.
        length: usize,
    },
    /// The kernel refused.
    #[error("cannot seed /dev/random")]
    Seed(#[source] io::Error),
}

/// Layout of `struct rand_pool_info` of linux/random.h.
#[repr(C)]
struct PoolInfo {
    /// In bits.
    entropy_count: libc::c_int,
    /// In bytes.
    size: libc::c_int,
    data: [u8; MAX_SEED],
}

/// Mixes `seed` in, credits it as full entropy (it comes from the host's generator), and makes the
/// generator use it at once, so that two clones of one virtual machine part ways here.
///
/// # Errors
///
/// Fails when `seed` is empty or longer than [`MAX_SEED`], and without `CAP_SYS_ADMIN`.
pub fn reseed(seed: &[u8]) -> Result<(), SeedError> {
    if seed.is_empty() || seed.len() > MAX_SEED {
        return Err(SeedError::Length { length: seed.len() });
    }
    let mut pool = PoolInfo { entropy_count: 0, size: 0, data: [0; MAX_SEED] };
    pool.data[..seed.len()].copy_from_slice(seed);
    pool.size = libc::c_int::try_from(seed.len()).expect("bounded above");
    pool.entropy_count = pool.size * 8;

    let random = OpenOptions::new().write(true).open("/dev/random").map_err(SeedError::Seed)?;
    // SAFETY: the file is open, and the request reads a struct of exactly this layout, of which
    // `size` bytes of data are initialised.
    let added = unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY as _, &raw const pool) };
    if added < 0 {
        return Err(SeedError::Seed(io::Error::last_os_error()));
    }
    // SAFETY: the request takes no argument.
    let reseeded = unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG as _, 0) };
    if reseeded < 0 {
        return Err(SeedError::Seed(io::Error::last_os_error()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reseed_empty_or_huge_seed_is_refused() {
        assert!(matches!(reseed(&[]), Err(SeedError::Length { length: 0 })));
        assert!(matches!(reseed(&[0; MAX_SEED + 1]), Err(SeedError::Length { .. })));
    }
}
