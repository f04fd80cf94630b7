//! The share for real, seen the way a file server sees it. Each test acts in a mount namespace of
//! its own thread, and needs root.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Path, PathBuf};

use kata_linux::mount::{make_private, make_shared, mount, mounts_below, unshare_mount_namespace};
use kata_storage::{
    EmptyDir, GUEST_SHARE, HostBind, HostOverlay, RootfsMount, Share, StorageError, mount_rootfs,
    plan_mounts,
};

/// Runs `test` with a sandbox directory and a host directory on a tmpfs that only it can see;
/// checks that nothing is left.
fn in_namespace(test: impl FnOnce(&Path, &Path) + Send) {
    assert!(rustix::process::geteuid().is_root(), "this test needs root");
    let outside = tempfile::tempdir().unwrap();
    let directory = fs::canonicalize(outside.path()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            unshare_mount_namespace().unwrap();
            mount("tmpfs", &directory, "tmpfs", &[]).unwrap();
            make_private(&directory, false).unwrap();
            let (run, host) = (directory.join("run"), directory.join("host"));
            fs::create_dir(&run).unwrap();
            fs::create_dir(&host).unwrap();
            test(&run, &host);
            assert_eq!(
                mounts_below(&run).unwrap(),
                [],
                "a mount is left in the sandbox's directory"
            );
            assert_eq!(
                fs::read_dir(&run).unwrap().count(),
                0,
                "something is left in the sandbox's directory"
            );
        });
    });
    assert_eq!(mounts_below(&directory).unwrap(), []);
}

fn on_host(share: &Share, guest_path: &Path) -> PathBuf {
    share.path().join(guest_path.strip_prefix(GUEST_SHARE).unwrap())
}

fn host_bind(index: usize, source: &Path) -> HostBind {
    HostBind {
        index,
        source: source.to_owned(),
        destination: "/mnt".into(),
        readonly: false,
        recursive: true,
        follows_host: true,
    }
}

fn is_readonly(result: std::io::Result<()>) -> bool {
    result.is_err_and(|error| error.kind() == ErrorKind::ReadOnlyFilesystem)
}

#[test]
fn rootfs_and_mounts_have_their_places_and_vanish() {
    in_namespace(|run, host| {
        fs::create_dir_all(host.join("rootfs/bin")).unwrap();
        fs::write(host.join("hosts"), "127.0.0.1").unwrap();
        let mut share = Share::create(run).unwrap();
        let rootfs = share.add_rootfs("c1", &host.join("rootfs"), false).unwrap();
        let file = share.add_mount("c1", &host_bind(7, &host.join("hosts"))).unwrap();
        let dir = share.add_mount("c1", &host_bind(8, host)).unwrap();
        assert_eq!(rootfs, Path::new(GUEST_SHARE).join(".mounts/1"));
        assert_eq!(file, Path::new(GUEST_SHARE).join(".mounts/2"));
        assert!(on_host(&share, &rootfs).join("bin").is_dir());
        assert_eq!(fs::read_to_string(on_host(&share, &file)).unwrap(), "127.0.0.1");
        fs::write(on_host(&share, &dir).join("written"), "").unwrap();
        assert!(host.join("written").exists());

        share.remove_container("c1").unwrap();
        share.remove_container("c1").unwrap();
        for guest_path in [&rootfs, &file, &dir] {
            assert!(!on_host(&share, guest_path).exists(), "{}", guest_path.display());
        }
        assert!(host.join("rootfs/bin").is_dir() && host.join("hosts").exists(), "sources stay");
        share.remove().unwrap();
    });
}

/// A restarted member of a pod is made in the seconds for which the guest's kernel believes in the
/// names that it knows.
#[test]
fn container_that_is_made_again_has_another_name_for_its_root() {
    in_namespace(|run, host| {
        let mut share = Share::create(run).unwrap();
        let first = share.add_rootfs("c1", host, false).unwrap();
        share.remove_container("c1").unwrap();
        assert_ne!(share.add_rootfs("c1", host, false).unwrap(), first);
        share.remove().unwrap();
    });
}

#[test]
fn containers_that_mount_the_same_have_the_same_files() {
    in_namespace(|run, host| {
        let volume = host.join("pods/1/volumes/kubernetes.io~empty-dir/data");
        let subpath = host.join("pods/1/volume-subpaths/data/c2/0");
        fs::create_dir_all(&volume).unwrap();
        fs::create_dir_all(&subpath).unwrap();
        mount(volume.to_str().unwrap(), &subpath, "bind", &["bind".to_owned()]).unwrap();
        let mut share = Share::create(run).unwrap();
        let one = share.add_mount("c1", &host_bind(0, host)).unwrap();
        let same = share.add_mount("c2", &host_bind(5, host)).unwrap();
        assert_eq!(one, same);
        let other = HostBind { readonly: true, follows_host: false, ..host_bind(1, host) };
        assert_ne!(share.add_mount("c2", &other).unwrap(), one);
        let empty_dir = share.add_mount("c1", &host_bind(2, &volume)).unwrap();
        assert_eq!(share.add_mount("c2", &host_bind(3, &subpath)).unwrap(), empty_dir);

        fs::write(on_host(&share, &one).join("file"), "").unwrap();
        share.remove_container("c1").unwrap();
        assert!(on_host(&share, &one).join("file").exists(), "the other one still has it");
        share.remove_container("c2").unwrap();
        assert!(!on_host(&share, &one).exists() && host.join("file").exists());
        let again = share.add_mount("c1", &host_bind(0, host)).unwrap();
        assert_ne!(again, one, "no name is used twice");
        share.remove().unwrap();
    });
}

#[test]
fn share_that_is_in_use_is_removed_and_its_sources_stay() {
    in_namespace(|run, host| {
        for name in ["rootfs", "data", "for-all"] {
            fs::create_dir(host.join(name)).unwrap();
            fs::write(host.join(name).join("file"), "").unwrap();
        }
        let mut share = Share::create(run).unwrap();
        share.add_sandbox_mount(&host.join("for-all"), false).unwrap();
        for container in ["c1", "c2"] {
            share.add_rootfs(container, &host.join("rootfs"), false).unwrap();
            share.add_mount(container, &host_bind(0, &host.join("data"))).unwrap();
        }
        share.remove().unwrap();
        for name in ["rootfs", "data", "for-all"] {
            assert!(host.join(name).join("file").exists(), "{name}");
        }
    });
}

#[test]
fn trusting_server_gets_nothing_that_the_host_mounts_later() {
    in_namespace(|run, host| {
        mount("tmpfs", host, "tmpfs", &[]).unwrap();
        make_shared(host, false).unwrap();
        fs::create_dir(host.join("below")).unwrap();
        let mut share = Share::create(run).unwrap().for_trusting_server();
        let path = share.add_mount("c1", &host_bind(0, host)).unwrap();
        mount("tmpfs", &host.join("below"), "tmpfs", &[]).unwrap();
        fs::write(host.join("below/file"), "").unwrap();
        assert!(!on_host(&share, &path).join("below/file").exists());
        assert_eq!(share.add_mount("c2", &host_bind(0, host)).unwrap(), path);
        share.remove().unwrap();
    });
}

#[test]
fn what_is_mounted_below_a_source_is_each_containers_own() {
    in_namespace(|run, host| {
        fs::create_dir(host.join("below")).unwrap();
        let mut share = Share::create(run).unwrap();
        let stays = HostBind { follows_host: false, ..host_bind(0, host) };
        let before = share.add_mount("c1", &stays).unwrap();
        mount("tmpfs", &host.join("below"), "tmpfs", &[]).unwrap();
        fs::write(host.join("below/file"), "").unwrap();
        let after = share.add_mount("c2", &stays).unwrap();
        assert!(!on_host(&share, &before).join("below/file").exists());
        assert!(on_host(&share, &after).join("below/file").exists());
        share.remove().unwrap();
    });
}

#[test]
fn overlay_is_one_containers_and_leaves_its_layers() {
    in_namespace(|run, host| {
        for layer in ["lower", "upper", "work"] {
            fs::create_dir(host.join(layer)).unwrap();
        }
        fs::write(host.join("lower/file"), "lower").unwrap();
        let layer = |key: &str, name: &str| format!("{key}={}", host.join(name).display());
        let layers = [("lowerdir", "lower"), ("upperdir", "upper"), ("workdir", "work")];
        let options = layers.map(|(key, name)| layer(key, name)).to_vec();
        let overlay = HostOverlay { index: 0, options };
        let mut share = Share::create(run).unwrap();
        let path = share.add_overlay("c1", &overlay).unwrap();
        fs::write(on_host(&share, &path).join("file"), "changed").unwrap();
        share.remove_container("c1").unwrap();
        assert!(!on_host(&share, &path).exists());
        assert_eq!(fs::read_to_string(host.join("lower/file")).unwrap(), "lower");
        assert_eq!(fs::read_to_string(host.join("upper/file")).unwrap(), "changed");
        let options = vec![layer("lowerdir", "none")];
        let missing = share.add_overlay("c2", &HostOverlay { index: 0, options }).unwrap_err();
        assert!(missing.to_string().starts_with("cannot mount overlay"), "{missing}");
        share.remove().unwrap();
    });
}

#[test]
fn huge_pages_of_the_host_are_refused() {
    in_namespace(|_, host| {
        mount("hugetlbfs", host, "hugetlbfs", &[]).unwrap();
        let source = host.display();
        let spec = format!(
            r#"{{"ociVersion":"1.0.2","mounts":[{{"destination":"/m","type":"bind","source":"{source}"}}]}}"#
        );
        let spec = serde_json::from_str(&spec).unwrap();
        let error = plan_mounts(&spec, Path::new("/")).unwrap_err().to_string();
        assert!(error.contains("on the hugetlbfs file system"), "{error}");
        kata_linux::mount::unmount_tree(host).unwrap();
    });
}

#[test]
fn nothing_but_the_binds_can_be_written() {
    in_namespace(|run, host| {
        let mut share = Share::create(run).unwrap();
        let rootfs = share.add_rootfs("c1", host, false).unwrap();
        let dir = share.path();
        assert!(is_readonly(fs::create_dir(dir.join("c2"))));
        assert!(is_readonly(symlink("/etc", dir.join("sandbox-mounts"))));
        assert!(is_readonly(symlink("/etc", dir.join(".mounts/2"))));
        assert!(is_readonly(fs::rename(dir.join(".mounts"), dir.join("c3"))));
        fs::write(on_host(&share, &rootfs).join("file"), "").unwrap();
    });
}

#[test]
fn readonly_covers_mounts_below_the_source() {
    in_namespace(|run, host| {
        fs::create_dir(host.join("below")).unwrap();
        mount("tmpfs", &host.join("below"), "tmpfs", &[]).unwrap();
        fs::write(host.join("below/file"), "x").unwrap();
        let mut share = Share::create(run).unwrap();
        let readonly = HostBind { readonly: true, follows_host: false, ..host_bind(0, host) };
        let path = share.add_mount("c1", &readonly).unwrap();
        let path = on_host(&share, &path);
        assert_eq!(fs::read_to_string(path.join("below/file")).unwrap(), "x");
        assert!(is_readonly(fs::write(path.join("file"), "")));
        assert!(is_readonly(fs::write(path.join("below/file"), "")));
        share.remove_container("c1").unwrap();
        assert!(host.join("below/file").exists());
    });
}

#[test]
fn later_mounts_of_the_host_follow_only_where_asked() {
    in_namespace(|run, host| {
        mount(host.to_str().unwrap(), host, "bind", &[]).unwrap();
        make_shared(host, false).unwrap();
        fs::create_dir(host.join("later")).unwrap();
        let mut share = Share::create(run).unwrap();
        let follows = share.add_mount("c1", &host_bind(0, host)).unwrap();
        let follows = on_host(&share, &follows);
        let stays = HostBind { follows_host: false, ..host_bind(1, host) };
        let stays = share.add_mount("c1", &stays).unwrap();
        let stays = on_host(&share, &stays);
        mount("tmpfs", &host.join("later"), "tmpfs", &[]).unwrap();
        fs::write(host.join("later/file"), "").unwrap();
        assert!(follows.join("later/file").exists());
        assert!(!stays.join("later/file").exists());
    });
}

#[test]
fn server_that_left_the_namespace_sees_later_binds_come_and_go() {
    in_namespace(|run, host| {
        fs::write(host.join("file"), "").unwrap();
        let mut share = Share::create(run).unwrap();
        let path = share.path().to_owned();
        let (to_server, from_test) = std::sync::mpsc::channel::<()>();
        let (to_test, from_server) = std::sync::mpsc::channel::<bool>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                unshare_mount_namespace().unwrap();
                for () in from_test {
                    let file = path.join(".mounts/1/file");
                    to_test.send(file.exists()).unwrap();
                }
            });
            let seen = |expected: bool| {
                to_server.send(()).unwrap();
                assert_eq!(from_server.recv().unwrap(), expected);
            };
            seen(false);
            share.add_rootfs("c1", host, false).unwrap();
            seen(true);
            share.remove_container("c1").unwrap();
            seen(false);
            drop(to_server);
        });
    });
}

#[test]
fn devices_and_bad_ids_are_refused_and_links_in_a_source_stay_inside() {
    in_namespace(|run, host| {
        symlink("/etc", host.join("escape")).unwrap();
        let mut share = Share::create(run).unwrap();
        assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
        let device = share.add_mount("c1", &host_bind(0, Path::new("/dev/null")));
        assert!(matches!(device, Err(StorageError::Unsupported { .. })), "{device:?}");
        for id in ["../c1", "", "a/b"] {
            assert!(matches!(share.add_rootfs(id, host, false), Err(StorageError::Id(_))));
            assert!(matches!(share.remove_container(id), Err(StorageError::Id(_))));
        }
        let root = share.add_rootfs("c2", host, false).unwrap();
        let root = on_host(&share, &root);
        assert!(fs::symlink_metadata(root.join("escape")).unwrap().is_symlink());
        share.remove().unwrap();
        assert!(Path::new("/etc/passwd").exists());
    });
}

#[test]
fn whole_spec_is_planned_and_shared() {
    in_namespace(|run, host| {
        let spec = serde_spec(host);
        let mut share = Share::create(run).unwrap();
        let mounts = share.add_mounts("c1", plan_mounts(&spec, host).unwrap()).unwrap();
        assert_eq!(mounts[0].typ().as_deref(), Some("proc"));
        assert_eq!(
            mounts[1].source().as_deref(),
            Some(Path::new("/run/kata-containers/shared/containers/.mounts/1"))
        );
    });
}

fn serde_spec(host: &Path) -> oci_spec::runtime::Spec {
    let mut proc = oci_spec::runtime::Mount::default();
    proc.set_destination("/proc".into()).set_typ(Some("proc".to_owned()));
    let mut data = oci_spec::runtime::Mount::default();
    data.set_destination("/data".into())
        .set_typ(Some("bind".to_owned()))
        .set_source(Some(host.to_owned()));
    let mut spec = oci_spec::runtime::Spec::default();
    spec.set_mounts(Some(vec![proc, data]));
    spec
}

#[test]
fn containerds_rootfs_mounts_are_made() {
    in_namespace(|_, host| {
        for name in ["lower/etc", "upper", "work", "rootfs", "native", "rootfs2"] {
            fs::create_dir_all(host.join(name)).unwrap();
        }
        let option = |key: &str, name: &str| format!("{key}={}", host.join(name).display());
        let overlay = RootfsMount {
            fstype: "overlay".to_owned(),
            source: "overlay".to_owned(),
            options: vec![
                "index=off".to_owned(),
                option("workdir", "work"),
                option("upperdir", "upper"),
                option("lowerdir", "lower"),
            ],
            ..RootfsMount::default()
        };
        mount_rootfs(&[overlay], &host.join("rootfs")).unwrap();
        fs::write(host.join("rootfs/etc/hostname"), "x").unwrap();
        assert!(host.join("upper/etc/hostname").exists());

        let native = RootfsMount {
            fstype: "bind".to_owned(),
            source: host.join("native").display().to_string(),
            options: vec!["rbind".to_owned(), "ro".to_owned()],
            ..RootfsMount::default()
        };
        mount_rootfs(&[native], &host.join("rootfs2")).unwrap();
        assert!(is_readonly(fs::write(host.join("rootfs2/file"), "")));
    });
}

#[test]
fn part_of_an_empty_dir_that_is_bound_elsewhere_is_found_in_it() {
    in_namespace(|_, host| {
        let pod = host.join("pods/1");
        let part = pod.join("volumes/kubernetes.io~empty-dir/data/logs/web");
        let subpath = pod.join("volume-subpaths/data/web/0");
        fs::create_dir_all(&part).unwrap();
        fs::create_dir_all(&subpath).unwrap();
        mount(part.to_str().unwrap(), &subpath, "bind", &["bind".to_owned()]).unwrap();
        let found = EmptyDir::of(&host_bind(0, &subpath)).unwrap().unwrap();
        assert_eq!(found.guest_path, format!("{GUEST_SHARE}/.empty-dirs/data/logs/web"));
    });
}
