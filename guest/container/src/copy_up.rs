//! The mount option `tmpcopyup`, which Podman gives to every tmpfs: the file system begins with
//! what the image has in its place.
//!
//! libcontainer does not know it. So the process that makes the container does that part, in a
//! mount namespace that only it and the container's init have: it mounts the tmpfs, fills it, and
//! hands libcontainer a bind of it. It goes with that namespace.
//!
//! It does so with a tmpfs, too, that the working directory is to be made in.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};
use oci_spec::runtime::Mount;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use crate::cwd;

/// The option; it means nothing to the kernel.
const OPTION: &str = "tmpcopyup";

/// Directories below one another that are copied. No image has as many; a file system that says so
/// is not to exhaust the stack.
const DEPTH: usize = 64;

/// Does what the option says for every mount that has it, and makes what `cwd` is below. Returns
/// the mounts for libcontainer, or `None` if they stay as they are. To be called in the process
/// that makes the container, which has one thread.
pub(crate) fn carry_out(
    rootfs: &Path,
    mounts: &[Mount],
    cwd: &Path,
) -> io::Result<Option<Vec<Mount>>> {
    // Devices are made at /dev, which are none below a mount of ours.
    let covers_cwd = cwd::covering(mounts, cwd).filter(|mount| {
        is_tmpfs(mount)
            && cwd::is_below(cwd, mount.destination())
            && !cwd::is_same(mount.destination(), Path::new("/dev"))
    });
    let has_cwd = |mount: &Mount| covers_cwd.is_some_and(|one| std::ptr::eq(one, mount));
    if !mounts.iter().any(|mount| has_option(mount) || has_cwd(mount)) {
        return Ok(None);
    }
    let mut is_private = false;
    let mut changed = Vec::with_capacity(mounts.len());
    for mount in mounts {
        let (copies, has_cwd) = (has_option(mount), has_cwd(mount));
        if !copies && !has_cwd {
            changed.push(mount.clone());
            continue;
        }
        let options: Vec<_> = options(mount).filter(|option| *option != OPTION).collect();
        let mut plain = mount.clone();
        plain.set_options(Some(options.iter().map(|option| (*option).to_owned()).collect()));
        if has_cwd {
            cwd::prepare(rootfs, &[], mount.destination())?;
        }
        let original = original(rootfs, mount.destination())?;
        if let Some((original, _)) = original.filter(|(_, is_empty)| has_cwd || !is_empty) {
            if !is_private {
                unshare(CloneFlags::CLONE_NEWNS)?;
                mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
                is_private = true;
            }
            let place = fill(&original, &options, copies)?;
            let flags = options.iter().filter(|option| !is_data(option));
            plain.set_typ(Some("bind".to_owned()));
            plain.set_source(Some(place));
            plain.set_options(Some(
                ["bind"].iter().chain(flags).map(|one| (*one).to_owned()).collect(),
            ));
        }
        changed.push(plain);
    }
    Ok(Some(changed))
}

fn is_tmpfs(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("tmpfs")
}

fn has_option(mount: &Mount) -> bool {
    is_tmpfs(mount) && options(mount).any(|option| option == OPTION)
}

fn options(mount: &Mount) -> impl Iterator<Item = &str> {
    mount.options().iter().flatten().map(String::as_str)
}

/// Whether an option is for tmpfs itself, and not for its mount.
fn is_data(option: &str) -> bool {
    option.contains('=')
}

/// The image's directory in the mount's place, unless it is missing, and whether it is empty. No
/// link leads out of the image.
fn original(rootfs: &Path, destination: &Path) -> io::Result<Option<(OwnedFd, bool)>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, rootfs, flags, Mode::empty())?;
    match openat2(&root, destination, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(errno.into()),
        Ok(directory) => {
            let is_empty = fs::read_dir(path_of(&directory))?.next().is_none();
            Ok(Some((directory, is_empty)))
        }
    }
}

/// Mounts a tmpfs over the directory, copies into it what was there if it `copies`, and returns its
/// path.
fn fill(original: &OwnedFd, options: &[&str], copies: bool) -> io::Result<PathBuf> {
    let place = fs::read_link(path_of(original))?;
    let data =
        options.iter().filter(|option| is_data(option)).copied().collect::<Vec<_>>().join(",");
    let data = std::ffi::CString::new(data)?;
    let flags = if copies { MountFlags::NOSUID | MountFlags::NODEV } else { MountFlags::empty() };
    mount("tmpfs", &place, "tmpfs", flags, data.as_c_str())?;
    // The descriptor still shows what is below the mount.
    if copies {
        copy(&path_of(original), &place, DEPTH)?;
    }
    if !options.iter().any(|option| option.starts_with("mode=")) {
        attributes(&path_of(original), &place)?;
    }
    Ok(place)
}

/// Copies what is in one directory into another, with modes and owners. Sockets are left out:
/// nobody listens on them.
fn copy(from: &Path, to: &Path, depth: usize) -> io::Result<()> {
    let deeper = depth.checked_sub(1).ok_or(io::ErrorKind::QuotaExceeded)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
            let metadata = fs::symlink_metadata(&source)?;
            lchown(&target, Some(metadata.uid()), Some(metadata.gid()))?;
        } else if kind.is_dir() {
            fs::create_dir(&target)?;
            copy(&source, &target, deeper)?;
            attributes(&source, &target)?;
        } else if kind.is_file() {
            fs::copy(&source, &target)?;
            attributes(&source, &target)?;
        }
    }
    Ok(())
}

/// Gives `to` the owner and mode of `from`. The owner comes first, for a change of it takes the
/// set-user-ID bit away.
fn attributes(from: &Path, to: &Path) -> io::Result<()> {
    let metadata = fs::metadata(from)?;
    std::os::unix::fs::chown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777))
}

fn path_of(directory: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/thread-self/fd/{}", directory.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tmpfs(destination: &str, options: &[&str]) -> Mount {
        let json = serde_json::json!({
            "destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options
        });
        serde_json::from_value(json).unwrap()
    }

    fn image() -> tempfile::TempDir {
        let rootfs = tempfile::tempdir().unwrap();
        for directory in ["empty", "run/lock"] {
            fs::create_dir_all(rootfs.path().join(directory)).unwrap();
        }
        rootfs
    }

    #[test]
    fn without_the_option_nothing_changes() {
        let rootfs = image();
        let mounts = [tmpfs("/run", &["nosuid"])];
        for cwd in ["/", "/run", "/running"] {
            assert_eq!(carry_out(rootfs.path(), &mounts, Path::new(cwd)).unwrap(), None);
        }
        let mounts = [tmpfs("/dev", &["nosuid"]), tmpfs("/dev/shm", &[]), tmpfs("/run", &[])];
        for cwd in ["/dev/shm", "/dev/pts"] {
            assert_eq!(carry_out(rootfs.path(), &mounts, Path::new(cwd)).unwrap(), None);
        }
    }

    #[test]
    fn where_there_is_nothing_to_copy_the_option_goes() {
        let rootfs = image();
        symlink("/etc", rootfs.path().join("link")).unwrap();
        let destinations = ["/empty", "/missing", "/link"];
        let mounts = destinations.map(|at| tmpfs(at, &["nosuid", OPTION, "size=1m"]));
        let changed = carry_out(rootfs.path(), &mounts, Path::new("/")).unwrap().unwrap();
        assert_eq!(changed, destinations.map(|at| tmpfs(at, &["nosuid", "size=1m"])));
    }

    /// Needs root. The thread is the process that makes a container.
    #[test]
    fn what_the_image_has_is_copied_and_bound() {
        let rootfs = image();
        let root = fs::canonicalize(rootfs.path()).unwrap();
        fs::write(root.join("run/lock/file"), "text").unwrap();
        fs::set_permissions(root.join("run/lock/file"), fs::Permissions::from_mode(0o4750))
            .unwrap();
        symlink("/etc/passwd", root.join("run/link")).unwrap();
        fs::set_permissions(root.join("run"), fs::Permissions::from_mode(0o711)).unwrap();
        let inside = root.clone();
        let made = std::thread::spawn(move || {
            let mounts = [tmpfs("/run", &["rw", "nosuid", OPTION, "size=1m"])];
            let changed = carry_out(&inside, &mounts, Path::new("/")).unwrap().unwrap();
            let run = inside.join("run");
            fs::write(run.join("new"), "").unwrap();
            let mode = |path: &Path| fs::symlink_metadata(path).unwrap().mode() & 0o7777;
            assert_eq!((mode(&run), mode(&run.join("lock/file"))), (0o711, 0o4750));
            assert_eq!(fs::read_link(run.join("link")).unwrap(), Path::new("/etc/passwd"));
            assert_eq!(fs::read_to_string(run.join("lock/file")).unwrap(), "text");
            changed
        });
        let changed = made.join().unwrap();
        let bind = serde_json::json!([{
            "destination": "/run", "type": "bind", "source": root.join("run"), "options": ["bind", "rw", "nosuid"]
        }]);
        assert_eq!(serde_json::to_value(changed).unwrap(), bind);
        assert!(!root.join("run/new").exists(), "the image itself was written to");
    }

    /// As above.
    #[test]
    fn working_directory_on_a_tmpfs_is_made_there() {
        let rootfs = image();
        let root = fs::canonicalize(rootfs.path()).unwrap();
        let inside = root.clone();
        let made = std::thread::spawn(move || {
            // The second is not in the image.
            for (at, cwd) in [("/empty", "/empty/src"), ("/new/place", "/new/place/src")] {
                let cwd = Path::new(cwd);
                let changed = carry_out(&inside, &[tmpfs(at, &[])], cwd).unwrap().unwrap();
                cwd::prepare(&inside, &changed, cwd).unwrap();
            }
            inside.join("empty/src").is_dir() && inside.join("new/place/src").is_dir()
        });
        assert!(made.join().unwrap());
        for made in ["empty/src", "new/place/src"] {
            assert!(!root.join(made).exists(), "the image itself was written to");
        }
    }
}
