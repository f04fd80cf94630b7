//! `[hypervisor.krun]`: the VMM that is installed with this software. A section of our own; its
//! keys are those of the others.

use std::path::PathBuf;

use crate::VmSettings;
use crate::off::{OffKey, any_list, number};
use crate::section::section;
use crate::setting::choice;

section! {
    /// The virtual machine and the built-in VMM that runs it. It needs KVM, and a kernel that is an
    /// uncompressed ELF image and takes virtio-mmio devices from its command line
    /// (CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES), which distributions leave out. It takes the network
    /// interfaces that are there when it boots, and none that come later.
    pub struct Krun = "hypervisor.krun", off OFF, off_tables &[], prefix prefix, shared {
        /// What every hypervisor has.
        vm: VmSettings = VmSettings::defaults(prefix);
    } {
        /// The VMM's program; "" uses the one that is installed with this software.
        path: Option<PathBuf> = None;
        /// How container file systems reach the guest: "inline-virtio-fs", served by the VMM
        /// itself.
        shared_fs: InlineSharedFs = InlineSharedFs::InlineVirtioFs;
    }
}

choice! {
    /// How container file systems reach the guest of a VMM that serves them itself.
    pub enum InlineSharedFs {
        /// A virtio-fs server inside of the VMM.
        InlineVirtioFs = "inline-virtio-fs",
    }
}

/// What the other sections have and this VMM lacks.
const OFF: &[OffKey] = &[
    any_list("valid_hypervisor_paths"),
    number("memory_slots", &[0, 10, 128]),
    number("network_queues", &[1]),
];
