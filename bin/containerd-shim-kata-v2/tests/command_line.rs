//! The program as containerd runs it: what it prints, and which processes and files it leaves.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends by a panic")]

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::SystemTime;

use kata_shim_api::blocking::{CallError, TaskSocket};
use kata_shim_api::bootstrap::{BootstrapParams, BootstrapResult};
use kata_shim_api::protobuf::Message;
use kata_shim_api::{DeleteResponse, RuntimeInfo, api};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Runs the program in `bundle` with nothing in its environment. Returns only when everybody who
/// had its output has closed it.
fn shim(bundle: &Path, args: &[&str], stdin: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_containerd-shim-kata-v2"))
        .args(args)
        .current_dir(bundle)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(stdin).unwrap();
    child.wait_with_output().unwrap()
}

#[track_caller]
fn answer(output: &Output) -> &[u8] {
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    &output.stdout
}

#[track_caller]
fn complaint(output: Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

#[test]
fn info_and_version_need_neither_flags_nor_environment() {
    let anywhere = tempfile::tempdir().unwrap();
    let version = shim(anywhere.path(), &["-v"], b"");
    assert_eq!(
        answer(&version),
        concat!("containerd-shim-kata-v2: version ", env!("CARGO_PKG_VERSION"), "\n").as_bytes()
    );
    let info =
        RuntimeInfo::parse_from_bytes(answer(&shim(anywhere.path(), &["-info"], b""))).unwrap();
    assert_eq!(
        (info.name.as_str(), info.version.version.as_str()),
        ("io.containerd.kata.v2", env!("CARGO_PKG_VERSION"))
    );
    assert!(info.features.type_url.ends_with("/runtime-spec/1/features/Features"));
    assert!(info.features.value.starts_with(b"{"));
    assert!(info.annotations.is_empty());
}

#[test]
fn mistakes_are_one_line_on_standard_error() {
    let bundle = tempfile::tempdir().unwrap();
    let refused = |args: &[&str]| complaint(shim(bundle.path(), args, b""));
    assert_eq!(refused(&["frob"]), "unknown action \"frob\": use start, delete, -info or -v\n");
    assert!(refused(&["-namespace", "n", "start"]).contains("container id"));
    assert!(refused(&["-namespace", "n", "-id", "../x", "delete"]).contains("\"../x\""));
    assert!(refused(&["-namespace", "n", "-id", "c", "-socket", "/x"]).contains("not by hand"));
    fs::write(bundle.path().join("config.json"), "{").unwrap();
    assert!(refused(&["-namespace", "n", "-id", "c", "start"]).contains("config.json"));
    assert_eq!(fs::read_dir(bundle.path()).unwrap().count(), 1, "nothing was left");
}

#[test]
fn delete_works_when_nothing_is_there_and_again() {
    let bundle = tempfile::tempdir().unwrap();
    let id = format!("nothing-{}", std::process::id());
    for _ in 0..2 {
        let output = shim(bundle.path(), &["-namespace", "n", "-id", &id, "delete"], b"");
        let response = DeleteResponse::parse_from_bytes(answer(&output)).unwrap();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        assert_eq!((response.pid, response.exit_status), (0, 137));
        assert!(now.abs_diff(response.exited_at.seconds.try_into().unwrap()) < 60);
    }
}

/// As containerd 2.3 does it, which lets the socket be in a directory of the test's.
fn start(dir: &Path, bundle: &Path, id: &str) -> Output {
    let params = BootstrapParams {
        instance_id: id.to_owned(),
        namespace: "n".to_owned(),
        socket_dir: Some(dir.join("s").to_str().unwrap().to_owned()),
        ..BootstrapParams::default()
    };
    shim(
        bundle,
        &["-namespace", "n", "-address", "", "-id", id, "start"],
        &params.write_to_bytes().unwrap(),
    )
}

/// A server that nobody has asked for a container yet.
struct Server {
    id: String,
    dir: tempfile::TempDir,
    result: BootstrapResult,
    pidfd: OwnedFd,
}

impl Server {
    fn start(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bundle = dir.path().join("bundle");
        fs::create_dir(&bundle).unwrap();
        let id = format!("{name}-{}", std::process::id());
        let output = start(dir.path(), &bundle, &id);
        let result = BootstrapResult::parse_from_bytes(answer(&output)).unwrap();
        let pid = fs::read_to_string(bundle.join("shim.pid")).unwrap();
        let pid = Pid::from_raw(pid.parse().unwrap()).unwrap();
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        Self { id, dir, result, pidfd }
    }

    fn bundle(&self) -> PathBuf {
        self.dir.path().join("bundle")
    }

    fn path(&self) -> &Path {
        Path::new(self.result.address.strip_prefix("unix://").unwrap())
    }

    fn socket(&self) -> TaskSocket {
        let name = self.path().file_name().unwrap().to_str().unwrap();
        TaskSocket::at(self.path().parent().unwrap(), name).unwrap()
    }

    /// Asks for a container of a bundle without a configuration.
    fn refuses_a_container(&self) {
        let request = api::CreateTaskRequest {
            id: self.id.clone(),
            bundle: self.bundle().to_str().unwrap().to_owned(),
            ..Default::default()
        };
        let refused = self.socket().call::<api::CreateTaskResponse>("Create", &request, &[]);
        let refused = refused.unwrap_err();
        let text = refused.to_string();
        assert!(matches!(refused, CallError::Refused { .. }), "{text}");
        assert!(text.contains("config.json") && text.lines().count() == 1, "{text}");
    }

    fn ends(&self) {
        let mut ends = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let patience = Timespec { tv_sec: 60, tv_nsec: 0 };
        assert_eq!(poll(&mut ends, Some(&patience)).unwrap(), 1, "the server lives on");
        assert!(!self.path().exists(), "the server has left its socket");
    }
}

/// What a containerd says that was told version 3 of the task service.
#[test]
fn server_of_the_newer_bootstrap_serves_version_3_of_the_task_service() {
    if !rustix::process::geteuid().is_root() {
        return; // The server needs a mount namespace.
    }
    let server = Server::start("v3");
    assert_eq!(server.result.version, 3);
    let request = api::ConnectRequest { id: server.id.clone(), ..Default::default() };
    let connected: api::ConnectResponse = server.socket().call("Connect", &request, &[]).unwrap();
    let pid = fs::read_to_string(server.bundle().join("shim.pid")).unwrap();
    assert_eq!(connected.shim_pid.to_string(), pid);
    assert_eq!(connected.version, env!("CARGO_PKG_VERSION"));
    server.refuses_a_container();
    let request = api::ShutdownRequest { id: server.id.clone(), now: true, ..Default::default() };
    server.socket().call::<api::Empty>("Shutdown", &request, &[]).unwrap();
    server.ends();
}

/// containerd may be killed before it says shut down.
#[test]
fn server_whose_only_container_was_refused_ends_by_itself() {
    if !rustix::process::geteuid().is_root() {
        return; // The server needs a mount namespace.
    }
    let server = Server::start("refused");
    server.refuses_a_container();
    server.ends();
}

#[test]
fn a_server_is_started_found_by_its_pod_and_ended() {
    if !rustix::process::geteuid().is_root() {
        return; // The server needs a mount namespace.
    }
    let dir = tempfile::tempdir().unwrap();
    let sandbox = format!("pod-{}", std::process::id());
    let bundle = |name: &str| {
        let bundle = dir.path().join(name);
        fs::create_dir(&bundle).unwrap();
        bundle
    };
    let (first, member) = (bundle("first"), bundle("member"));
    let start = |bundle: &Path, id: &str| start(dir.path(), bundle, id);
    let config = format!(
        r#"{{"annotations":{{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"{sandbox}"}}}}"#
    );
    fs::write(member.join("config.json"), config).unwrap();
    assert!(complaint(start(&member, "c2")).contains("is not running"));

    let stranger = bundle("stranger");
    let config = r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"/etc"}}"#;
    fs::write(stranger.join("config.json"), config).unwrap();
    assert!(complaint(start(&stranger, "c3")).contains(r#"the sandbox id "/etc""#));

    let result = BootstrapResult::parse_from_bytes(answer(&start(&first, &sandbox))).unwrap();
    assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
    let socket = result.address.strip_prefix("unix://").unwrap();
    assert_eq!(fs::metadata(socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_to_string(first.join("address")).unwrap(), result.address);
    let pid = fs::read_to_string(first.join("shim.pid")).unwrap();
    UnixStream::connect(socket).unwrap();

    assert_eq!(answer(&start(&member, "c2")), result.write_to_bytes().unwrap());
    assert_eq!(fs::read_to_string(member.join("address")).unwrap(), result.address);
    answer(&shim(&member, &["-namespace", "n", "-id", "c2", "delete"], b""));
    assert!(Path::new("/proc").join(&pid).exists(), "the sandbox outlives its member");

    let first = first.to_str().unwrap();
    let output =
        shim(dir.path(), &["-namespace", "n", "-id", &sandbox, "-bundle", first, "delete"], b"");
    assert_eq!(
        DeleteResponse::parse_from_bytes(answer(&output)).unwrap().pid,
        pid.parse().unwrap()
    );
    assert!(!Path::new(socket).exists());

    // A server that was killed leaves its socket behind, and delete removes that too.
    let again =
        BootstrapResult::parse_from_bytes(answer(&start(Path::new(first), &sandbox))).unwrap();
    assert_eq!(again.address, result.address);
    let pid = fs::read_to_string(Path::new(first).join("shim.pid")).unwrap();
    rustix::process::kill_process(
        Pid::from_raw(pid.parse().unwrap()).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    answer(&shim(
        dir.path(),
        &["-namespace", "n", "-id", &sandbox, "-bundle", first, "delete"],
        b"",
    ));
    assert!(!Path::new(socket).exists());
}
