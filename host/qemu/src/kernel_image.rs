//! What kind of file the guest kernel is: QEMU's own words about a wrong one mislead.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Long enough for both marks.
const HEADER: u64 = 0x206;

/// The two forms that QEMU boots on x86.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KernelImage {
    /// Uncompressed (`vmlinux`), started directly through its PVH note. Any machine boots it.
    Elf,
    /// Compressed (`vmlinuz`), started by firmware.
    BzImage,
}

impl KernelImage {
    /// Looks at the file's first bytes. An error names the file.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let mut header = Vec::new();
        File::open(path)
            .and_then(|file| file.take(HEADER).read_to_end(&mut header))
            .map_err(named)?;
        Self::from_header(&header).ok_or_else(|| {
            named(io::Error::other("is neither an uncompressed kernel (vmlinux) nor a bzImage"))
        })
    }

    /// The marks are those of elf(5) and of Linux's boot protocol
    /// (Documentation/arch/x86/boot.rst).
    fn from_header(header: &[u8]) -> Option<Self> {
        if header.starts_with(b"\x7fELF") {
            Some(Self::Elf)
        } else if header.get(0x202..) == Some(b"HdrS") {
            Some(Self::BzImage)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_known_by_their_marks() {
        let mut compressed = vec![0; 0x202];
        compressed.extend(b"HdrS");
        assert_eq!(KernelImage::from_header(b"\x7fELF\x02"), Some(KernelImage::Elf));
        assert_eq!(KernelImage::from_header(&compressed), Some(KernelImage::BzImage));
        assert_eq!(KernelImage::from_header(b"#!/bin/sh\n"), None);
        assert_eq!(KernelImage::from_header(b""), None);
    }

    #[test]
    fn missing_file_is_named() {
        let error = KernelImage::of(Path::new("/no/such/vmlinux")).unwrap_err();
        assert!(error.to_string().starts_with("/no/such/vmlinux: No such file"), "{error}");
    }
}
