//! What a virtual machine boots whose time is the least that any guest can take: an initial ramdisk
//! whose init says what time it is, and ends the machine at once.

/// What the init writes before the time, and the letter that stands for 0 in it.
const MARKER: [u8; 8] = *b"[ticks: ";
const FIRST_DIGIT: u8 = b'a';

/// An archive (cpio "newc") with the init, and the console that it speaks through.
#[must_use]
pub fn floor_ramdisk() -> Vec<u8> {
    let mut archive = Vec::new();
    add(&mut archive, "dev", 0o040_755, [0, 0], &[]);
    add(&mut archive, "dev/console", 0o020_600, [5, 1], &[]);
    add(&mut archive, "init", 0o100_755, [0, 0], &init());
    add(&mut archive, "TRAILER!!!", 0, [0, 0], &[]);
    archive
}

/// The processor's time stamp counter, which is 0 when the machine starts, as the init of
/// [`floor_ramdisk`] has written it among what the kernel says. `None` if it has not.
#[must_use]
pub fn floor_ticks(serial: &[u8]) -> Option<u64> {
    let at = serial.windows(MARKER.len()).position(|window| window == MARKER)?;
    let digits: &[u8; 16] = serial.get(at + MARKER.len()..)?.first_chunk()?;
    digits.iter().try_fold(0, |ticks, digit| {
        let digit = digit.checked_sub(FIRST_DIGIT).filter(|digit| *digit < 16)?;
        Some(ticks << 4 | u64::from(digit))
    })
}

fn add(archive: &mut Vec<u8>, name: &str, mode: u32, [major, minor]: [u32; 2], content: &[u8]) {
    let length = |length: usize| u32::try_from(length).expect("files here are small");
    let (size, name_size) = (length(content.len()), length(name.len() + 1));
    // inode, mode, uid, gid, links, mtime, size, device and special device (major, minor), length
    // of the name, checksum
    let fields = [1, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0];
    archive.extend_from_slice(b"070701");
    archive.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend_from_slice(content);
    pad(archive);
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}

/// A program that writes the time stamp counter to its console, waits until it is out, and ends the
/// machine by reboot(2), for QEMU is told not to reboot.
fn init() -> Vec<u8> {
    #[rustfmt::skip]
    let mut code = vec![
        0x0f, 0x31,                   // rdtsc
        0x48, 0xc1, 0xe2, 0x20,       // shl rdx, 32
        0x48, 0x09, 0xd0,             // or rax, rdx
        0x48, 0x89, 0xc3,             // mov rbx, rax
        0x48, 0x83, 0xec, 0x20,       // sub rsp, 32
        0x48, 0x89, 0xe7,             // mov rdi, rsp
        0x48, 0xb8,                   // mov rax, MARKER
    ];
    code.extend(MARKER);
    #[rustfmt::skip]
    code.extend([
        0x48, 0xab,                   // stosq
        0xb9, 0x10, 0x00, 0x00, 0x00, // mov ecx, 16
        // A letter for each half byte, the highest first.
        0x48, 0xc1, 0xc3, 0x04,       // rol rbx, 4
        0x88, 0xd8,                   // mov al, bl
        0x24, 0x0f,                   // and al, 15
        0x04, FIRST_DIGIT,            // add al, FIRST_DIGIT
        0xaa,                         // stosb
        0xe2, 0xf3,                   // loop, 13 bytes back
        0xb8, 0x01, 0x00, 0x00, 0x00, // mov eax, 1 (write)
        0xbf, 0x01, 0x00, 0x00, 0x00, // mov edi, 1
        0x48, 0x89, 0xe6,             // mov rsi, rsp
        0xba, 0x18, 0x00, 0x00, 0x00, // mov edx, 24
        0x0f, 0x05,                   // syscall
        0xb8, 0x10, 0x00, 0x00, 0x00, // mov eax, 16 (ioctl)
        0xbe, 0x09, 0x54, 0x00, 0x00, // mov esi, TCSBRK
        0xba, 0x01, 0x00, 0x00, 0x00, // mov edx, 1: wait, and no break
        0x0f, 0x05,                   // syscall
        0xb8, 0xa9, 0x00, 0x00, 0x00, // mov eax, 169 (reboot)
        0xbf, 0xad, 0xde, 0xe1, 0xfe, // mov edi, LINUX_REBOOT_MAGIC1
        0xbe, 0x69, 0x19, 0x12, 0x28, // mov esi, LINUX_REBOOT_MAGIC2
        0xba, 0x67, 0x45, 0x23, 0x01, // mov edx, LINUX_REBOOT_CMD_RESTART
        0x4d, 0x31, 0xd2,             // xor r10, r10
        0x0f, 0x05,                   // syscall
        0xeb, 0xfe,                   // jmp here
    ]);
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let size = HEADERS + code.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let halves = |values: &[u16]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
    let kind = halves(&[2, 62]); // executable, x86-64
    let counts = halves(&[64, 56, 1, 64, 0, 0]);
    elf.extend(kind);
    elf.extend(1_u32.to_le_bytes());
    elf.extend([BASE + HEADERS, 64, 0].iter().flat_map(|v: &u64| v.to_le_bytes()));
    elf.extend(0_u32.to_le_bytes());
    elf.extend(counts);
    // One segment, readable and executable: the whole file.
    elf.extend([1_u32, 5].iter().flat_map(|v| v.to_le_bytes()));
    elf.extend([0, BASE, BASE, size, size, 0x1000].iter().flat_map(|v: &u64| v.to_le_bytes()));
    elf.extend(code);
    elf
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_found_among_the_kernels_words() {
        let mut serial = b"warning\r\n".to_vec();
        serial.extend(MARKER);
        assert_eq!(floor_ticks(&serial), None);
        serial.extend(b"aaaaaaaaaaabcdefreboot: Restarting system");
        assert_eq!(floor_ticks(&serial), Some(0x1_2345));
    }

    #[test]
    fn init_is_an_elf_program_of_its_whole_length() {
        let init = init();
        assert_eq!(init.len(), 64 + 56 + 29 + 84);
        assert_eq!(&init[24..32], &(0x40_0078_u64).to_le_bytes());
    }
}
