//! Whether KVM works here.

use std::fs::{self, File};
use std::io;

/// What keeps KVM from being used, in words that fit into a sentence; `None` where it works.
#[must_use]
pub fn kvm_obstacle() -> Option<String> {
    let device = File::options().read(true).write(true).open("/dev/kvm");
    obstacle(device.map(drop), &fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
}

/// A device that opens is not enough on x86: kernels that are guests of a PVM host have one that
/// runs a guest instruction by instruction and gives up minutes later. Their processor shows
/// neither of the two extensions.
fn obstacle(device: io::Result<()>, cpuinfo: &str) -> Option<String> {
    if let Err(error) = device {
        return Some(format!("/dev/kvm: {error}"));
    }
    let has_extension = !cfg!(target_arch = "x86_64")
        || cpuinfo
            .lines()
            .filter(|line| line.starts_with("flags"))
            .any(|line| line.split_whitespace().any(|flag| matches!(flag, "vmx" | "svm")));
    (!has_extension).then(|| "the processor has neither vmx nor svm".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_needs_the_device_and_the_extension() {
        assert_eq!(obstacle(Ok(()), "flags\t\t: fpu svm sse\n"), None);
        assert_eq!(obstacle(Ok(()), "flags : fpu vmx\n"), None);
        assert!(obstacle(Ok(()), "flags : fpu svm_lock\nvmx flags : vnmi\n").is_some());
        let missing = Err(io::Error::from(io::ErrorKind::NotFound));
        assert!(obstacle(missing, "flags : vmx").unwrap().starts_with("/dev/kvm"));
    }
}
