//! Code of our own that is compiled into the kernel, and lines of its that are others, where no
//! option of its does what a guest needs.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// Each by its name.
const ADDITIONS: &[(&str, &str)] = &[
    ("lapic_timer_hz", include_str!("../additions/lapic_timer_hz.c")),
    ("early_cr4", include_str!("../additions/early_cr4.c")),
];

/// Where they are put, in the source's tree.
const PLACE: &str = "arch/x86/kernel";

/// A piece of a file, which is there once, and what takes its place.
struct Edit {
    file: &'static str,
    from: &'static str,
    to: &'static str,
}

/// Three of them save what the kernel takes for each guest and no guest needs: 10 MiB of memory,
/// and the time to fill them. With the fourth, an emulator has less to translate.
const EDITS: &[Edit] = &[
    // A virtio-serial port's buffers, of a page each: as many as the queue is long, which is 1024
    // with virtio over MMIO, for the port of the agent and for the device's own messages. QEMU
    // sends at most 32 of those at once.
    Edit {
        file: "drivers/char/virtio_console.c",
        from: "} while (ret > 0);",
        to: "} while (ret > 0 && nr_added_bufs < 64);",
    },
    // QEMU offers queues of 1024 over MMIO whatever the device is; over PCI they have 256 at most.
    Edit {
        file: "drivers/virtio/virtio_mmio.c",
        from: "num = readl(vm_dev->base + VIRTIO_MMIO_QUEUE_NUM_MAX);",
        to: "num = min(readl(vm_dev->base + VIRTIO_MMIO_QUEUE_NUM_MAX), 256U);",
    },
    // The first BPF program, which is a container's device rules, has room made for hundreds. What
    // is too big for a piece has pages of its own.
    Edit {
        file: "kernel/bpf/core.c",
        from: "#define BPF_PROG_PACK_SIZE (SZ_2M * num_possible_nodes())",
        to: "#define BPF_PROG_PACK_SIZE SZ_64K",
    },
    // A system call loads the kernel's stack segment, and a page fault or interrupt of a program an
    // empty one. That means nothing to a processor, and to QEMU other code: what both run it would
    // translate for each. The two instructions are safe there: the register's content has just been
    // saved and cleared, the table of segments is in the program's address space, too, and whoever
    // comes from the kernel has jumped away.
    Edit {
        file: "arch/x86/entry/entry_64.S",
        from: "\tjz\t.Lerror_kernelspace\n",
        to: "\tjz\t.Lerror_kernelspace\n\tmovl\t$__KERNEL_DS, %eax\n\tmovl\t%eax, %ss\n",
    },
];

/// All of it, as a part of what a kernel is made from.
pub(crate) fn text() -> String {
    let added = ADDITIONS.iter().map(|(name, code)| format!("{name}\n{code}\n"));
    let edited = EDITS.iter().map(|Edit { file, from, to }| format!("{file}\n{from}\n{to}\n"));
    added.chain(edited).collect()
}

/// Puts it into the unpacked source `tree`. On an error, it comes with the file that cannot be
/// changed.
pub(crate) fn add_to(tree: &Path) -> Result<(), (PathBuf, io::Error)> {
    let place = tree.join(PLACE);
    let makefile = place.join("Makefile");
    for (name, code) in ADDITIONS {
        let file = place.join(format!("kata_{name}.c"));
        fs::write(&file, code).map_err(|error| (file, error))?;
        let line = format!("obj-y += kata_{name}.o\n");
        append(&makefile, &line).map_err(|error| (makefile.clone(), error))?;
    }
    for edit in EDITS {
        let file = tree.join(edit.file);
        edit.apply_to(&file).map_err(|error| (file, error))?;
    }
    Ok(())
}

impl Edit {
    /// Only to a file that has the piece once: a source without it is another one than this was
    /// made for.
    fn apply_to(&self, file: &Path) -> io::Result<()> {
        let text = fs::read_to_string(file)?;
        if text.matches(self.from).count() != 1 {
            let expected = format!("it should have '{}' once", self.from);
            return Err(io::Error::new(io::ErrorKind::InvalidData, expected));
        }
        fs::write(file, text.replace(self.from, self.to))
    }
}

/// Only to a file that is there: a source without it is another one than this was made for.
fn append(file: &Path, line: &str) -> io::Result<()> {
    OpenOptions::new().append(true).open(file)?.write_all(line.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_edited(tree: &Path, text: impl Fn(&Edit) -> String) {
        for edit in EDITS {
            let file = tree.join(edit.file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text(edit)).unwrap();
        }
    }

    #[test]
    fn additions_are_compiled_with_their_neighbours() {
        let tree = tempfile::tempdir().unwrap();
        let place = tree.path().join(PLACE);
        fs::create_dir_all(&place).unwrap();
        let (file, _) = add_to(tree.path()).unwrap_err();
        assert_eq!(file, place.join("Makefile"));

        fs::write(place.join("Makefile"), "obj-y += apic.o\n").unwrap();
        write_edited(tree.path(), |edit| format!("a\n{}\nb\n", edit.from));
        add_to(tree.path()).unwrap();
        for edit in EDITS {
            let text = fs::read_to_string(tree.path().join(edit.file)).unwrap();
            assert_eq!(text, format!("a\n{}\nb\n", edit.to));
        }
        let makefile = fs::read_to_string(place.join("Makefile")).unwrap();
        let ours = "obj-y += kata_lapic_timer_hz.o\nobj-y += kata_early_cr4.o\n";
        assert_eq!(makefile, format!("obj-y += apic.o\n{ours}"));
        for (name, _) in ADDITIONS {
            assert!(place.join(format!("kata_{name}.c")).exists());
            assert!(text().contains(&format!("early_param(\"{name}\"")));
        }
        assert!(text().contains("SZ_64K"));
    }

    #[test]
    fn source_that_is_another_is_refused() {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir_all(tree.path().join(PLACE)).unwrap();
        fs::write(tree.path().join(PLACE).join("Makefile"), "").unwrap();
        for text in ["", "twice twice"] {
            let twice = |edit: &Edit| text.replace("twice", edit.from);
            write_edited(tree.path(), twice);
            let (file, error) = add_to(tree.path()).unwrap_err();
            assert_eq!(file, tree.path().join(EDITS[0].file));
            assert!(error.to_string().contains("while (ret > 0)"), "{error}");
        }
    }
}
