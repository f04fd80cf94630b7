//! The least that a virtual machine can take: the same QEMU, machine and kernel, and an init that
//! says what time it is, and ends at once.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kata_e2e::{Client, Deadline, Input, Process};

/// Options with a value that make the machine and what boots in it.
const KEPT: &[&str] = &[
    "-machine", "-global", "-accel", "-cpu", "-smp", "-m", "-bios", "-kernel", "-append",
    "-display",
];

/// Options without a value.
const FLAGS: &[&str] = &["-nodefaults", "-no-user-config", "-no-reboot"];

/// What the init writes before the time, and the letter that stands for 0 in it.
const MARKER: [u8; 8] = *b"[ticks: ";
const FIRST_DIGIT: u8 = b'a';

/// How long a machine took.
#[derive(Debug)]
pub(crate) struct Boot {
    /// From the VMM's start to its end.
    pub(crate) whole: Duration,
    /// From the machine's start, which comes after the VMM's, to its init. `None` where nobody has
    /// told the guest how fast its counter counts.
    pub(crate) kernel: Option<Duration>,
}

/// Boots the machine of `vmm` with an initial ramdisk that ends it at once.
pub(crate) fn measure(vmm: &Recipe, directory: &Path) -> Result<Boot> {
    let initrd = directory.join("floor.img");
    fs::write(&initrd, initial_ramdisk()).context("cannot write the initial ramdisk")?;
    let mut command = Command::new(&vmm.program);
    command.args(&vmm.arguments).arg("-initrd").arg(&initrd).args(["-serial", "stdio"]);
    let start = Instant::now();
    let output = Client::spawn(command, Input::Nothing)?
        .wait_until(Deadline::after(Duration::from_secs(30)))
        .context("the floor's machine does not end")?;
    let whole = start.elapsed();
    ensure!(output.code == 0, "the floor's machine failed: {output}");
    let ticks = ticks(&output.stdout).context("the floor's init has not come to say the time")?;
    let kernel = vmm.khz().map(|khz| Duration::from_secs_f64(ticks as f64 / khz / 1000.0));
    Ok(Boot { whole, kernel })
}

/// The processor's time stamp counter, which is 0 when the machine starts, as the init has written
/// it among what the kernel says.
fn ticks(serial: &[u8]) -> Option<u64> {
    let at = serial.windows(MARKER.len()).position(|window| window == MARKER)?;
    let digits: &[u8; 16] = serial.get(at + MARKER.len()..)?.first_chunk()?;
    digits.iter().try_fold(0, |ticks, digit| {
        let digit = digit.checked_sub(FIRST_DIGIT).filter(|digit| *digit < 16)?;
        Some(ticks << 4 | u64::from(digit))
    })
}

/// A QEMU command line without devices and initial ramdisk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recipe {
    program: String,
    arguments: Vec<String>,
}

impl Recipe {
    /// The machine of a sandbox's QEMU.
    pub(crate) fn of(vmm: &Process) -> Result<Self> {
        let program = vmm.program.to_str().context("QEMU's path is not UTF-8")?;
        let recipe = Self::from(program, &vmm.command_line);
        // It has its kernel as a descriptor.
        let Some(fd) = recipe.kernel().and_then(|kernel| kernel.strip_prefix("/proc/self/fd/"))
        else {
            return Ok(recipe);
        };
        let kernel = fs::read_link(format!("/proc/{}/fd/{fd}", vmm.pid));
        Ok(recipe.with_kernel(&kernel.context("QEMU's kernel cannot be told")?))
    }

    /// The same machine with another kernel.
    pub(crate) fn with_kernel(&self, kernel: &Path) -> Self {
        let mut recipe = self.clone();
        let named = recipe.kernel_at().and_then(|at| recipe.arguments.get_mut(at));
        if let Some(named) = named {
            *named = kernel.display().to_string();
        }
        recipe
    }

    /// How often the time stamp counter counts in a millisecond, as the kernel is told.
    fn khz(&self) -> Option<f64> {
        let words = self.arguments.iter().flat_map(|argument| argument.split(' '));
        words
            .filter_map(|word| word.strip_prefix("tsc_early_khz="))
            .find_map(|khz| khz.parse().ok())
    }

    fn kernel(&self) -> Option<&str> {
        self.kernel_at().and_then(|at| self.arguments.get(at)).map(String::as_str)
    }

    fn kernel_at(&self) -> Option<usize> {
        self.arguments.iter().position(|word| word == "-kernel").map(|option| option + 1)
    }

    fn from(program: &str, command_line: &[String]) -> Self {
        let mut arguments = Vec::new();
        let mut words = command_line.iter().skip(1).peekable();
        while let Some(word) = words.next() {
            if FLAGS.contains(&word.as_str()) {
                arguments.push(word.clone());
                continue;
            }
            let value = words.next_if(|value| !value.starts_with('-'));
            let memory = word == "-object"
                && value.is_some_and(|value| value.starts_with("memory-backend-"));
            if KEPT.contains(&word.as_str()) || memory {
                arguments.push(word.clone());
                arguments.extend(value.cloned());
            }
        }
        Self { program: program.to_owned(), arguments }
    }
}

/// An archive (cpio "newc") with the init, and the console that it speaks through.
fn initial_ramdisk() -> Vec<u8> {
    let mut archive = Vec::new();
    add(&mut archive, "dev", 0o040_755, [0, 0], &[]);
    add(&mut archive, "dev/console", 0o020_600, [5, 1], &[]);
    add(&mut archive, "init", 0o100_755, [0, 0], &init());
    add(&mut archive, "TRAILER!!!", 0, [0, 0], &[]);
    archive
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
    fn recipe_keeps_the_machine_and_drops_devices() {
        let line = "qemu -nodefaults -no-reboot -name sandbox-x -machine microvm,memory-backend=ram -accel tcg \
            -object memory-backend-memfd,id=ram,size=256M -m 256M -bios qboot.rom -kernel /k -initrd /i -append console=ttyS0 \
            -chardev socket,id=c,fd=3 -mon chardev=c -object rng-random,id=r -device virtio-rng-device,rng=r -sandbox on";
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let expected = "-nodefaults -no-reboot -machine microvm,memory-backend=ram -accel tcg \
            -object memory-backend-memfd,id=ram,size=256M -m 256M -bios qboot.rom -kernel /k -append console=ttyS0";
        let recipe = Recipe::from("/usr/bin/qemu", &words);
        assert_eq!(recipe.arguments.join(" "), expected);
        let other = recipe.with_kernel(Path::new("/other"));
        assert_eq!(other.arguments.join(" "), expected.replace("/k", "/other"));
    }

    #[test]
    fn ticks_are_found_among_the_kernels_words() {
        let mut serial = b"warning\r\n".to_vec();
        serial.extend(MARKER);
        assert_eq!(ticks(&serial), None);
        serial.extend(b"aaaaaaaaaaabcdefreboot: Restarting system");
        assert_eq!(ticks(&serial), Some(0x1_2345));
    }

    #[test]
    fn frequency_is_what_the_kernel_is_told() {
        let recipe = |append: &str| Recipe {
            program: String::new(),
            arguments: vec!["-append".to_owned(), append.to_owned()],
        };
        assert_eq!(recipe("quiet tsc_early_khz=2600000 panic=-1").khz(), Some(2_600_000.0));
        assert_eq!(recipe("quiet").khz(), None);
    }

    #[test]
    fn init_is_an_elf_program_of_its_whole_length() {
        let init = init();
        assert_eq!(init.len(), 64 + 56 + 29 + 84);
        assert_eq!(&init[24..32], &(0x40_0078_u64).to_le_bytes());
    }
}
