//! What is in the image, and the way from there to a disk.

use std::io;
use std::path::PathBuf;

use kata_initrd::{InitrdError, check_agent};

use crate::disk::disk;
use crate::tree::{Kind, Node, Tree};
use crate::verity::{Verity, hash_tree};
use crate::{erofs, ext4};

/// Where the agent is.
const AGENT: &str = "usr/bin/kata-agent";
/// What the kernel starts.
const INIT: &str = "usr/sbin/init";
/// Where systemd's packages have it.
const SYSTEMD: &str = "usr/lib/systemd/systemd";

/// What makes the agent a service of systemd. The runtime has systemd start the target, and nothing
/// but what it needs.
const UNITS: &[(&str, &str)] = &[
    ("usr/lib/systemd/system/kata-agent.service", include_str!("../systemd/kata-agent.service")),
    (
        "usr/lib/systemd/system/kata-containers.target",
        include_str!("../systemd/kata-containers.target"),
    ),
];

/// Directories that the agent mounts on, or that programs expect, with their permissions.
const DIRECTORIES: &[(&str, u16)] = &[
    ("dev", 0o755),
    ("etc", 0o755),
    ("mnt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr/bin", 0o755),
    ("usr/lib", 0o755),
    ("usr/lib64", 0o755),
    ("usr/sbin", 0o755),
    ("var", 0o755),
];

/// Links as Debian has them, for packages that still use the old names, and for what is written to.
const LINKS: &[(&str, &str)] = &[
    ("bin", "usr/bin"),
    ("lib", "usr/lib"),
    ("lib64", "usr/lib64"),
    ("sbin", "usr/sbin"),
    ("var/run", "/run"),
    ("var/tmp", "/tmp"),
];

/// The one user, and the one group (passwd(5), group(5)).
const ROOT_USER: &str = "root:x:0:0:root:/root:/bin/sh\n";
const ROOT_GROUP: &str = "root:x:0:\n";

/// Why no image can be built.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// The agent cannot be used.
    #[error(transparent)]
    Agent(#[from] InitrdError),
    /// A package cannot be unpacked.
    #[error("cannot unpack the package {}", path.display())]
    Package {
        /// The package's file.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// No package brings the init that was asked for.
    #[error("none of the image's packages brings systemd; add the package systemd")]
    NoSystemd,
    /// The files make no file system.
    #[error("cannot make a file system of the image's files")]
    FileSystem(#[source] io::Error),
}

/// The image's file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// Read-only by its nature, and small. The small kernel has it.
    Erofs,
    /// What every distribution's kernel has.
    Ext4,
}

impl FileSystem {
    /// Its name for mount(2), and for `rootfs_type` in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Erofs => "erofs",
            Self::Ext4 => "ext4",
        }
    }
}

/// The first process of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Init {
    /// The agent, which needs nothing beside it.
    Agent,
    /// systemd, out of a package, with the agent as a service.
    Systemd,
}

/// What goes into an image.
#[derive(Debug, Clone)]
pub struct RootfsOptions<'a> {
    /// The agent, statically linked.
    pub agent: &'a [u8],
    /// Packages (.deb) to unpack, in order, with all that they depend on.
    pub packages: &'a [PathBuf],
    /// What the kernel starts.
    pub init: Init,
    /// Its file system.
    pub file_system: FileSystem,
    /// Whether to add a hash tree.
    pub verity: bool,
}

/// A built image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rootfs {
    /// The disk's bytes: a partition table, the file system in partition 1, and the hash tree, if
    /// any, in partition 2.
    pub disk: Vec<u8>,
    /// What the kernel must be told to check it.
    pub verity: Option<Verity>,
}

/// Builds an image.
///
/// # Errors
/// When the agent is not a static program, a package is damaged, or none brings the init.
pub fn build_rootfs(options: &RootfsOptions<'_>) -> Result<Rootfs, RootfsError> {
    check_agent(options.agent)?;
    let mut tree = skeleton(options.agent).map_err(RootfsError::FileSystem)?;
    for path in options.packages {
        let failed = |source| RootfsError::Package { path: path.clone(), source };
        tree.add_package(&std::fs::read(path).map_err(failed)?).map_err(failed)?;
    }
    match options.init {
        Init::Agent => add_link(&mut tree, INIT, "../bin/kata-agent"),
        Init::Systemd if tree.has_file(SYSTEMD) => add_systemd(&mut tree),
        Init::Systemd => return Err(RootfsError::NoSystemd),
    }
    .map_err(RootfsError::FileSystem)?;
    let data = match options.file_system {
        FileSystem::Erofs => erofs::image(&tree),
        FileSystem::Ext4 => ext4::image(&tree),
    }
    .map_err(RootfsError::FileSystem)?;
    if !options.verity {
        return Ok(Rootfs { disk: disk(&[data]), verity: None });
    }
    let (hashes, verity) = hash_tree(&data);
    Ok(Rootfs { disk: disk(&[data, hashes]), verity: Some(verity) })
}

/// The agent and the places that it needs. /run and /tmp are mounted over; everything else stays as
/// it is.
fn skeleton(agent: &[u8]) -> io::Result<Tree> {
    let mut tree = Tree::default();
    for &(path, mode) in DIRECTORIES {
        tree.add(path, Node::new(mode, Kind::Directory))?;
    }
    for &(path, target) in LINKS {
        add_link(&mut tree, path, target)?;
    }
    tree.add(AGENT, Node::new(0o755, Kind::File(agent.to_vec())))?;
    // For a kernel that does not mount devtmpfs by itself.
    tree.add("dev/console", Node::new(0o600, Kind::CharDevice(5, 1)))?;
    tree.add("dev/null", Node::new(0o666, Kind::CharDevice(1, 3)))?;
    // The agent mounts the sandbox's own over it.
    tree.add("etc/resolv.conf", Node::new(0o644, Kind::File(Vec::new())))?;
    // Packages bring no users, since their scripts are not run.
    tree.add("etc/passwd", Node::new(0o644, Kind::File(ROOT_USER.into())))?;
    tree.add("etc/group", Node::new(0o644, Kind::File(ROOT_GROUP.into())))?;
    Ok(tree)
}

fn add_link(tree: &mut Tree, path: &str, target: &str) -> io::Result<()> {
    tree.add(path, Node::new(0o777, Kind::Symlink(target.to_owned())))
}

fn add_systemd(tree: &mut Tree) -> io::Result<()> {
    add_link(tree, INIT, "../lib/systemd/systemd")?;
    for &(path, unit) in UNITS {
        tree.add(path, Node::new(0o644, Kind::File(unit.into())))?;
    }
    // It would write a cache of libraries, which nobody needs where libraries are in their usual
    // places.
    add_link(tree, "etc/systemd/system/ldconfig.service", "/dev/null")?;
    // Every boot has an id of its own, which systemd mounts over this file.
    tree.add("etc/machine-id", Node::new(0o444, Kind::File(Vec::new())))
}
