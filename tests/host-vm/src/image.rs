//! The machine's disk, kernel and QEMU, built once and cached.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use kata_e2e::Suite;

use crate::cache;
use crate::recipe;

/// Room for what tests unpack and write. The file takes only what is used.
const DISK_SIZE: u64 = 6 << 30;

/// Documentation that nobody reads there.
const LEFT_OUT: &[&str] = &["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*"];

/// What of the root file system is kept beside the disk: the QEMU that runs the machine, for the
/// one on this machine may be too old to emulate a KVM host without crashing. It brings its loader
/// and libraries.
const QEMU_PARTS: &[&str] = &["usr/lib/x86_64-linux-gnu", "usr/share/qemu", "usr/share/seabios"];

/// A built machine: files in the cache, which nobody writes to.
#[derive(Debug, Clone)]
pub struct HostImage {
    place: PathBuf,
}

impl HostImage {
    /// The machine of this source tree; builds it if it is not in the cache, which takes a minute
    /// or two and needs root, mmdebstrap and the network.
    pub fn ready() -> Result<Self> {
        let place = cache::whole_directory("host-vm", &recipe::digest(), build)?;
        Ok(Self { place })
    }

    /// Its files' directory.
    #[must_use]
    pub fn place(&self) -> &Path {
        &self.place
    }

    pub(crate) fn disk(&self) -> PathBuf {
        self.place.join("disk.img")
    }

    pub(crate) fn kernel(&self) -> PathBuf {
        self.place.join("vmlinuz")
    }

    pub(crate) fn initrd(&self) -> PathBuf {
        self.place.join("initrd.img")
    }

    /// A command line of QEMU to which the machine is appended.
    pub(crate) fn qemu(&self) -> Vec<String> {
        let qemu = self.place.join("qemu");
        let shown = |path: &str| qemu.join(path).display().to_string();
        let libraries = shown("usr/lib/x86_64-linux-gnu");
        vec![
            format!("{libraries}/ld-linux-x86-64.so.2"),
            "--library-path".to_owned(),
            libraries,
            shown("usr/bin/qemu-system-x86_64"),
            "-L".to_owned(),
            shown("usr/share/qemu"),
            "-L".to_owned(),
            shown("usr/share/seabios"),
        ]
    }
}

fn build(place: &Path) -> Result<()> {
    ensure!(cfg!(target_arch = "x86_64"), "a machine with KVM is emulated on x86-64 only");
    ensure!(
        rustix::process::geteuid().is_root(),
        "building the host VM takes root; run `make host-vm` as root once"
    );
    eprintln!("building a machine with KVM into {}: a minute or two", cache::directory().display());
    let root = place.join("root");
    write_files(&root)?;
    install_packages(Suite::Trixie, &recipe::packages(), &root)?;
    fs::rename(only_one(&root.join("boot"), "vmlinuz-")?, place.join("vmlinuz"))?;
    fs::rename(only_one(&root.join("boot"), "initrd.img-")?, place.join("initrd.img"))?;
    // Each machine makes its own.
    fs::write(root.join("etc/machine-id"), "").context("cannot write the machine's id")?;
    for stamp in ["etc/.updated", "var/.updated"] {
        // Newer than /usr: else every boot would rebuild caches.
        fs::write(root.join(stamp), "").context("cannot write a stamp")?;
    }
    make_disk(&root, &place.join("disk.img"), DISK_SIZE)?;
    keep_qemu(&root, &place.join("qemu"))?;
    fs::remove_dir_all(&root).context("cannot remove the root file system")
}

fn write_files(root: &Path) -> Result<()> {
    for file in recipe::FILES {
        let path = root.join(file.path);
        let parent = path.parent().expect("files are below the root");
        fs::create_dir_all(parent)?;
        fs::write(&path, file.content)
            .with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(file.mode))?;
    }
    Ok(())
}

/// Installs packages of `suite`, and all that they depend on, into the directory `root`, which need
/// not be there.
pub(crate) fn install_packages(suite: Suite, packages: &[&str], root: &Path) -> Result<()> {
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap.args(["--quiet", "--mode=root", "--variant=minbase", "--skip=check/empty"]);
    mmdebstrap.arg(format!("--include={}", packages.join(",")));
    mmdebstrap.args(LEFT_OUT.iter().map(|path| format!("--dpkgopt=path-exclude={path}")));
    // The files above are there before the packages that would bring them.
    mmdebstrap.args(["--dpkgopt=force-confold", "--dpkgopt=force-confdef"]);
    if !apt_minds_age()? {
        mmdebstrap.arg("--aptopt=Acquire::Check-Valid-Until \"false\"");
    }
    mmdebstrap.arg(suite.name()).arg(root).arg(suite.source_line()?.trim());
    succeed(mmdebstrap, "mmdebstrap is a package of Debian; `make host-vm` installs it")
}

/// Whether this machine's apt refuses lists of packages that are out of date. It does unless it is
/// told that its archive is a copy of an earlier day's.
fn apt_minds_age() -> Result<bool> {
    let mut apt = Command::new("apt-config");
    apt.args(["shell", "minds", "Acquire::Check-Valid-Until/b"]);
    let output = apt.output().context("cannot run apt-config")?;
    Ok(!String::from_utf8_lossy(&output.stdout).contains("false"))
}

/// An ext4 file system of `size` bytes in the sparse file `disk`, filled with what is in `tree`. It
/// has no journal: nothing is written to it for long.
pub(crate) fn make_disk(tree: &Path, disk: &Path, size: u64) -> Result<()> {
    let file = fs::File::create(disk).with_context(|| format!("cannot make {}", disk.display()))?;
    file.set_len(size).context("cannot size a disk")?;
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"]).arg(tree).arg(disk);
    succeed(mke2fs, "mke2fs is in the package e2fsprogs")
}

fn keep_qemu(root: &Path, kept: &Path) -> Result<()> {
    let program = "usr/bin/qemu-system-x86_64";
    for part in QEMU_PARTS.iter().chain([&program]) {
        let to = kept.join(part);
        fs::create_dir_all(to.parent().expect("parts are below the root"))?;
        fs::rename(root.join(part), &to).with_context(|| format!("there is no {part}"))?;
    }
    Ok(())
}

/// The one entry of `directory` whose name begins with `prefix`.
fn only_one(directory: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).context("there is no /boot")?.flatten();
    let mut found: Vec<PathBuf> = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .collect();
    match (found.pop(), found.is_empty()) {
        (Some(one), true) => Ok(one),
        _ => bail!("{} has not exactly one {prefix}…", directory.display()),
    }
}

/// Runs a command with its output shown; `remedy` is told when it cannot be started.
fn succeed(mut command: Command, remedy: &str) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("cannot run {name}: {remedy}"))?;
    ensure!(status.success(), "{name} failed: {status}");
    Ok(())
}
