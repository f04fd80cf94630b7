//! What is said about a guest that failed: why it ended, its last words, and what to do about it.
//!
//! Whatever the guest wrote to its console is evidence and no more: it is quoted, and nothing is
//! decided by it but the words of a message, and how soon the guest is asked whether it is there.

use kata_hypervisor::{Console, GuestRoot, Vm, VmExit, VmSpec};

/// How many lines of the console and of the VMM's stderr are quoted.
const QUOTED_LINES: usize = 8;

/// How far back the console is searched for a kernel's last words.
const SEARCHED_LINES: usize = 100;

/// What a Linux kernel says when it gives up (kernel/panic.c).
const PANIC: &str = "Kernel panic - not syncing: ";

/// What it says when it powers off (kernel/reboot.c): machines without a switch for that are reset.
const POWER_DOWN: &str = "reboot: Power down";

/// What it says last when it has stopped its processors, for there is no such switch, or for it was
/// told to halt (the same file). Nothing but its silence follows.
const HALTED: [&str; 2] =
    ["reboot: Power off not available: System halted instead", "reboot: System halted"];

/// How many lines of the console may come after that, from processors that were stopped later.
const LINES_AFTER_HALT: usize = 3;

/// Why a sandbox ends whose guest has stopped.
pub(crate) const STOPPED: &str = "the guest powered off or halted";

/// What it says of a block of its image that does not match the hash tree (dm-verity).
const CORRUPTED: &str = "dm-verity device corrupted";

/// What it says of an initial ramdisk that is no archive, or for which there is no memory
/// (init/initramfs.c, arch/x86/kernel/setup.c).
const NOT_UNPACKED: &str = "Initramfs unpacking failed";
const NO_ROOM: [&str; 3] = [
    "Initramfs unpacking failed: write error",
    "disabling initrd",
    "System is deadlocked on memory",
];

/// What it says when there is nothing to mount (init/do_mounts.c).
const NO_ROOT: [&str; 3] =
    ["Unable to mount root fs", "Cannot open root device", "Waiting for root device"];

/// What it says when there is nothing to execute (init/main.c).
const NO_INIT: [&str; 3] = ["No working init found", "Requested init", "Failed to execute"];

/// Why a VM ended by itself, as a sentence's beginning. A signal comes from the host, whatever the
/// guest has written.
pub(crate) fn cause(vm: &dyn Vm, exit: &VmExit) -> String {
    cause_in(exit, &vm.console().last_lines(SEARCHED_LINES))
}

fn cause_in(exit: &VmExit, console: &[String]) -> String {
    if exit.signal.is_none() {
        let reason = exit.reason.as_deref();
        if let Some(words) = panic_in(console).map(|at| panic_words(&console[at])) {
            return format!("the guest's kernel panicked: {words}");
        }
        let is_off = console.iter().any(|line| line.contains(POWER_DOWN));
        match reason {
            Some("guest-panic") => return "the guest's kernel panicked".to_owned(),
            Some("guest-shutdown") => return "the guest powered off".to_owned(),
            Some("guest-reset") if is_off => return "the guest powered off".to_owned(),
            Some("guest-reset") => return "the guest rebooted".to_owned(),
            _ => {}
        }
    }
    format!("the VM {exit}")
}

/// Whether the last that the kernel has said is that it stopped its processors.
pub(crate) fn has_stopped(console: &Console) -> bool {
    let lines = console.last_lines(LINES_AFTER_HALT + 1);
    lines.iter().any(|line| HALTED.iter().any(|words| line.contains(words)))
}

/// Where in the console the last panic is told.
fn panic_in(console: &[String]) -> Option<usize> {
    console.iter().rposition(|line| line.contains(PANIC) && !line.contains("end Kernel panic"))
}

fn panic_words(line: &str) -> &str {
    line.split_once(PANIC).map_or(line, |(_, words)| words)
}

/// What VMM and console said last, on one line. A kernel that panicked says why before it lists
/// where, so that line comes first, after those that explain it.
pub(crate) fn last_words(vm: &dyn Vm) -> String {
    let vmm = vm.stderr();
    let vmm = quote(&vmm[vmm.len().saturating_sub(QUOTED_LINES)..], "the hypervisor said nothing");
    let console = vm.console().last_lines(SEARCHED_LINES);
    format!("{vmm}; {}", quote(&last_lines(&console), "the guest's console is empty"))
}

fn last_lines(console: &[String]) -> Vec<&str> {
    let panic = panic_in(console);
    let from = panic.unwrap_or(console.len().saturating_sub(QUOTED_LINES));
    let explanations = console[..from].iter().filter(|line| explains(line));
    let mut lines: Vec<&str> = explanations.map(String::as_str).collect();
    lines.drain(..lines.len().saturating_sub(QUOTED_LINES / 2));
    lines.extend(console[from..].iter().map(String::as_str).take(QUOTED_LINES - lines.len()));
    lines
}

fn explains(line: &str) -> bool {
    let mut marks =
        NO_ROOM.iter().chain(&NO_ROOT).chain(&NO_INIT).chain([&NOT_UNPACKED, &CORRUPTED]);
    marks.any(|mark| line.contains(mark))
}

/// Lines as they stand in a sentence.
pub(crate) fn quote<T: AsRef<str>>(lines: &[T], nothing: &str) -> String {
    let lines: Vec<&str> = lines.iter().map(AsRef::as_ref).collect();
    if lines.is_empty() {
        nothing.to_owned()
    } else {
        format!("last words: `{}`", lines.join(" | "))
    }
}

/// What is most often behind a guest that did not come up, to follow its last words; empty if
/// nothing is known.
pub(crate) fn remedy(vm: &dyn Vm, spec: &VmSpec) -> String {
    let remedy = remedy_in(&vm.console().last_lines(SEARCHED_LINES), spec);
    remedy.map_or_else(String::new, |remedy| format!("; {remedy}"))
}

fn remedy_in(console: &[String], spec: &VmSpec) -> Option<String> {
    let says =
        |marks: &[&str]| console.iter().any(|line| marks.iter().any(|mark| line.contains(mark)));
    if console.is_empty() || says(&NO_ROOM) {
        let memory = spec.memory_mib;
        return Some(format!(
            "{memory} MiB of memory may be too little: raise `default_memory`, or check `kernel`"
        ));
    }
    if says(&[CORRUPTED]) {
        return Some(format!(
            "the guest's {} is not the one that `kernel_verity_params` was made for: it was changed or is damaged; \
             build or install it anew, together with its `kernel_verity_params`",
            root_file(spec)
        ));
    }
    if says(&[NOT_UNPACKED]) {
        return Some(format!(
            "the guest's {} is damaged, or compressed in a way that the kernel does not know; build or install it anew",
            initrd_file(spec)
        ));
    }
    if says(&NO_ROOT) {
        return Some(no_root(spec));
    }
    says(&NO_INIT).then(|| {
        format!(
            "the guest's {} has no init that its kernel can execute; build or install it anew",
            root_file(spec)
        )
    })
}

/// Why a kernel that has what it was given finds nothing to mount.
fn no_root(spec: &VmSpec) -> String {
    let kernel = spec.kernel.display();
    let file = root_file(spec);
    let GuestRoot::Image(image) = &spec.root else {
        return format!(
            "the guest's {file} has no /init that its kernel can execute; build or install it anew"
        );
    };
    let file_system = &image.file_system;
    if image.verity.is_some() {
        return format!(
            "the kernel {kernel} (`kernel`) did not find or could not check the guest's {file}: with `kernel_verity_params` it needs the disk's \
             driver, {file_system}, dm-verity and dm-init built in, as the small kernel has them and a distribution's does not; \
             use the small kernel (make kernel), or remove `kernel_verity_params`"
        );
    }
    match &image.drivers {
        None => format!(
            "the kernel {kernel} (`kernel`) did not find or could not mount the guest's {file}: it needs the disk's driver and {file_system} \
             (`rootfs_type`) built in; set `image_drivers` to that kernel's initial ramdisk, or use the small kernel (make kernel)"
        ),
        Some(drivers) => format!(
            "the guest's {file} could not be mounted; check `rootfs_type`, and that {} (`image_drivers`) was made for {kernel} (`kernel`)",
            drivers.display()
        ),
    }
}

/// The file with the agent, and its key.
fn root_file(spec: &VmSpec) -> String {
    match &spec.root {
        GuestRoot::Initrd(_) => initrd_file(spec),
        GuestRoot::Image(image) => format!("image {} (`image`)", image.file.display()),
    }
}

/// The initial ramdisk that the kernel was given, and its key.
fn initrd_file(spec: &VmSpec) -> String {
    let key = if spec.root.image().is_some() { "image_drivers" } else { "initrd" };
    let file = spec.root.initrd().map_or_else(String::new, |file| format!(" {}", file.display()));
    format!("initial ramdisk{file} (`{key}`)")
}

#[cfg(test)]
mod tests {
    use kata_hypervisor::{GuestImage, Verity};

    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    fn exit(code: Option<i32>, signal: Option<i32>, reason: Option<&str>) -> VmExit {
        VmExit { code, signal, reason: reason.map(str::to_owned) }
    }

    /// What the small kernel writes about a file that is no archive, quiet.
    const BROKEN_INITRD: &str = "\
[    0.110000] Initramfs unpacking failed: invalid magic at start of compressed archive
[    0.230000] /dev/root: Can't open blockdev
[    0.240000] VFS: Cannot open root device \"\" or unknown-block(0,0): error -6
[    0.250000] Please append a correct \"root=\" boot option; here are the available partitions:
[    0.260000] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)
[    0.270000] CPU: 0 UID: 0 PID: 1 Comm: swapper/0 Not tainted 6.12-kata #1
[    0.280000] Call Trace:";

    fn spec(root: GuestRoot) -> VmSpec {
        VmSpec::bare("web", "/share/vmlinux", root, "/run/kata/web")
    }

    fn initrd() -> VmSpec {
        spec(GuestRoot::Initrd("/share/initrd.img".into()))
    }

    fn image(verity: bool, drivers: Option<&str>) -> VmSpec {
        let verity = verity.then(|| Verity {
            root_hash: "ab".into(),
            salt: "cd".into(),
            data_blocks: 10,
            data_block_size: 4096,
            hash_block_size: 4096,
        });
        let (file, drivers) = ("/share/guest.img".into(), drivers.map(Into::into));
        spec(GuestRoot::Image(GuestImage { file, file_system: "erofs".into(), verity, drivers }))
    }

    #[test]
    fn each_end_has_its_words() {
        let told = |exit: &VmExit, console: &str| cause_in(exit, &lines(console));
        let reset = exit(Some(0), None, Some("guest-reset"));
        assert_eq!(told(&reset, "[    1.0] reboot: Restarting system"), "the guest rebooted");
        let panicked =
            "[    1.0] Kernel panic - not syncing: Attempted to kill init!\n[    1.1] CPU: 0";
        assert_eq!(
            told(&reset, panicked),
            "the guest's kernel panicked: Attempted to kill init!",
            "by a reset"
        );
        let off = exit(Some(0), None, Some("guest-shutdown"));
        assert_eq!(told(&off, ""), "the guest powered off");
        assert_eq!(told(&reset, "[    1.0] reboot: Power down"), "the guest powered off");
        let panic = exit(Some(0), None, Some("guest-panic"));
        assert_eq!(told(&panic, ""), "the guest's kernel panicked");
        let failed = exit(Some(1), None, None);
        assert_eq!(told(&failed, ""), "the VM exited with status 1");
        let asked = exit(Some(0), None, Some("host-signal"));
        assert_eq!(told(&asked, ""), "the VM exited with status 0 (host-signal)");
        let killed = exit(None, Some(9), None);
        assert_eq!(told(&killed, panicked), "the VM was killed by signal 9", "whatever it wrote");
    }

    #[test]
    fn panic_is_told_with_what_explains_it() {
        let console = lines(&format!("noise\n{BROKEN_INITRD}"));
        let words = last_lines(&console);
        assert!(words[0].contains("Initramfs unpacking failed"), "{words:?}");
        assert!(words[1].contains("Cannot open root device"), "{words:?}");
        assert!(words[2].contains("Kernel panic"), "{words:?}");
        assert_eq!(words.len(), 5);
    }

    #[test]
    fn without_a_panic_the_last_lines_are_told() {
        let console: Vec<String> = (0..20).map(|n| format!("line {n}")).collect();
        assert_eq!(
            last_lines(&console),
            console[12..].iter().map(String::as_str).collect::<Vec<_>>()
        );
        let many = format!("{}\n{BROKEN_INITRD}", "Failed to execute /init\n".repeat(30));
        assert_eq!(last_lines(&lines(&many)).len(), 7, "half of them explain");
    }

    #[test]
    fn file_and_key_are_named_of_an_initrd_that_is_broken() {
        let remedy = remedy_in(&lines(BROKEN_INITRD), &initrd()).unwrap();
        assert!(remedy.contains("initial ramdisk /share/initrd.img (`initrd`)"), "{remedy}");
        let remedy =
            remedy_in(&lines(BROKEN_INITRD), &image(false, Some("/share/drivers"))).unwrap();
        assert!(remedy.contains("/share/drivers (`image_drivers`)"), "{remedy}");
    }

    #[test]
    fn initrd_without_an_init_and_one_without_room_are_told_apart_from_it() {
        let none = "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)";
        let remedy = remedy_in(&lines(none), &initrd()).unwrap();
        assert!(remedy.contains("/share/initrd.img (`initrd`) has no /init"), "{remedy}");
        for full in [
            "Initramfs unpacking failed: write error",
            "initrd too large to handle, disabling initrd (8388608 needed, 4194304 available)",
            "",
        ] {
            let remedy = remedy_in(&lines(full), &initrd()).unwrap();
            assert!(remedy.contains("`default_memory`"), "{remedy}");
        }
    }

    #[test]
    fn kernel_without_drivers_is_told_by_what_the_image_needs() {
        let console =
            lines("Kernel panic - not syncing: VFS: Unable to mount root fs on \"/dev/dm-0\"");
        let remedy = |spec: VmSpec| remedy_in(&console, &spec).unwrap();
        let verity = remedy(image(true, None));
        assert!(verity.contains("/share/guest.img (`image`)"), "{verity}");
        assert!(
            verity.contains("make kernel") && verity.contains("`kernel_verity_params`"),
            "{verity}"
        );
        let plain = remedy(image(false, None));
        assert!(plain.contains("set `image_drivers`"), "{plain}");
        let drivers = remedy(image(false, Some("/share/drivers")));
        assert!(
            drivers.contains("/share/drivers (`image_drivers`) was made for /share/vmlinux"),
            "{drivers}"
        );
    }

    #[test]
    fn image_that_was_changed_and_image_without_an_init_are_named() {
        let changed = "Kernel panic - not syncing: dm-verity device corrupted";
        let remedy = remedy_in(&lines(changed), &image(true, None)).unwrap();
        assert!(remedy.contains("image /share/guest.img (`image`) is not the one"), "{remedy}");
        let none = "Kernel panic - not syncing: No working init found.  Try passing init= option";
        let remedy = remedy_in(&lines(none), &image(false, None)).unwrap();
        assert!(remedy.contains("image /share/guest.img (`image`) has no init"), "{remedy}");
        assert_eq!(remedy_in(&lines("kata-agent 0.1.0"), &initrd()), None);
    }

    #[test]
    fn kernel_has_stopped_when_nothing_comes_after_its_last_word() {
        let console = Console::new();
        assert!(!has_stopped(&console));
        console.push(b"[    9.1] reboot: System halted\n");
        assert!(has_stopped(&console));
        console.push(b"[    9.2] a processor that was stopped later\n");
        assert!(has_stopped(&console));
        console.push(&b"and so on\n".repeat(10));
        assert!(!has_stopped(&console), "somebody has forged it, and goes on");
    }
}
