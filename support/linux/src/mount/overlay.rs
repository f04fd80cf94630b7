//! Overlays with so many layers that their absolute paths exceed mount(2)'s page.
//!
//! The snapshotters put all layers of an image below one directory, so their paths become short
//! when taken relative to it. (`fsconfig`'s `lowerdir+` would do too, but only from Linux 6.7 on.)

use std::io;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};

use super::options::{MountOptions, PAGE_LIMIT};

/// The options with `lowerdir`, `upperdir` and `workdir` relative to their common parent, and that
/// parent. `None` where they have none but the root, or are too long still.
pub(super) fn with_relative_layers(options: &MountOptions) -> Option<(PathBuf, MountOptions)> {
    let paths =
        options.data.iter().filter_map(|option| layers(option)).flat_map(|(_, paths)| paths);
    let parent =
        paths.map(|path| path.parent().map(Path::to_owned)).reduce(|a, b| common(&a?, &b?))??;
    if !parent.is_absolute() || parent == Path::new("/") {
        return None;
    }
    let shorten = |option: &String| match layers(option) {
        Some((key, paths)) => {
            let relative: Vec<_> = paths
                .iter()
                .map(|path| path.strip_prefix(&parent).unwrap_or(path).display().to_string())
                .collect();
            format!("{key}={}", relative.join(":"))
        }
        None => option.clone(),
    };
    let mut shorter = options.clone();
    shorter.data = options.data.iter().map(shorten).collect();
    (shorter.data_length() <= PAGE_LIMIT).then_some((parent, shorter))
}

/// Mounts with `directory` as the working directory, on a thread of its own so that nobody else's
/// changes.
pub(super) fn mount_from(
    directory: &Path,
    options: &MountOptions,
    source: &str,
    target: &Path,
    fstype: &str,
) -> io::Result<()> {
    let target = std::path::absolute(target)?;
    let mount = || {
        unshare(CloneFlags::CLONE_FS)?;
        rustix::process::chdir(directory)?;
        options.mount(source, &target, fstype)
    };
    std::thread::scope(|scope| scope.spawn(mount).join())
        .unwrap_or_else(|_| Err(io::Error::other("the mounting thread panicked")))
}

/// Key and paths of an option that holds layers; `None` for every other one, and for paths with
/// escapes.
fn layers(option: &str) -> Option<(&str, Vec<&Path>)> {
    let (key, value) = option.split_once('=')?;
    let is_layers = matches!(key, "lowerdir" | "upperdir" | "workdir") && !value.contains('\\');
    is_layers.then(|| (key, value.split(':').map(Path::new).collect()))
}

/// The longest path that both are below.
fn common(a: &Path, b: &Path) -> Option<PathBuf> {
    let shared: PathBuf =
        a.components().zip(b.components()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect();
    (!shared.as_os_str().is_empty()).then_some(shared)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(layers: usize) -> MountOptions {
        let lower: Vec<_> =
            (0..layers).map(|n| format!("/var/lib/snapshotter/snapshots/{n}/fs")).collect();
        MountOptions::parse(&[
            "index=off".to_owned(),
            "workdir=/var/lib/snapshotter/snapshots/999/work".to_owned(),
            format!("lowerdir={}", lower.join(":")),
        ])
        .unwrap()
    }

    #[test]
    fn layers_become_relative_to_their_common_parent() {
        let (parent, shorter) = with_relative_layers(&overlay(2)).unwrap();
        assert_eq!(parent, Path::new("/var/lib/snapshotter/snapshots"));
        assert_eq!(shorter.data, ["index=off", "workdir=999/work", "lowerdir=0/fs:1/fs"]);
    }

    #[test]
    fn several_hundred_layers_fit() {
        let (_, shorter) = with_relative_layers(&overlay(400)).unwrap();
        assert!(shorter.data_length() <= PAGE_LIMIT);
        assert!(with_relative_layers(&overlay(4000)).is_none());
    }

    #[test]
    fn layers_without_a_common_parent_are_left_alone() {
        let options = MountOptions::parse(&["lowerdir=/a/x:/b/y".to_owned()]).unwrap();
        assert!(with_relative_layers(&options).is_none());
    }
}
