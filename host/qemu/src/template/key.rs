//! What a template was made of: a line for each thing, so that one can tell what has changed.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use kata_hypervisor::VmSpec;
use kata_linux::program;

use crate::accelerator::Accelerator;
use crate::machine::Machine;
use crate::vcpus::Vcpus;
use crate::{Host, QemuSettings};

/// What tells one boot of the host from another (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A word of the kernel's that is measured anew each time, and only the boot needs.
const MEASURED: &str = "tsc_early_khz=";

/// What of a VM counts for whether it can go on from a template.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Made<'a> {
    pub(crate) settings: &'a QemuSettings,
    pub(crate) host: &'a Host,
    pub(crate) spec: &'a VmSpec,
    pub(crate) machine: Machine,
    pub(crate) vcpus: Vcpus,
    /// Places for devices that come later.
    pub(crate) places: usize,
    /// The kernel's command line.
    pub(crate) append: &'a str,
    /// Whether the agent is reached by vsock.
    pub(crate) vsock: bool,
}

/// The lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key(String);

impl Key {
    /// Those of a VM. A file counts by its path and by what tells whether it was written since.
    pub(crate) fn of(made: Made<'_>) -> io::Result<Self> {
        let Made { settings, host, spec, machine, vcpus, places, append, vsock } = made;
        let initrd = spec.root.initrd().map(file).transpose()?;
        let accelerator = match host.accelerator {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        };
        let parameters: Vec<&str> =
            append.split(' ').filter(|word| !word.starts_with(MEASURED)).collect();
        Ok(Self::from_lines([
            ("release", env!("CARGO_PKG_VERSION").to_owned()),
            // Another boot may be on another processor, and counts time from another moment.
            ("boot of the host", fs::read_to_string(BOOT_ID)?.trim().to_owned()),
            ("hypervisor", file(&program::find(&settings.program)?)?),
            ("kernel", file(&spec.kernel)?),
            ("initial ramdisk", initrd.unwrap_or_default()),
            ("machine", format!("{machine:?} {accelerator} {places}")),
            ("processor", format!("{} {vcpus:?}", settings.cpu_features)),
            ("memory", format!("{} {:?}", spec.memory_mib, spec.most_memory_mib)),
            ("kind of memory", format!("{:?}", settings.pages)),
            ("channel", if vsock { "vsock" } else { "serial" }.to_owned()),
            ("kernel command line", parameters.join(" ")),
        ]))
    }

    /// From names and values, neither of which has a line's end in it.
    pub(super) fn from_lines<const N: usize>(lines: [(&str, String); N]) -> Self {
        let line =
            |(name, value): (&str, String)| format!("{name}: {}\n", value.replace('\n', " "));
        Self(lines.map(line).concat())
    }

    /// What is written down.
    pub(super) fn text(&self) -> &str {
        &self.0
    }

    /// The name of the first line in which the key that was written down differs; `None` if it is
    /// the same.
    pub(super) fn difference(&self, written: &str) -> Option<String> {
        if self.0 == written {
            return None;
        }
        let mut pairs = self.0.lines().zip(written.lines().chain(std::iter::repeat("")));
        let line = pairs.find(|(ours, theirs)| ours != theirs).map_or("release", |(ours, _)| ours);
        Some(line.split_once(": ").map_or(line, |(name, _)| name).to_owned())
    }
}

fn file(path: &Path) -> io::Result<String> {
    let about = fs::metadata(path)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    let (device, inode, size) = (about.dev(), about.ino(), about.size());
    let written = format!("{}.{:09}", about.mtime(), about.mtime_nsec());
    Ok(format!("{} {device}:{inode} {size} {written}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_line_that_differs_is_named() {
        let key = |kernel: &str, memory: &str| {
            Key::from_lines([("kernel", kernel.to_owned()), ("memory", memory.to_owned())])
        };
        let ours = key("k 1", "256");
        assert_eq!(ours.difference(ours.text()), None);
        assert_eq!(ours.difference(key("k 2", "512").text()).unwrap(), "kernel");
        assert_eq!(ours.difference(key("k 1", "512").text()).unwrap(), "memory");
        assert_eq!(ours.difference("").unwrap(), "kernel");
        assert_eq!(ours.difference(&format!("{}more: x\n", ours.text())).unwrap(), "release");
    }

    #[test]
    fn file_that_was_replaced_is_another() {
        let place = tempfile::tempdir().unwrap();
        let kernel = place.path().join("vmlinux");
        fs::write(&kernel, "one").unwrap();
        let before = file(&kernel).unwrap();
        assert_eq!(file(&kernel).unwrap(), before);
        fs::write(place.path().join("new"), "two").unwrap();
        fs::rename(place.path().join("new"), &kernel).unwrap();
        assert_ne!(file(&kernel).unwrap(), before);
        fs::remove_file(&kernel).unwrap();
        assert!(file(&kernel).unwrap_err().to_string().starts_with(kernel.to_str().unwrap()));
    }
}
