//! What the image of a root file system is named by, so that the next container can have the same.
//!
//! containerd's overlayfs snapshotter unpacks each layer of an image into a directory of its own,
//! commits it, and never changes it again. A new container gets an overlay of such directories
//! with an empty one on top. So which directories these are tells what is in the overlay, and not
//! one file has to be looked at. Of the empty one only its owner and its mode matter, which are
//! those of the root directory; its time, which differs with every container, is no content.
//!
//! A wrong hit would run another program than the one that was asked for. So a directory is told
//! apart not by its name, which may come again, but by what comes only once; and any overlay that
//! is not made exactly like that has no key.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::UNIX_EPOCH;

use sha2::{Digest, Sha256};

use crate::RootfsMount;
use crate::pack::attributes;

/// Options of an overlay that name no directory. Some change what is seen of the layers, so all of
/// them are part of the key.
const OPTIONS: [&str; 10] = [
    "index",
    "metacopy",
    "nfs_export",
    "redirect_dir",
    "ro",
    "rw",
    "userxattr",
    "uuid",
    "volatile",
    "xino",
];

/// Names the content of a root file system: equal keys mean equal content, as long as nobody but
/// the snapshotter writes below its snapshots. It is a plain file name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageKey(String);

impl ImageKey {
    /// The key of what these mounts make, as everything is now; `None` where that is not certain to
    /// be what committed snapshots of containerd's overlayfs snapshotter hold. So it is where
    ///
    /// - there is anything but one overlay, with options that are all known,
    /// - something was written to its upper directory, or it has extended attributes that would be
    ///   in an image,
    /// - a layer is not at `…/snapshots/NUMBER/fs`, or has something mounted on it, as by
    ///   snapshotters that fetch files when they are read,
    /// - the file system does not tell when a directory was made.
    ///
    /// A snapshot that was removed and made again has another key, even with its old name and inode
    /// number; so has one in whose topmost directory something was changed by hand. A change
    /// further below is not noticed.
    #[must_use]
    pub fn of(mounts: &[RootfsMount]) -> Option<Self> {
        let [overlay] = mounts else { return None };
        if overlay.fstype != "overlay" || !matches!(overlay.target.as_str(), "" | "/") {
            return None;
        }
        let mut digest = Sha256::new();
        let mut add = |field: &str| digest.update([field.as_bytes(), &[0]].concat());
        // Another version may pack the same files in another way.
        add(env!("CARGO_PKG_VERSION"));
        let mut layers = None;
        for option in &overlay.options {
            // The kernel takes a comma as the beginning of one more option, and a backslash away.
            if option.contains([',', '\\']) {
                return None;
            }
            match option.split_once('=').unwrap_or((option, "")) {
                ("workdir", _) => {}
                ("upperdir", upper) => add(&top(Path::new(upper))?),
                ("lowerdir", all) if layers.is_none() => layers = Some(all),
                (name, _) if OPTIONS.contains(&name) => add(option),
                _ => return None,
            }
        }
        for layer in layers?.split(':') {
            add(layer);
            add(&identity(Path::new(layer))?);
        }
        Some(Self(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
    }
}

impl fmt::Display for ImageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an upper directory without anything in it makes of the root directory.
fn top(upper: &Path) -> Option<String> {
    let is_empty = fs::read_dir(upper).ok()?.next().is_none();
    if !is_empty || !attributes(upper).ok()?.is_empty() {
        return None;
    }
    let directory = fs::metadata(upper).ok()?;
    Some(format!("{} {} {:o}", directory.uid(), directory.gid(), directory.mode()))
}

/// What the directory of a committed snapshot shares with no other one, before it or after it, and
/// with itself only until something in it is changed: nobody can set when it was made (statx(2),
/// `stx_btime`) or changed last (`stx_ctime`).
fn identity(layer: &Path) -> Option<String> {
    let snapshot = layer.parent()?;
    let all = snapshot.parent()?;
    let number = snapshot.file_name()?.as_encoded_bytes();
    let is_named_so = layer.is_absolute()
        && layer.ends_with("fs")
        && number.iter().all(u8::is_ascii_digit)
        && all.ends_with("snapshots");
    let directory = fs::symlink_metadata(layer).ok()?;
    let is_snapshotters = directory.is_dir() && directory.dev() == fs::metadata(all).ok()?.dev();
    if !is_named_so || !is_snapshotters {
        return None;
    }
    let made = directory.created().ok()?.duration_since(UNIX_EPOCH).ok()?.as_nanos();
    let (device, inode) = (directory.dev(), directory.ino());
    let (seconds, nanoseconds) = (directory.ctime(), directory.ctime_nsec());
    Some(format!("{device} {inode} {made} {seconds} {nanoseconds}"))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::{PermissionsExt, chown};

    use rustix::fs::{XattrFlags, setxattr};

    use super::*;

    /// A directory with committed snapshots 1 and 2 and an empty one 3; `None`, with a word about
    /// it, where no directory tells when it was made.
    pub(crate) fn snapshotter() -> Option<tempfile::TempDir> {
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        if directory.path().metadata().unwrap().created().is_err() {
            eprintln!("left out: /var/tmp does not tell when a directory was made");
            return None;
        }
        for (number, file) in [(1, "bin/tool"), (2, "etc/name")] {
            let file = directory.path().join(format!("snapshots/{number}/fs/{file}"));
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, format!("of {number}")).unwrap();
        }
        fs::create_dir_all(directory.path().join("snapshots/3/fs")).unwrap();
        Some(directory)
    }

    /// The overlay that containerd asks for: snapshot 3 on 2 on 1.
    pub(crate) fn overlay(directory: &Path) -> RootfsMount {
        let fs = |number| format!("{}/snapshots/{number}/fs", directory.display());
        RootfsMount {
            fstype: "overlay".to_owned(),
            source: "overlay".to_owned(),
            options: vec![
                "index=off".to_owned(),
                format!("workdir={}/snapshots/3/work", directory.display()),
                format!("upperdir={}", fs(3)),
                format!("lowerdir={}:{}", fs(2), fs(1)),
            ],
            ..RootfsMount::default()
        }
    }

    fn key(directory: &Path) -> Option<ImageKey> {
        ImageKey::of(&[overlay(directory)])
    }

    #[test]
    fn containers_of_the_same_snapshots_have_the_same_key() {
        let Some(directory) = snapshotter() else { return };
        let first = key(directory.path()).unwrap();
        fs::create_dir_all(directory.path().join("snapshots/4/fs")).unwrap();
        let mut other = overlay(directory.path());
        for option in &mut other.options {
            *option = option.replace("snapshots/3/", "snapshots/4/");
        }
        assert_eq!(ImageKey::of(&[other.clone()]).unwrap(), first);
        // Without anything to write to, as for a read-only view: its root is a layer's.
        other.options.retain(|option| !option.starts_with("upper") && !option.starts_with("work"));
        let view = ImageKey::of(&[other.clone()]).unwrap();
        assert_ne!(view, first);
        other.options.push("userxattr".to_owned());
        assert_ne!(ImageKey::of(&[other]).unwrap(), view);
    }

    #[test]
    fn root_directory_of_another_owner_or_mode_is_another_one() {
        let Some(directory) = snapshotter() else { return };
        let upper = directory.path().join("snapshots/3/fs");
        let with = |mode| {
            fs::set_permissions(&upper, fs::Permissions::from_mode(mode)).unwrap();
            key(directory.path()).unwrap()
        };
        let usual = with(0o755);
        assert_ne!(with(0o700), usual);
        assert_ne!(with(0o1755), usual);
        assert_eq!(with(0o755), usual);
        if !rustix::process::geteuid().is_root() {
            eprintln!("left out: only root gives directories away");
            return;
        }
        for (user, group) in [(Some(1000), None), (Some(0), Some(1000))] {
            chown(&upper, user, group).unwrap();
            assert_ne!(key(directory.path()).unwrap(), usual, "{user:?} {group:?}");
        }
    }

    #[test]
    fn root_directory_with_attributes_has_no_key() {
        let Some(directory) = snapshotter() else { return };
        let upper = directory.path().join("snapshots/3/fs");
        let usual = key(directory.path());
        let set = |name: &str| setxattr(&upper, name, b"value", XattrFlags::empty());
        // An overlay's own are not seen through it.
        if set("user.overlay.origin").is_err() {
            eprintln!("left out: /var/tmp has no extended attributes");
            return;
        }
        assert!(usual.is_some());
        assert_eq!(key(directory.path()), usual);
        set("user.other").unwrap();
        assert_eq!(key(directory.path()), None);
    }

    #[test]
    fn layer_that_was_made_again_or_changed_or_moved_is_another_one() {
        let Some(directory) = snapshotter() else { return };
        let mut seen = vec![key(directory.path()).unwrap()];
        let mut is_new = |what: &str| {
            let now = key(directory.path()).unwrap();
            assert!(!seen.contains(&now), "{what}");
            seen.push(now);
        };
        // Clocks of file systems tick every few milliseconds.
        let tick = || std::thread::sleep(std::time::Duration::from_millis(20));
        let [one, two] = ["1", "2"].map(|number| directory.path().join("snapshots").join(number));
        tick();
        fs::remove_dir_all(one.join("fs")).unwrap();
        fs::create_dir(one.join("fs")).unwrap();
        is_new("made again");
        tick();
        fs::write(one.join("fs/file"), "by hand").unwrap();
        is_new("changed");
        tick();
        let there = fs::metadata(one.join("fs")).unwrap();
        fs::File::open(one.join("fs")).unwrap().set_modified(there.modified().unwrap()).unwrap();
        is_new("changed, and its time set back");
        fs::rename(&one, directory.path().join("aside")).unwrap();
        fs::rename(&two, &one).unwrap();
        fs::rename(directory.path().join("aside"), &two).unwrap();
        is_new("in another order");
    }

    #[test]
    fn what_was_written_to_has_no_key() {
        let Some(directory) = snapshotter() else { return };
        fs::write(directory.path().join("snapshots/3/fs/file"), "").unwrap();
        assert_eq!(key(directory.path()), None);
    }

    #[test]
    fn what_is_not_surely_of_committed_snapshots_has_no_key() {
        let Some(directory) = snapshotter() else { return };
        let whole = overlay(directory.path());
        let with = |change: &dyn Fn(&mut RootfsMount)| {
            let mut changed = whole.clone();
            change(&mut changed);
            ImageKey::of(&[changed])
        };
        assert!(with(&|_| {}).is_some());
        assert_eq!(ImageKey::of(&[]), None);
        assert_eq!(ImageKey::of(&[whole.clone(), whole.clone()]), None);
        assert_eq!(with(&|mount| mount.fstype = "bind".to_owned()), None);
        assert_eq!(with(&|mount| mount.target = "/usr".to_owned()), None);
        for option in ["lowerdir+=/srv", "datadir+=/srv", "lowerdir=/srv", "ro,lowerdir=/srv"] {
            assert_eq!(with(&|mount| mount.options.push(option.to_owned())), None, "{option}");
        }
        let lower = |paths: &str| with(&|mount| mount.options[3] = format!("lowerdir={paths}"));
        let fs = |number: &str| directory.path().join("snapshots").join(number).join("fs");
        assert!(lower(&fs("1").display().to_string()).is_some());
        std::os::unix::fs::symlink(fs("1").parent().unwrap(), fs("5").parent().unwrap()).unwrap();
        fs::create_dir_all(fs("new-1")).unwrap();
        std::os::unix::fs::symlink("../1/fs", directory.path().join("snapshots/2/link")).unwrap();
        for odd in ["9/fs", "1", "1/fs/bin", "new-1/fs", "2/link", "1/fs:", "1/fs::2/fs"] {
            let path = directory.path().join("snapshots").join(odd);
            assert_eq!(lower(&path.display().to_string()), None, "{odd}");
        }
        assert_eq!(lower("snapshots/1/fs"), None);
        assert_eq!(lower(&format!("{}\\:x", fs("1").display())), None);
    }
}
