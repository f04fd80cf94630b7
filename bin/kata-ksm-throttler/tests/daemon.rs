//! The daemon and its trigger as systemd runs them, kicked over the socket. The kernel's own
//! settings are used where there are any that may be written, and a directory of plain files, given
//! with `-sysfs`, where there are none and where two daemons run at a time.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kata_ksm_api::kick;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const NAMES: [&str; 3] = ["run", "pages_to_scan", "sleep_millisecs"];

/// A daemon, which is killed if the test fails.
struct Daemon {
    child: Child,
    socket: PathBuf,
}

impl Daemon {
    fn start(directory: &Path, sysfs: &Path) -> Self {
        let socket = directory.join("run/ksm.sock");
        let child = Command::new(env!("CARGO_BIN_EXE_kata-ksm-throttler"))
            .arg(format!("-uri={}", socket.display()))
            .args(["-log", "debug", "-sysfs"])
            .arg(sysfs)
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        Self { child, socket }
    }

    /// Kicks it, from its first moment on.
    fn kick(&self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        until("it can be kicked", || runtime.block_on(kick(&self.socket)).is_ok());
    }

    fn terminate(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
        assert!(!self.socket.parent().unwrap().exists(), "its directory is left");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // One that was waited for is gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A trigger, which is killed at the end: it has nothing to restore.
struct Trigger(Child);

impl Trigger {
    /// Starts it, and returns when it watches.
    fn start(root: &Path, socket: &Path) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_vc"))
            .args(["-root".as_ref(), root.as_os_str(), "-uri".as_ref(), socket.as_os_str()])
            .spawn()
            .unwrap();
        let descriptors = format!("/proc/{}/fdinfo", child.id());
        let trigger = Self(child);
        until("the trigger watches", || {
            let descriptors = fs::read_dir(&descriptors).into_iter().flatten().flatten();
            let text = |entry: fs::DirEntry| fs::read_to_string(entry.path()).unwrap_or_default();
            descriptors.map(text).any(|info| info.contains("inotify wd:"))
        });
        trigger
    }
}

impl Drop for Trigger {
    fn drop(&mut self) {
        // It may have ended by itself, which the test has noticed then.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        std::thread::yield_now();
    }
}

fn values(sysfs: &Path) -> [u64; 3] {
    NAMES.map(|name| fs::read_to_string(sysfs.join(name)).unwrap().trim().parse().unwrap_or(0))
}

fn plain_files(directory: &TempDir) -> PathBuf {
    let sysfs = directory.path().join("ksm");
    fs::create_dir(&sysfs).unwrap();
    for (name, value) in NAMES.into_iter().zip(["0\n", "100000000\n", "20\n"]) {
        fs::write(sysfs.join(name), value).unwrap();
    }
    sysfs
}

fn kernels_own(directory: &TempDir) -> PathBuf {
    let kernel = PathBuf::from("/sys/kernel/mm/ksm");
    let writable = fs::File::options().write(true).open(kernel.join("run")).is_ok();
    if writable { kernel } else { plain_files(directory) }
}

#[test]
fn a_kick_speeds_the_kernel_up_and_the_end_restores_it() {
    let directory = tempfile::tempdir().unwrap();
    let sysfs = kernels_own(&directory);
    println!("the settings are those in {}", sysfs.display());
    let before = values(&sysfs);
    let daemon = Daemon::start(directory.path(), &sysfs);
    daemon.kick();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&daemon.socket), 0o660, "others than root and its group may kick");
    assert_eq!(mode(daemon.socket.parent().unwrap()), 0o750);
    let [run, pages, sleep] = values(&sysfs);
    assert_eq!((run, sleep), (1, 1));
    assert!(pages > 0, "nothing is looked at");
    daemon.kick();
    daemon.terminate();
    assert_eq!(values(&sysfs), before);
}

#[test]
fn what_a_killed_daemon_has_changed_the_next_one_restores() {
    let directory = tempfile::tempdir().unwrap();
    let sysfs = plain_files(&directory);
    let before = values(&sysfs);
    let daemon = Daemon::start(directory.path(), &sysfs);
    daemon.kick();
    // Killed; its socket stays.
    drop(daemon);
    assert_ne!(values(&sysfs), before);
    let next = Daemon::start(directory.path(), &sysfs);
    until("the settings are restored", || values(&sysfs) == before);
    next.kick();
    let second = Command::new(env!("CARGO_BIN_EXE_kata-ksm-throttler"))
        .args(["--uri".as_ref(), next.socket.as_os_str(), "--sysfs".as_ref(), sysfs.as_os_str()])
        .output()
        .unwrap();
    assert!(!second.status.success());
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains("somebody listens"), "{said}");
    next.terminate();
    assert_eq!(values(&sysfs), before);
}

#[test]
fn the_trigger_kicks_for_every_sandbox_of_virtcontainers() {
    let directory = tempfile::tempdir().unwrap();
    let sysfs = plain_files(&directory);
    let daemon = Daemon::start(directory.path(), &sysfs);
    let root = directory.path().join("vc");
    until("the daemon listens", || daemon.socket.exists());
    let trigger = Trigger::start(&root, &daemon.socket);
    let is_fast = || values(&sysfs)[2] == 1;
    let slow_down = || fs::write(sysfs.join("sleep_millisecs"), "20\n").unwrap();

    fs::create_dir_all(root.join("sbs")).unwrap();
    until("the directory of sandboxes causes a kick", is_fast);
    for id in ["one", "two"] {
        slow_down();
        fs::create_dir(root.join("sbs").join(id)).unwrap();
        until("a sandbox causes a kick", is_fast);
    }
    fs::remove_dir_all(&root).unwrap();
    slow_down();
    fs::create_dir_all(root.join("sbs")).unwrap();
    until("the directory is found again", is_fast);

    drop(trigger);
    daemon.terminate();
}
