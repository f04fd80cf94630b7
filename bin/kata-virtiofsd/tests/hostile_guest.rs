//! The file server in its jail, against a guest that sends whatever it likes. Each test acts in a
//! mount namespace of its own thread, and needs root.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod raw_guest;

use std::fs;
use std::path::{Path, PathBuf};

use kata_linux::mount::{make_private, mount, mounts_below, unshare_mount_namespace};
use kata_linux::process::Exit;
use kata_storage::{FileServer, FileServerSpec, HostBind, Share};
use raw_guest::{ROOT, RawGuest, c_string, opcode};

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EAGAIN: i32 = 11;
const EEXIST: i32 = 17;
const EROFS: i32 = 30;

/// What a test has: a share that is served, and a directory of the host that is not.
struct Host {
    share: Share,
    server: FileServer,
    socket: PathBuf,
    files: PathBuf,
    canary: PathBuf,
}

impl Host {
    fn start(directory: &Path) -> Self {
        let [run, files, canary] = ["run", "files", "canary"].map(|name| {
            let path = directory.join(name);
            fs::create_dir(&path).unwrap();
            path
        });
        let share = Share::create(&run).unwrap();
        let socket = run.join("fs.sock");
        let server = FileServer::start(&FileServerSpec {
            program: env!("CARGO_BIN_EXE_kata-virtiofsd").into(),
            external: false,
            extra_args: Vec::new(),
            cache: "auto".to_owned(),
            shared_dir: share.path().to_owned(),
            socket: socket.clone(),
            debug: false,
        })
        .unwrap();
        Self { share, server, socket, files, canary }
    }

    fn guest(&self) -> RawGuest {
        RawGuest::connect(&self.socket)
    }

    fn status(&self, field: &str) -> String {
        let text = fs::read_to_string(format!("/proc/{}/status", self.server.pid())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim_start_matches(':').trim().to_owned()
    }

    async fn stop(self) {
        self.server.stop().await;
        assert!(!self.socket.exists());
        assert_eq!(fs::read_dir(&self.canary).unwrap().count(), 0, "the guest got out");
        self.share.remove().unwrap();
    }
}

/// Runs `test` with a directory that only it can see, and checks that no mount is left.
fn in_namespace(test: impl AsyncFnOnce(&Path) + Send) {
    assert!(rustix::process::geteuid().is_root(), "this test needs root");
    let outside = tempfile::tempdir().unwrap();
    let directory = fs::canonicalize(outside.path()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            unshare_mount_namespace().unwrap();
            mount("tmpfs", &directory, "tmpfs", &[]).unwrap();
            make_private(&directory, false).unwrap();
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(test(&directory));
            assert_eq!(mounts_below(&directory).unwrap().len(), 1);
        });
    });
    assert_eq!(mounts_below(&directory).unwrap(), []);
}

/// Of a name that climbs, the kernel says EAGAIN in place of ENOENT where anything on the machine
/// is renamed or mounted at that moment (openat2(2)).
fn is_refused<T>(answer: &Result<T, i32>) -> bool {
    matches!(answer, Err(ENOENT | EAGAIN))
}

#[test]
fn names_with_slashes_and_dots_stay_inside() {
    in_namespace(async |directory| {
        let mut host = Host::start(directory);
        host.share.add_rootfs("c1", &host.files, false).unwrap();
        let mut guest = host.guest();
        let rootfs = guest.walk(".mounts/1").unwrap();
        let canary = host.canary.display().to_string();
        let above = format!("{}{canary}", "../".repeat(20));
        for node in [ROOT, rootfs] {
            for target in [&canary, &above] {
                let evil = c_string(&format!("{target}/evil"));
                let with = |numbers: &[u32]| {
                    [numbers.iter().flat_map(|number| number.to_le_bytes()).collect(), evil.clone()]
                        .concat()
                };
                let _ = guest.request(
                    opcode::SYMLINK,
                    node,
                    &[evil.clone(), c_string("/etc/shadow")].concat(),
                );
                let _ = guest.request(opcode::MKDIR, node, &with(&[0o755, 0]));
                let _ = guest.request(opcode::MKNOD, node, &with(&[0o060_666, 0x0800, 0, 0]));
                let _ = guest.request(opcode::CREATE, node, &with(&[0o2, 0o644, 0, 0]));
                let looked_up = guest.request(opcode::LOOKUP, node, &c_string(target));
                assert!(is_refused(&looked_up), "{looked_up:?}");
            }
        }
        let walked = guest.walk("../../../etc");
        assert!(is_refused(&walked), "{walked:?}");
        host.stop().await;
    });
}

#[test]
fn guest_can_change_nothing_of_the_share_itself() {
    in_namespace(async |directory| {
        let mut host = Host::start(directory);
        host.share.add_rootfs("c1", &host.files, false).unwrap();
        let mut guest = host.guest();
        let mounts = guest.walk(".mounts").unwrap();
        for node in [ROOT, mounts] {
            let link = [c_string("c2"), c_string("/etc")].concat();
            assert_eq!(guest.request(opcode::SYMLINK, node, &link), Err(EROFS));
        }
        let rename = [mounts.to_le_bytes().to_vec(), c_string("1"), c_string("other")].concat();
        assert!(guest.request(opcode::RENAME, mounts, &rename).is_err());
        // Inside of the root file system everything is allowed.
        let rootfs = guest.walk(".mounts/1").unwrap();
        guest
            .request(opcode::SYMLINK, rootfs, &[c_string("link"), c_string("/etc")].concat())
            .unwrap();
        assert!(host.files.join("link").is_symlink());
        host.share.remove_container("c1").unwrap();
        assert!(host.files.join("link").is_symlink(), "sources stay");
        host.stop().await;
    });
}

#[test]
fn readonly_is_readonly_for_the_guests_root_too() {
    in_namespace(async |directory| {
        let mut host = Host::start(directory);
        fs::write(host.files.join("file"), "").unwrap();
        let bind = HostBind {
            index: 0,
            source: host.files.clone(),
            destination: "/mnt".into(),
            readonly: true,
            recursive: true,
            follows_host: false,
        };
        host.share.add_mount("c1", &bind).unwrap();
        let mut guest = host.guest();
        let node = guest.walk(".mounts/1").unwrap();
        assert_eq!(guest.request(opcode::UNLINK, node, &c_string("file")), Err(EROFS));
        let mkdir =
            [0o755_u32.to_le_bytes().to_vec(), 0_u32.to_le_bytes().to_vec(), c_string("new")]
                .concat();
        assert_eq!(guest.request(opcode::MKDIR, node, &mkdir), Err(EROFS));
        host.stop().await;
    });
}

#[test]
fn binds_made_later_appear_and_vanish() {
    in_namespace(async |directory| {
        let mut host = Host::start(directory);
        fs::write(host.files.join("file"), "").unwrap();
        let mut guest = host.guest();
        assert_eq!(guest.walk(".mounts/1"), Err(ENOENT));
        host.share.add_rootfs("c1", &host.files, false).unwrap();
        guest.walk(".mounts/1/file").unwrap();
        host.share.remove_container("c1").unwrap();
        assert_eq!(guest.walk(".mounts/1"), Err(ENOENT));
        host.stop().await;
    });
}

/// By trying to make something under it an agent finds out whether a name stands for something,
/// whatever its kernel has heard of it before.
#[test]
fn who_would_make_something_in_the_share_is_told_whether_it_is_there() {
    in_namespace(async |directory| {
        let mut host = Host::start(directory);
        host.share.add_rootfs("c1", &host.files, false).unwrap();
        let mut guest = host.guest();
        let mounts = guest.walk(".mounts").unwrap();
        let mut make = |name: &str| {
            let numbers = [0o755_u32, 0].map(u32::to_le_bytes).concat();
            guest.request(opcode::MKDIR, mounts, &[numbers, c_string(name)].concat()).unwrap_err()
        };
        assert_eq!((make("1"), make("2")), (EEXIST, EROFS));
        host.stop().await;
    });
}

#[test]
fn trusted_attributes_are_kept_under_a_name_that_nobody_in_the_guest_can_use() {
    in_namespace(async |directory| {
        let mut host = Host::start(directory);
        fs::write(host.files.join("file"), "").unwrap();
        host.share.add_rootfs("c1", &host.files, false).unwrap();
        let mut guest = host.guest();
        let file = guest.walk(".mounts/1/file").unwrap();
        let mut remove =
            |name: &str| guest.request(opcode::REMOVEXATTR, file, &c_string(name)).unwrap_err();
        assert_eq!(remove("user.virtiofs.trusted.overlay.opaque"), EPERM);
        assert_eq!(remove("trusted.overlay.opaque"), remove("user.other"));
        host.stop().await;
    });
}

#[test]
fn server_is_shut_in() {
    in_namespace(async |directory| {
        let host = Host::start(directory);
        // It answers only when it is through with shutting itself in.
        let mut guest = host.guest();
        let _ = guest.walk("c1");
        // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID, MKNOD, SETFCAP of capabilities(7):
        // no more than these.
        let expected = [0, 1, 3, 4, 6, 7, 27, 31].iter().fold(0_u64, |set, bit| set | 1 << bit);
        for field in ["CapEff", "CapPrm", "CapBnd"] {
            assert_eq!(u64::from_str_radix(&host.status(field), 16).unwrap(), expected, "{field}");
        }
        for field in ["CapInh", "CapAmb"] {
            assert_eq!(u64::from_str_radix(&host.status(field), 16).unwrap(), 0, "{field}");
        }
        assert_eq!(
            (host.status("NoNewPrivs").as_str(), host.status("Seccomp").as_str()),
            ("1", "2")
        );
        let pid = host.server.pid();
        for namespace in ["mnt", "pid", "net", "ipc"] {
            let of =
                |process: &str| fs::read_link(format!("/proc/{process}/ns/{namespace}")).unwrap();
            assert_ne!(of(&pid.to_string()), of("thread-self"), "{namespace}");
        }
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
        assert_eq!(mounts.lines().count(), 1, "it sees more than the share: {mounts}");
        assert!(mounts.contains("/run/shared / ro,nosuid,nodev,noexec"), "{mounts}");
        host.stop().await;
    });
}

#[test]
fn server_ends_with_its_connection() {
    in_namespace(async |directory| {
        let host = Host::start(directory);
        drop(host.guest());
        assert_eq!(host.server.exited().await, Exit::Code(0), "{:?}", host.server.stderr());
        host.stop().await;
    });
}

#[test]
fn server_that_cannot_start_says_why() {
    in_namespace(async |directory| {
        let server = FileServer::start(&FileServerSpec {
            program: env!("CARGO_BIN_EXE_kata-virtiofsd").into(),
            external: false,
            extra_args: Vec::new(),
            cache: "auto".to_owned(),
            shared_dir: directory.join("nowhere"),
            socket: directory.join("fs.sock"),
            debug: false,
        })
        .unwrap();
        assert_eq!(server.exited().await, Exit::Code(1));
        let words = server.stderr().join("\n");
        assert!(words.contains("cannot open directory") && words.contains("nowhere"), "{words}");
    });
}
