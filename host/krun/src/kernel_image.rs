//! Whether a guest kernel is one that this VMM can boot.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use memchr::memmem;

/// How much is looked at a time.
const CHUNK: usize = 256 * 1024;

/// The parameter by which a kernel that has `CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES` built in learns of
/// its devices (Documentation/admin-guide/kernel-parameters.txt); its name stands in the image.
const PARAMETER: &[u8] = b"virtio_mmio.device\0";

/// What keeps the kernel from being booted, in words that fit into a sentence; `None` if nothing is
/// seen.
pub(crate) fn obstacle(kernel: &Path) -> Option<String> {
    let name = kernel.display();
    let found = File::open(kernel).and_then(look_at);
    match found {
        Ok(Found::Bootable) => None,
        Ok(Found::NoElf) => Some(format!("{name} is not an uncompressed kernel (vmlinux)")),
        Ok(Found::NoParameter) => Some(format!(
            "{name} does not take devices from its command line (CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES), which distributions leave out; \
             build the small guest kernel"
        )),
        Err(error) => Some(format!("{name}: {error}")),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Found {
    Bootable,
    NoElf,
    NoParameter,
}

fn look_at(mut image: impl Read) -> io::Result<Found> {
    let finder = memmem::Finder::new(PARAMETER);
    let mut seen = Vec::with_capacity(CHUNK + PARAMETER.len());
    let mut first = true;
    loop {
        let kept = seen.len();
        image.by_ref().take(CHUNK as u64).read_to_end(&mut seen)?;
        if std::mem::take(&mut first) && !seen.starts_with(b"\x7fELF") {
            return Ok(Found::NoElf);
        }
        if finder.find(&seen).is_some() {
            return Ok(Found::Bootable);
        }
        if seen.len() == kept {
            return Ok(Found::NoParameter);
        }
        // The parameter may lie across two chunks.
        seen.drain(..seen.len().saturating_sub(PARAMETER.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(padding: usize, parameter: &[u8]) -> Vec<u8> {
        let mut image = b"\x7fELF".to_vec();
        image.resize(padding, 0);
        image.extend_from_slice(parameter);
        image.resize(image.len() + 5000, 0);
        image
    }

    #[test]
    fn parameter_is_found_also_across_chunks() {
        for padding in [10, CHUNK - 7, CHUNK - PARAMETER.len(), CHUNK, 3 * CHUNK - 1] {
            let found = look_at(image(padding, PARAMETER).as_slice()).unwrap();
            assert_eq!(found, Found::Bootable, "{padding}");
        }
    }

    #[test]
    fn distributions_kernel_and_other_files_are_told_apart() {
        assert_eq!(look_at(image(CHUNK, b"virtio_mmio\0").as_slice()).unwrap(), Found::NoParameter);
        assert_eq!(look_at(b"#!/bin/sh\n".as_slice()).unwrap(), Found::NoElf);
        let missing = obstacle(Path::new("/no/such/vmlinux")).unwrap();
        assert!(missing.starts_with("/no/such/vmlinux: No such file"), "{missing}");
    }
}
