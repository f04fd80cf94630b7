//! What a bind mount's source is, and who has to provide it.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor, statfs};

/// Who provides the source of a bind mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// The host: a directory or file to be shared, its links resolved.
    Host(PathBuf),
    /// The guest has the same under this path: a device that every kernel has, or a part of
    /// `/proc`, `/sys` or `/dev`.
    Guest(PathBuf),
    /// Memory that processes share: the guest makes its own.
    SharedMemory(SharedMemory),
    /// Nobody; the reason is a sentence's end.
    Refused(String),
}

/// Memory of the guest in place of memory of the host, which no process of the VM could share with
/// one of the host. Containers of one sandbox that are given the same of the host's are given the
/// same of the guest's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedMemory {
    /// Where the guest is to have it, as a tmpfs.
    pub guest_path: PathBuf,
    /// The most that it may hold, in bytes; 0 is no limit but the guest's own.
    pub size: u64,
}

/// The kernel's own file systems by their magic numbers (statfs(2)). Files on them are faces of the
/// host's kernel, and mean nothing in a guest, or too much.
const KERNEL_FILE_SYSTEMS: [(u64, &str); 14] = [
    (0x9fa0, "proc"),
    (0x6265_6572, "sysfs"),
    (0x0027_e0eb, "cgroup"),
    (0x6367_7270, "cgroup2"),
    (0x6462_6720, "debugfs"),
    (0x7472_6163, "tracefs"),
    (0x7363_6673, "securityfs"),
    (0xcafe_4a11, "bpf"),
    (0x1cd1, "devpts"),
    (0xde5e_81e4, "efivarfs"),
    (0x6165_676c, "pstore"),
    (0xf97c_ff8c, "selinuxfs"),
    (0x6e73_6673, "nsfs"),
    (0x9584_58f6, "hugetlbfs"),
];

const TMPFS: u64 = 0x0102_1994;

/// Where the guest has the memory that containers share; the rest of the name says which.
const GUEST_MEMORY: &str = "/run/kata-containers/sandbox/shm";

/// Looks at `source` as it is now. An error means that it is not there or cannot be reached.
pub(crate) fn look_at(source: &Path, destination: &Path) -> io::Result<Source> {
    let path = fs::canonicalize(source)?;
    let metadata = fs::metadata(&path)?;
    let kind = metadata.file_type();
    if kind.is_block_device() {
        return Ok(Source::Refused(format!(
            "its source {} is a block device; pass it as a device, not as a mount",
            source.display()
        )));
    }
    if kind.is_char_device() {
        return Ok(device(major(metadata.rdev()), minor(metadata.rdev()), source));
    }
    let file_system = statfs(&path)?;
    // The field's type differs from one architecture to the next; the numbers have 32 bits.
    let magic = u64::from(file_system.f_type as u32);
    if destination == Path::new("/dev/shm") && magic == TMPFS && kind.is_dir() {
        let blocks = u64::try_from(file_system.f_bsize).unwrap_or(0);
        let size = file_system.f_blocks.saturating_mul(blocks);
        return Ok(Source::SharedMemory(SharedMemory {
            guest_path: guest_memory(&metadata),
            size,
        }));
    }
    let of_kernel = KERNEL_FILE_SYSTEMS.iter().find(|(number, _)| *number == magic);
    if is_in_system_tree(&path) {
        return Ok(Source::Guest(path));
    }
    Ok(match of_kernel {
        Some((_, name)) => Source::Refused(format!(
            "its source {} is on the {name} file system of the host's kernel; mount that file system in the container instead",
            source.display()
        )),
        None => Source::Host(path),
    })
}

/// A name that this directory of the host has for as long as it is mounted, and no other.
fn guest_memory(metadata: &fs::Metadata) -> PathBuf {
    PathBuf::from(format!("{GUEST_MEMORY}-{:x}-{:x}", metadata.dev(), metadata.ino()))
}

/// Whether the path belongs to what a guest has itself. Shared memory below `/dev` is ordinary
/// files.
fn is_in_system_tree(path: &Path) -> bool {
    let below = |tree: &str| path.starts_with(tree);
    below("/proc") || below("/sys") || (below("/dev") && !below("/dev/shm"))
}

/// Linux's Documentation/admin-guide/devices.txt: the devices without hardware, which a guest has
/// too.
fn device(major: u32, minor: u32, source: &Path) -> Source {
    let path = match (major, minor) {
        (1, 3) => "/dev/null",
        (1, 5) => "/dev/zero",
        (1, 7) => "/dev/full",
        (1, 8) => "/dev/random",
        (1, 9) => "/dev/urandom",
        (1, 11) => "/dev/kmsg",
        (5, 0) => "/dev/tty",
        (10, 200) => "/dev/net/tun",
        (10, 229) => "/dev/fuse",
        (10, 237) => "/dev/loop-control",
        _ => {
            return Source::Refused(format!(
                "its source {} is a device of the host ({major}:{minor}), which the VM does not have; pass it as a device, not as a mount",
                source.display()
            ));
        }
    };
    Source::Guest(PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(source: &str) -> Source {
        look_at(Path::new(source), Path::new("/mnt")).unwrap()
    }

    #[test]
    fn files_and_directories_are_the_hosts() {
        let dir = tempfile::tempdir().unwrap();
        let dir = fs::canonicalize(dir.path()).unwrap();
        let link = dir.join("link");
        std::os::unix::fs::symlink(&dir, &link).unwrap();
        assert_eq!(look_at(&link, Path::new("/mnt")).unwrap(), Source::Host(dir));
    }

    #[test]
    fn devices_without_hardware_are_the_guests() {
        for path in ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"] {
            assert_eq!(look(path), Source::Guest(path.into()));
        }
        assert!(matches!(device(1, 1, Path::new("/dev/mem")), Source::Refused(_)));
    }

    #[test]
    fn kernel_file_systems_are_the_guests() {
        assert_eq!(look("/sys/fs"), Source::Guest("/sys/fs".into()));
        assert_eq!(look("/proc/sys"), Source::Guest("/proc/sys".into()));
        assert_eq!(look("/dev"), Source::Guest("/dev".into()));
    }

    #[test]
    fn tmpfs_on_dev_shm_is_shared_memory() {
        let found = look_at(Path::new("/dev/shm"), Path::new("/dev/shm")).unwrap();
        assert!(matches!(&found, Source::SharedMemory(memory) if memory.size > 0), "{found:?}");
        assert_eq!(look_at(Path::new("/dev/shm"), Path::new("/dev/shm")).unwrap(), found);
        assert_eq!(look("/dev/shm"), Source::Host("/dev/shm".into()));
    }

    #[test]
    fn missing_source_is_an_error() {
        assert_eq!(
            look_at(Path::new("/nope"), Path::new("/mnt")).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
