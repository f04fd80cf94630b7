//! Mounts for real. Each test acts in a mount namespace of its own thread, and needs root.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use kata_linux::mount::{
    DetachedMount, MountAttributes, MountError, Propagation, bind, make_private, make_shared,
    mount, mounts_below, unmount_tree, unshare_mount_namespace,
};

/// Runs `test` in a fresh tmpfs that only it can see, and checks that nothing of it is left
/// outside.
fn in_namespace(test: impl FnOnce(&Path) + Send) {
    assert!(rustix::process::geteuid().is_root(), "this test needs root");
    let outside = tempfile::tempdir().unwrap();
    let directory = fs::canonicalize(outside.path()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            unshare_mount_namespace().unwrap();
            mount("tmpfs", &directory, "tmpfs", &words("size=16m,mode=700")).unwrap();
            make_private(&directory, false).unwrap();
            test(&directory);
        });
    });
    assert_eq!(mounts_below(&directory).unwrap(), []);
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
}

fn words(options: &str) -> Vec<String> {
    options.split(',').map(str::to_owned).collect()
}

fn directories<const N: usize>(parent: &Path, names: [&str; N]) -> [std::path::PathBuf; N] {
    names.map(|name| {
        let path = parent.join(name);
        fs::create_dir_all(&path).unwrap();
        path
    })
}

fn is_readonly(result: std::io::Result<()>) -> bool {
    result.is_err_and(|error| error.kind() == std::io::ErrorKind::ReadOnlyFilesystem)
}

#[test]
fn bind_option_strings_are_honoured_at_once() {
    in_namespace(|dir| {
        let [source, target] = directories(dir, ["source", "target"]);
        fs::write(source.join("file"), "x").unwrap();
        mount(source.to_str().unwrap(), &target, "bind", &words("rbind,ro,nosuid,nodev,rprivate"))
            .unwrap();
        assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "x");
        assert!(is_readonly(fs::write(target.join("file"), "y")));
        let entry = mounts_below(&target).unwrap().remove(0);
        for option in ["ro", "nosuid", "nodev"] {
            assert!(entry.options.iter().any(|one| one == option), "{entry:?}");
        }
    });
}

#[test]
fn recursive_readonly_bind_covers_what_is_below() {
    in_namespace(|dir| {
        let [source, below, target] = directories(dir, ["source", "source/below", "target"]);
        mount("tmpfs", &below, "tmpfs", &[]).unwrap();
        bind(&source, &target, true, true).unwrap();
        assert!(is_readonly(fs::write(target.join("below/file"), "x")));
        fs::write(below.join("file"), "x").unwrap();
        unmount_tree(&target).unwrap();
        bind(&source, &target, false, false).unwrap();
        assert!(!target.join("below/file").exists());
    });
}

#[test]
fn file_is_bound_on_a_file() {
    in_namespace(|dir| {
        let (source, target) = (dir.join("source"), dir.join("target"));
        fs::write(&source, "from the source").unwrap();
        fs::write(&target, "").unwrap();
        bind(&source, &target, false, false).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "from the source");
        assert!(bind(dir, &target, false, false).is_err(), "a directory does not fit on a file");
    });
}

#[test]
fn overlay_with_more_layers_than_fit_into_a_page_is_mounted() {
    in_namespace(|dir| {
        let [upper, work, target] = directories(dir, ["s/upper/fs", "s/upper/work", "target"]);
        let lower: Vec<String> = (0..120)
            .map(|n| {
                let [layer] = directories(dir, [format!("s/layer-of-an-image-{n}/fs").as_str()]);
                fs::write(layer.join(format!("file{n}")), "").unwrap();
                layer.display().to_string()
            })
            .collect();
        let options = [
            format!("lowerdir={}", lower.join(":")),
            format!("upperdir={}", upper.display()),
            format!("workdir={}", work.display()),
        ];
        assert!(options.iter().map(String::len).sum::<usize>() > 4096);
        mount("overlay", &target, "overlay", &options).unwrap();
        assert_eq!(fs::read_dir(&target).unwrap().count(), 120);
        fs::write(target.join("new"), "").unwrap();
        assert!(upper.join("new").exists());
        assert_ne!(
            std::env::current_dir().unwrap(),
            dir.join("s"),
            "the thread's directory is its own"
        );
    });
}

#[test]
fn later_mounts_reach_a_slave_and_not_a_private_copy() {
    in_namespace(|dir| {
        let [source, below, slave, private] =
            directories(dir, ["source", "source/below", "slave", "private"]);
        bind(&source, &source, false, false).unwrap();
        make_shared(&source, true).unwrap();
        for (target, propagation) in
            [(&slave, Propagation::Slave), (&private, Propagation::Private)]
        {
            let tree = DetachedMount::clone_of(fs::File::open(&source).unwrap(), true).unwrap();
            tree.set(MountAttributes {
                propagation: Some(propagation),
                ..MountAttributes::default()
            })
            .unwrap();
            tree.attach(fs::File::open(target).unwrap()).unwrap();
        }
        mount("tmpfs", &below, "tmpfs", &[]).unwrap();
        fs::write(below.join("file"), "").unwrap();
        assert!(slave.join("below/file").exists());
        assert!(!private.join("below/file").exists());
    });
}

#[test]
fn unmounting_takes_the_whole_stack_and_follows_no_link() {
    in_namespace(|dir| {
        let [target, link_target] = directories(dir, ["target", "link_target"]);
        for _ in 0..3 {
            mount("tmpfs", &target, "tmpfs", &[]).unwrap();
        }
        mount("tmpfs", &link_target, "tmpfs", &[]).unwrap();
        let busy = fs::File::create(target.join("busy")).unwrap();
        unmount_tree(&target).unwrap();
        unmount_tree(&target).unwrap();
        unmount_tree(&dir.join("nothing")).unwrap();
        drop(busy);
        assert_eq!(mounts_below(&target).unwrap(), []);

        let link = dir.join("link");
        std::os::unix::fs::symlink(&link_target, &link).unwrap();
        let _ = unmount_tree(&link);
        assert_eq!(mounts_below(&link_target).unwrap().len(), 1);
    });
}

#[test]
fn failure_names_what_and_where() {
    in_namespace(|dir| {
        let [target] = directories(dir, ["target"]);
        let error = mount("none", &target, "nosuchfs", &[]).unwrap_err();
        assert!(
            matches!(&error, MountError::Mount { fstype, .. } if fstype == "nosuchfs"),
            "{error:?}"
        );
        assert!(error.to_string().contains(target.to_str().unwrap()));
        assert!(matches!(
            mount("x", &target, "ext4", &words("loop")),
            Err(MountError::UnsupportedOption(_))
        ));
    });
}
