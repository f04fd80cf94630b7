//! The uncompressed kernel, out of the self-extracting image that distributions ship.
//!
//! A bzImage is a boot sector and set-up code, followed by a program that unpacks the real kernel,
//! an ELF file that lies in it as its payload (Linux, Documentation/arch/x86/boot.rst). A
//! hypervisor that boots the ELF file through its PVH entry skips firmware and unpacking.

use object::LittleEndian;
use object::elf;
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader, SectionHeader};

use crate::compression;

/// Where a bzImage's header has its fields, and what it must say.
mod bzimage {
    pub(super) const SETUP_SECTORS: usize = 0x1f1;
    pub(super) const MAGIC: usize = 0x202;
    pub(super) const VERSION: usize = 0x206;
    pub(super) const PAYLOAD_OFFSET: usize = 0x248;
    pub(super) const PAYLOAD_LENGTH: usize = 0x24c;
    /// The first version of the protocol that has the payload's place.
    pub(super) const VERSION_WITH_PAYLOAD: u16 = 0x0208;
    pub(super) const SECTOR: usize = 512;
    /// The kernel's build appends the unpacked size to every payload (gzip has it by itself).
    pub(super) const SIZE_LENGTH: usize = 4;
}

/// The ELF note that holds the physical address of the PVH entry point
/// (Xen, public/elfnote.h: XEN_ELFNOTE_PHYS32_ENTRY).
const PVH_ENTRY_NOTE: (&[u8], elf::NoteType) = (b"Xen", elf::NoteType(18));

/// Why a kernel image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The file does not have the header of a bzImage.
    #[error("the kernel image is not an x86 bzImage")]
    NotABzImage,
    /// The header points outside the file.
    #[error("the kernel image is cut short")]
    Truncated,
    /// The payload cannot be unpacked.
    #[error(
        "cannot unpack the kernel image: its compression is damaged or not one of lz4, xz, zstd, \
         gzip and none"
    )]
    Unpack(#[source] std::io::Error),
    /// The payload unpacks to something else than a kernel.
    #[error("the kernel image does not hold a 64-bit ELF kernel")]
    NotAnElf(#[source] object::Error),
    /// The kernel cannot be started without firmware.
    #[error(
        "the kernel has no PVH entry point (ELF note XEN_ELFNOTE_PHYS32_ENTRY); use a kernel built \
         with CONFIG_PVH=y"
    )]
    NoPvhEntry,
}

/// The ELF kernel in a bzImage, checked to have a PVH entry point. An image that is an ELF kernel
/// already is given back as it is.
///
/// # Errors
/// When the image is damaged, or its kernel has no PVH entry point.
pub fn extract_vmlinux(image: &[u8]) -> Result<Vec<u8>, KernelError> {
    let mut vmlinux = if image.starts_with(&elf::ELFMAG) {
        image.to_vec()
    } else {
        compression::decompress(payload(image)?).map_err(KernelError::Unpack)?
    };
    let size = check(&vmlinux)?;
    // A relocatable kernel's table of relocations, for the unpacking program, comes after the ELF.
    vmlinux.truncate(size);
    Ok(vmlinux)
}

/// The compressed kernel in a bzImage, without the size that follows it.
fn payload(image: &[u8]) -> Result<&[u8], KernelError> {
    let bytes = |at: usize, length: usize| image.get(at..at + length);
    if bytes(bzimage::MAGIC, 4) != Some(b"HdrS") {
        return Err(KernelError::NotABzImage);
    }
    let half = |at| bytes(at, 2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    let word = |at| bytes(at, 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize);
    if half(bzimage::VERSION).ok_or(KernelError::Truncated)? < bzimage::VERSION_WITH_PAYLOAD {
        return Err(KernelError::NotABzImage);
    }
    let sectors = match image[bzimage::SETUP_SECTORS] {
        0 => 4, // as very old boot loaders have it
        sectors => usize::from(sectors),
    };
    let offset = word(bzimage::PAYLOAD_OFFSET).ok_or(KernelError::Truncated)?;
    let length = word(bzimage::PAYLOAD_LENGTH).ok_or(KernelError::Truncated)?;
    let start = (sectors + 1) * bzimage::SECTOR + offset;
    let payload = image.get(start..start + length).ok_or(KernelError::Truncated)?;
    let is_gzip = payload.starts_with(b"\x1f\x8b");
    let appended = if is_gzip { 0 } else { bzimage::SIZE_LENGTH };
    Ok(&payload[..payload.len().saturating_sub(appended)])
}

/// Checks that this is a kernel that PVH can start, and tells where the ELF file ends.
fn check(vmlinux: &[u8]) -> Result<usize, KernelError> {
    let file = ElfFile64::<LittleEndian>::parse(vmlinux).map_err(KernelError::NotAnElf)?;
    let endian = file.endian();
    let mut pvh = false;
    let mut end = 0;
    for segment in file.elf_program_headers() {
        end = end.max(segment.p_offset(endian).saturating_add(segment.p_filesz(endian)));
        let notes = segment.notes(endian, vmlinux).map_err(KernelError::NotAnElf)?;
        let Some(mut notes) = notes else { continue };
        while let Some(note) = notes.next().map_err(KernelError::NotAnElf)? {
            pvh |= (note.name(), note.n_type(endian)) == PVH_ENTRY_NOTE;
        }
    }
    let header = file.elf_header();
    for section in header.section_headers(endian, vmlinux).map_err(KernelError::NotAnElf)? {
        let (offset, size) = section.file_range(endian).unwrap_or_default();
        end = end.max(offset.saturating_add(size));
    }
    let table = u64::from(header.e_shnum(endian)) * u64::from(header.e_shentsize(endian));
    end = end.max(header.e_shoff(endian).saturating_add(table));
    if !pvh {
        return Err(KernelError::NoPvhEntry);
    }
    Ok(usize::try_from(end).map_or(vmlinux.len(), |end| end.min(vmlinux.len())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An ELF kernel of one segment, which holds one note of the given type.
    fn kernel(note_type: u32) -> Vec<u8> {
        let mut elf = vec![0; 64 + 56];
        elf[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
        elf[16] = 2; // executable
        elf[18] = 62; // x86-64
        elf[20] = 1;
        elf[32] = 64; // program headers' place
        elf[52] = 64;
        elf[54] = 56; // a program header's size
        elf[56] = 1;
        elf[58] = 64;
        let segment = &mut elf[64..];
        segment[0] = 4; // PT_NOTE
        segment[8] = 120; // offset
        segment[32] = 24; // size in the file
        segment[48] = 4; // alignment
        for word in [4u32, 8, note_type] {
            elf.extend_from_slice(&word.to_le_bytes());
        }
        elf.extend_from_slice(b"Xen\0");
        elf.extend_from_slice(&0x0100_0000u64.to_le_bytes());
        elf
    }

    fn bzimage_of(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 2 * bzimage::SECTOR];
        image[bzimage::SETUP_SECTORS] = 1;
        image[bzimage::MAGIC..][..4].copy_from_slice(b"HdrS");
        image[bzimage::VERSION..][..2].copy_from_slice(&0x020fu16.to_le_bytes());
        image[bzimage::PAYLOAD_OFFSET..][..4].copy_from_slice(&16u32.to_le_bytes());
        let length = payload.len() as u32 + 4;
        image[bzimage::PAYLOAD_LENGTH..][..4].copy_from_slice(&length.to_le_bytes());
        image.extend_from_slice(&[0x90; 16]);
        image.extend_from_slice(payload);
        image.extend_from_slice(&[0, 0, 0, 0]); // the unpacked size
        image
    }

    #[test]
    fn extract_finds_the_payload_and_cuts_the_relocations_off() {
        let kernel = kernel(PVH_ENTRY_NOTE.1.0);
        let payload = [&kernel[..], b"relocations"].concat();
        assert_eq!(extract_vmlinux(&bzimage_of(&payload)).unwrap(), kernel);
    }

    #[test]
    fn extract_takes_a_plain_elf() {
        let kernel = kernel(PVH_ENTRY_NOTE.1.0);
        assert_eq!(extract_vmlinux(&kernel).unwrap(), kernel);
    }

    #[test]
    fn extract_without_pvh_note_says_what_to_do() {
        let error = extract_vmlinux(&kernel(1)).unwrap_err();
        assert!(matches!(error, KernelError::NoPvhEntry));
        assert!(error.to_string().contains("CONFIG_PVH=y"));
    }

    #[test]
    fn extract_of_something_else_is_not_a_bzimage() {
        let error = extract_vmlinux(&[0; 4096]).unwrap_err();
        assert!(matches!(error, KernelError::NotABzImage));
    }

    proptest! {
        /// Damage anywhere is an error or harmless, never a panic.
        #[test]
        fn extract_survives_damage(at in any::<prop::sample::Index>(), byte in any::<u8>(),
                                   cut in any::<prop::sample::Index>()) {
            let mut image = bzimage_of(&kernel(PVH_ENTRY_NOTE.1.0));
            let at = at.index(image.len());
            image[at] = byte;
            image.truncate(cut.index(image.len()) + 1);
            let _ = extract_vmlinux(&image);
        }
    }
}
