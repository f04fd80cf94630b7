//! The command line's definitions.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::progress::Format;

/// Builds what a guest boots, without root; the same input gives the same bytes.
#[derive(Debug, Parser)]
#[command(name = "kata-image", version, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// How progress and results are told
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Download a distribution kernel's packages with apt, and print their files
    FetchKernel {
        /// The kernel's package, or a meta package that depends on it
        #[arg(long, default_value = "linux-image-cloud-amd64")]
        package: String,
        /// The directory to download to; packages already in it are removed
        #[arg(short, long, value_name = "DIR")]
        output: PathBuf,
    },
    /// Build the small kernel from Debian's source, or take it out of the cache; or take one that
    /// is there already, or a distribution's out of its package
    Kernel(KernelCommand),
    /// Build an initrd from the agent, and the modules of a kernel's package if one is given
    Initrd {
        #[command(flatten)]
        kernel: Packages,
        /// The agent, statically linked [default: the installed one]
        #[arg(long, value_name = "FILE")]
        agent: Option<PathBuf>,
        /// A module to add to those that every guest needs (can be repeated)
        #[arg(long = "module", value_name = "NAME", requires = "packages")]
        modules: Vec<String>,
        /// The file to write
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Build a rootfs image: a disk with the agent and, if wanted, packages of Debian
    Rootfs(RootfsCommand),
}

#[derive(Debug, Args)]
pub(crate) struct Packages {
    /// A package (.deb) of the kernel; repeat it for a kernel that ships as several
    #[arg(long = "kernel-package", value_name = "DEB")]
    pub(crate) packages: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct KernelCommand {
    #[command(flatten)]
    pub(crate) kernel: Packages,
    /// A kernel that needs no modules, compressed or not, or a directory with vmlinux.container or
    /// vmlinuz.container
    #[arg(long, value_name = "PATH", conflicts_with = "packages")]
    pub(crate) from: Option<PathBuf>,
    /// The package with the source [default: linux-source-6.12, else what linux-source depends on]
    #[arg(long, value_name = "PACKAGE", conflicts_with_all = ["packages", "from"])]
    pub(crate) source: Option<String>,
    /// How many processes compile at once [default: as many as there are processors]
    #[arg(short, long, conflicts_with_all = ["packages", "from"])]
    pub(crate) jobs: Option<usize>,
    /// Where built kernels are kept [default: $KATA_CACHE_DIR, else /var/cache/kata-containers for
    /// root, else $XDG_CACHE_HOME/kata-containers]
    #[arg(long, value_name = "DIR", conflicts_with_all = ["packages", "from"])]
    pub(crate) cache: Option<PathBuf>,
    /// Build nothing: take a kernel that was built before, by root, too, and if it would be another
    /// one now (a newer source or compiler) say so; fail if there is none
    #[arg(long, conflicts_with_all = ["packages", "from", "jobs"])]
    pub(crate) only_cached: bool,
    /// Also write the compressed kernel (bzImage)
    #[arg(long, value_name = "FILE")]
    pub(crate) vmlinuz: Option<PathBuf>,
    /// The file to write the uncompressed kernel to (ELF with a PVH entry point)
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct RootfsCommand {
    /// The agent, statically linked [default: the installed one]
    #[arg(long, value_name = "FILE")]
    pub(crate) agent: Option<PathBuf>,
    /// The image's file system
    #[arg(long, value_enum, default_value_t = Kind::Erofs)]
    pub(crate) file_system: Kind,
    /// What the kernel starts: the agent, or systemd of Debian's package, of which the agent is a
    /// service
    #[arg(long, value_enum, default_value_t = FirstProcess::Agent)]
    pub(crate) init: FirstProcess,
    /// A Debian package to add with all that it depends on, unpacked, not configured (can be
    /// repeated)
    #[arg(long = "package", value_name = "NAME")]
    pub(crate) packages: Vec<String>,
    /// The release of Debian that packages are taken from
    #[arg(long, default_value = "stable")]
    pub(crate) suite: String,
    /// Add a hash tree, by which the guest's kernel checks every block
    #[arg(long)]
    pub(crate) verity: bool,
    /// Write a configuration drop-in that names the image, its file system and its root hash
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// A hypervisor that the drop-in is for (can be repeated) [default: all]
    #[arg(long = "hypervisor", value_name = "NAME", value_enum, requires = "config")]
    pub(crate) hypervisors: Vec<Hypervisor>,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Kind {
    Erofs,
    Ext4,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FirstProcess {
    Agent,
    Systemd,
}

/// Those that boot images, by the names of their sections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Hypervisor {
    Clh,
    Firecracker,
    Krun,
    Qemu,
}

impl Hypervisor {
    /// The section's name.
    pub(crate) fn section(self) -> &'static str {
        match self {
            Self::Clh => "clh",
            Self::Firecracker => "firecracker",
            Self::Krun => "krun",
            Self::Qemu => "qemu",
        }
    }
}
