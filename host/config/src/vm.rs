//! The keys that mean the same in every `[hypervisor.NAME]`.

use std::path::{Path, PathBuf};

use crate::annotation_names::check_enabled;
use crate::section::{at_least, not_negative, section};
use crate::setting::{LogLevel, choice};
use crate::verity::VerityParams;

section! {
    /// The virtual machine, whoever runs it.
    pub struct VmSettings = "hypervisor", off &[], off_tables &[], prefix prefix {
        /// The guest kernel: an uncompressed ELF image (vmlinux) or, for QEMU and Cloud Hypervisor,
        /// a bzImage.
        kernel: PathBuf = asset(prefix, "vmlinux.container");
        /// The initial ramdisk that holds the agent. "" uses the one that is installed with this
        /// software.
        initrd: Option<PathBuf> = None;
        /// The rootfs image that holds the agent: a raw disk with the root file system in its first
        /// partition. It and `initrd` exclude each other.
        image: Option<PathBuf> = None;
        /// The file system of `image`: "erofs", "ext4" or "xfs".
        rootfs_type: RootfsType = RootfsType::Ext4;
        /// How the guest's kernel checks `image`:
        /// "root_hash=...,salt=...,data_blocks=...,data_block_size=...,hash_block_size=..." for the
        /// hash tree in the second partition (kata-image prints it); "" does not check. Needs a
        /// kernel with dm-verity and dm-init built in.
        kernel_verity_params: Option<VerityParams> = None;
        /// The initial ramdisk that loads drivers before `image` is looked for, with a
        /// distribution's kernel that has them as modules: one made by "kata-image initrd" for that
        /// kernel. "" for a kernel that has them built in.
        image_drivers: Option<PathBuf> = None;
        /// Parameters for the guest kernel, separated by spaces, after the driver's own, so that a
        /// later one wins.
        kernel_params: String = String::new();
        /// Virtual CPUs of a sandbox without a CPU limit, rounded up. 0 counts as 1; a negative
        /// number or more than the host has means as many as the host has. Never more than
        /// default_maxvcpus.
        default_vcpus: f64 = 1.0;
        /// Most virtual CPUs of any sandbox. 0, or more than the host has, means as many as the
        /// host has. Never more than the hypervisor takes (docs/reference/hypervisors.md). With
        /// QEMU or Cloud Hypervisor and a number other than 0, a running sandbox gets more virtual
        /// CPUs, up to that number, when the limits of its containers need them, and loses them
        /// later. Without KVM, or on a microvm, the machine has all of them from the start and the
        /// guest is asked not to use them: a guest that misbehaves can.
        default_maxvcpus: u32 = 0;
        /// Virtual CPUs added to a sandbox's CPU limit for what runs in the guest beside the
        /// containers.
        overhead_vcpus: f64 = 0.2, check not_negative;
        /// Memory in MiB of a sandbox without a memory limit; at least 64.
        default_memory: u32 = 2048, check at_least(64);
        /// Memory in MiB added to a sandbox's memory limit for the guest's kernel, initial ramdisk
        /// and agent.
        overhead_memory: u32 = 128;
        /// Most memory in MiB of any sandbox. 0, or more than the host has, means as much as the
        /// host has.
        default_maxmemory: u32 = 0;
        /// The annotations that a pod may set, by exact name. Write "NAME" for
        /// io.katacontainers.config.hypervisor.NAME; for the other groups prefix the group, as in
        /// "runtime.disable_guest_seccomp" and "agent.container_pipe_size". Annotations that choose
        /// paths, programs, arguments or kernel parameters are refused even when they are listed.
        enable_annotations: Vec<String> = vec!["default_vcpus".to_owned(), "default_memory".to_owned()],
            check check_enabled;
        /// Boot the guest verbosely and let the VMM log what it can.
        enable_debug: bool = false;
        /// How much the driver logs: "trace", "debug", "info", "warn" or "error". enable_debug
        /// makes it at least "debug".
        log_level: LogLevel = LogLevel::Info;
    }
}

impl VmSettings {
    /// How much the driver logs, with `enable_debug` taken into account.
    #[must_use]
    pub fn effective_log_level(&self) -> LogLevel {
        self.log_level.with_debug(self.enable_debug)
    }

    /// Whether the guest starts from an initial ramdisk or from an image.
    #[must_use]
    pub fn root(&self) -> Root<'_> {
        // Both are never set: loading refuses that.
        match &self.image {
            Some(image) => Root::Image(image),
            None => Root::Initrd(self.initrd.as_deref()),
        }
    }

    /// Keys that contradict each other, or that say nothing without another one; by name and with a
    /// sentence.
    pub(crate) fn contradiction(&self) -> Option<(&'static str, &'static str)> {
        let image = self.image.is_some();
        if image && self.initrd.is_some() {
            return Some(("image", "and `initrd` exclude each other; set one of them to \"\""));
        }
        if !image && self.kernel_verity_params.is_some() {
            return Some((
                "kernel_verity_params",
                "checks an image and there is none; set `image`, or this to \"\"",
            ));
        }
        if !image && self.image_drivers.is_some() {
            return Some((
                "image_drivers",
                "is for an image and there is none; set `image`, or this to \"\"",
            ));
        }
        if self.kernel_verity_params.is_some() && self.image_drivers.is_some() {
            return Some((
                "image_drivers",
                "and `kernel_verity_params` exclude each other: an image is checked by a kernel that has all drivers built in; set one of them to \"\"",
            ));
        }
        None
    }
}

/// What the agent is started from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Root<'a> {
    /// An initial ramdisk; `None` for the one that is installed with this software.
    Initrd(Option<&'a Path>),
    /// A rootfs image.
    Image(&'a Path),
}

choice! {
    /// The root file system of a guest's image.
    pub enum RootfsType {
        /// Read-only by its nature.
        Erofs = "erofs",
        /// What upstream's images have.
        Ext4 = "ext4",
        /// For kernels that have it; the small one does not.
        Xfs = "xfs",
    }
}

fn asset(prefix: &Path, name: &str) -> PathBuf {
    prefix.join("share/kata-containers").join(name)
}
