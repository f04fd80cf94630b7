//! Whether a machine needs to be made at all.

use std::fs::{self, File};

/// Whether this machine itself runs virtual machines with KVM. A device that opens is not enough: see `host/qemu`'s choice of
/// an accelerator.
#[must_use]
pub fn kvm_works() -> bool {
    let opens = File::options().read(true).write(true).open("/dev/kvm").is_ok();
    opens && has_extension(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
}

fn has_extension(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().filter(|line| line.starts_with("flags"));
    flags.flat_map(str::split_whitespace).any(|flag| matches!(flag, "vmx" | "svm"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_must_have_the_extension() {
        assert!(has_extension("flags\t\t: fpu svm sse\n"));
        assert!(!has_extension("flags : fpu sse\nvmx flags : vnmi\n"));
    }
}
