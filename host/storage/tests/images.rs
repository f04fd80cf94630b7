//! Images of overlays that are really mounted, and a disk that is really full. Each test acts in a
//! mount namespace of its own thread, and needs root.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use std::fs;
use std::path::Path;

use kata_linux::mount::{make_private, mount, unmount_tree, unshare_mount_namespace};
use kata_storage::{ImageCache, ImageKey, ImageOrigin, RootfsMount, mount_rootfs};

/// What a snapshot's only file holds.
const CONTENT: usize = 300 << 10;

/// Runs `test` in a directory with committed snapshots 1 and 2, on a tmpfs of 1 MiB that only it
/// can see.
fn in_namespace(test: impl FnOnce(&Path) + Send) {
    assert!(rustix::process::geteuid().is_root(), "this test needs root");
    let directory = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            unshare_mount_namespace().unwrap();
            mount("tmpfs", directory.path(), "tmpfs", &["size=1m".to_owned()]).unwrap();
            make_private(directory.path(), false).unwrap();
            if directory.path().metadata().unwrap().created().is_err() {
                eprintln!("left out: a tmpfs here does not tell when a directory was made");
                return;
            }
            for name in ["snapshots/1/fs", "snapshots/2/fs", "sandbox", "rootfs"] {
                fs::create_dir_all(directory.path().join(name)).unwrap();
            }
            for number in [1, 2] {
                let file = directory.path().join(format!("snapshots/{number}/fs/file"));
                fs::write(file, vec![number; CONTENT]).unwrap();
            }
            test(directory.path());
        });
    });
}

/// Has the image of a container made as the runtime does: one of this committed snapshot, under an
/// empty directory of its own. Whether it was kept before.
fn start(directory: &Path, committed: u32, container: u32) -> bool {
    let snapshot = |number| directory.join(format!("snapshots/{number}"));
    for name in ["fs", "work"] {
        fs::create_dir_all(snapshot(container).join(name)).unwrap();
    }
    let option =
        |key: &str, number, name: &str| format!("{key}={}", snapshot(number).join(name).display());
    let mounts = [RootfsMount {
        fstype: "overlay".to_owned(),
        source: "overlay".to_owned(),
        options: vec![
            "index=off".to_owned(),
            option("workdir", container, "work"),
            option("upperdir", container, "fs"),
            option("lowerdir", committed, "fs"),
        ],
        ..RootfsMount::default()
    }];
    let cache = ImageCache::new(directory.join("cache"), 1 << 20);
    let (root, image) = (directory.join("rootfs"), directory.join(format!("sandbox/{container}")));
    let key = ImageKey::of(&mounts).unwrap();
    mount_rootfs(&mounts, &root).unwrap();
    let origin = cache.make(Some(&key), &root, &image).unwrap();
    unmount_tree(&root).unwrap();
    assert_eq!(ImageKey::of(&mounts).unwrap(), key, "mounting and packing change nothing");
    let ImageOrigin::Packed(file) = origin else { return true };
    cache.keep(&key, &file);
    false
}

/// Whether an image is one of the snapshot with this number.
fn is_of(image: &Path, number: u8) -> bool {
    fs::read(image).unwrap().windows(4096).any(|window| window.iter().all(|&byte| byte == number))
}

#[test]
fn overlay_of_the_same_snapshots_is_packed_once() {
    in_namespace(|directory| {
        assert!(!start(directory, 1, 11));
        assert!(start(directory, 1, 12));
        assert!(is_of(&directory.join("sandbox/12"), 1));
    });
}

#[test]
fn full_disk_costs_the_cache_and_no_start() {
    in_namespace(|directory| {
        start(directory, 1, 11);
        // Its sandbox has ended, and the image is there for the cache alone.
        fs::remove_file(directory.join("sandbox/11")).unwrap();
        assert!(!start(directory, 2, 12));
        assert!(is_of(&directory.join("sandbox/12"), 2));
        assert_eq!(fs::read_dir(directory.join("cache")).unwrap().count(), 1);
        assert!(start(directory, 2, 13));
    });
}
