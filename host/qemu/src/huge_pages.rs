//! Guest memory of huge pages: of the host's pool, which its administrator fills (Linux,
//! Documentation/admin-guide/mm/hugetlbpage.rst).

use std::path::Path;
use std::{fs, io};

use kata_hypervisor::{HypervisorError, VmSpec};

/// The size of those that are taken, in MiB. The memory of a VM is a multiple of it.
pub(crate) const SIZE_MIB: u32 = 2;

/// The kernel's numbers about them.
const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// How many pages nobody has or was promised.
pub(crate) fn free() -> io::Result<u64> {
    free_in(Path::new(POOL))
}

fn free_in(pool: &Path) -> io::Result<u64> {
    let number = |file: &str| {
        let text = fs::read_to_string(pool.join(file))?;
        text.trim().parse::<u64>().map_err(io::Error::other)
    };
    Ok(number("free_hugepages")?.saturating_sub(number("resv_hugepages")?))
}

/// Refuses a VM for which there are too few: all that it may ever have are set aside when it boots.
pub(crate) fn check(spec: &VmSpec) -> Result<(), HypervisorError> {
    let error = match free() {
        Ok(free) => match shortage(spec, free) {
            None => return Ok(()),
            Some(shortage) => io::Error::other(shortage),
        },
        Err(error) => io::Error::new(
            error.kind(),
            format!(
                "{POOL}: {error}; this host's kernel has none: set `enable_hugepages` to false"
            ),
        ),
    };
    Err(HypervisorError::Setup { what: "huge pages", source: error })
}

fn shortage(spec: &VmSpec, free: u64) -> Option<String> {
    let mib = spec.most_memory_mib.unwrap_or(spec.memory_mib);
    let needed = u64::from(mib.div_ceil(SIZE_MIB));
    (needed > free).then(|| {
        format!(
            "{mib} MiB need {needed} huge pages of {SIZE_MIB} MiB and {free} are free; raise /proc/sys/vm/nr_hugepages by {} or more, or set \
             `enable_hugepages` to false",
            needed - free
        )
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use kata_hypervisor::GuestRoot;

    use super::*;

    #[test]
    fn pages_that_were_promised_are_not_free() {
        let pool = tempfile::tempdir().unwrap();
        assert!(free_in(pool.path()).is_err());
        fs::write(pool.path().join("free_hugepages"), "200\n").unwrap();
        fs::write(pool.path().join("resv_hugepages"), "50\n").unwrap();
        assert_eq!(free_in(pool.path()).unwrap(), 150);
    }

    #[test]
    fn all_pages_that_a_vm_may_have_must_be_free() {
        let initrd = GuestRoot::Initrd(PathBuf::new());
        let mut spec = VmSpec::bare("web", "/kernel", initrd, "/run/kata/web");
        assert_eq!(shortage(&spec, 128), None);
        let sentence = shortage(&spec, 100).unwrap();
        assert!(sentence.starts_with("256 MiB need 128 huge pages of 2 MiB and 100 are free"));
        assert!(sentence.contains("/proc/sys/vm/nr_hugepages by 28 or more"), "{sentence}");
        spec.most_memory_mib = Some(512);
        assert!(shortage(&spec, 255).is_some());
    }
}
