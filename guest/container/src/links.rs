//! Files that are mounted onto a link that leads nowhere, as `/etc/resolv.conf` of an image with
//! systemd-resolved does. runc makes what such a link leads to, inside of the root file system;
//! libcontainer refuses it.

use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2, readlinkat};
use rustix::io::Errno;

use crate::cwd;

/// As many links in a row as the kernel follows (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// Makes the files that the dangling links lead to onto which files are mounted. No link leads out
/// of `rootfs`. What cannot be made on a read-only file system is left: the mount will say so.
pub(crate) fn prepare(rootfs: &Path, mounts: &[Mount]) -> io::Result<()> {
    let mut above: Vec<PathBuf> = Vec::new();
    for mount in mounts {
        let destination = cwd::normalized(mount.destination());
        let is_file = mount.source().as_ref().is_some_and(|source| source.is_file());
        let in_image = !above.iter().any(|one| destination.starts_with(one));
        if cwd::is_bind(mount) && is_file && in_image {
            match make_target(rootfs, &destination) {
                Err(Errno::ROFS) | Ok(()) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        above.push(destination);
    }
    Ok(())
}

fn make_target(rootfs: &Path, path: &Path) -> rustix::io::Result<()> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = openat(CWD, rootfs, flags | OFlags::DIRECTORY, Mode::empty())?;
    let open =
        |path: &Path, flags| openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT);
    let mut path = path.to_owned();
    let mut is_link = false;
    for _ in 0..MOST_LINKS {
        match open(&path, flags) {
            Err(Errno::NOENT) => {}
            // It leads somewhere, or what is wrong is the mount's to say.
            _ => return Ok(()),
        }
        let parent = path.parent().unwrap_or(Path::new("/")).to_owned();
        match open(&path, flags | OFlags::NOFOLLOW) {
            Ok(link) => {
                let target = PathBuf::from(std::ffi::OsString::from_vec(
                    readlinkat(&link, "", Vec::new())?.into_bytes(),
                ));
                path = cwd::normalized(&parent.join(target));
                is_link = true;
            }
            // The end of the links. A plain path that is missing is made by the mount.
            Err(Errno::NOENT) if is_link => {
                cwd::make(rootfs, parent.strip_prefix("/").unwrap_or(&parent))?;
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                let mode = Mode::from_raw_mode(0o644);
                return openat2(&root, &path, flags, mode, ResolveFlags::IN_ROOT).map(drop);
            }
            Err(_) => return Ok(()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_a_dangling_link_leads_to_is_made_in_the_image() {
        let (outside, rootfs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let source = outside.path().join("source");
        fs::write(&source, "").unwrap();
        fs::create_dir(rootfs.path().join("etc")).unwrap();
        let gone = outside.path().join("gone");
        for (link, target) in [
            ("etc/resolv.conf", Path::new("../run/systemd/resolve/stub-resolv.conf")),
            ("etc/first", Path::new("/etc/second")),
            ("etc/second", Path::new("../../../made")),
            ("etc/outside", &gone),
            ("etc/loop", Path::new("loop")),
        ] {
            symlink(target, rootfs.path().join(link)).unwrap();
        }
        let mount = |at: &str| -> Mount {
            let json = serde_json::json!({
                "destination": at, "type": "bind", "source": source, "options": ["rbind"]
            });
            serde_json::from_value(json).unwrap()
        };
        let mounts = ["/etc/resolv.conf", "/etc/first", "/etc/outside", "/etc/loop", "/etc/plain"];
        prepare(rootfs.path(), &mounts.map(mount)).unwrap();
        let inside = |path: &Path| rootfs.path().join(path.strip_prefix("/").unwrap_or(path));
        for made in [Path::new("run/systemd/resolve/stub-resolv.conf"), Path::new("made"), &gone] {
            assert!(inside(made).is_file(), "{}", made.display());
        }
        assert!(!gone.exists(), "a link led out of the image");
        assert!(!rootfs.path().join("etc/plain").exists(), "the mount makes that");
    }
}
