//! The server as a process: how it comes to be, and how it is found again and ended.

use std::env;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use kata_shim_api::address::{SocketAddress, write_whole};
use kata_shim_api::bootstrap::StartInput;
use kata_task::Moment;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::PROGRAM;
use crate::flags::Flags;

/// The file in the bundle that holds the server's pid.
const PID_FILE: &str = "shim.pid";

/// The environment variable for where events go; containerd sets it for us, we set it for the
/// server.
pub(crate) const TTRPC_ADDRESS: &str = "TTRPC_ADDRESS";

/// The environment variable that tells the server when `start` was executed, in nanoseconds of
/// `CLOCK_MONOTONIC`.
pub(crate) const ASKED: &str = "KATA_SHIM_ASKED";

/// How long a server that was told to end may take before it is killed, and how long it may take
/// then.
const GRACE: Duration = Duration::from_millis(750);

/// The longest that [`end`] waits.
pub(crate) const LONGEST_END: Duration = GRACE.saturating_mul(2);

/// Starts the server with the socket as its standard input, and writes its pid to the bundle. It
/// holds nothing of ours.
pub(crate) fn spawn(
    flags: &Flags,
    (input, asked): (&StartInput, Moment),
    address: &SocketAddress,
    listener: UnixListener,
    bundle: &Path,
) -> anyhow::Result<()> {
    let mut command = Command::new(own_program());
    command
        .arg0(own_name())
        .args(["-namespace", &flags.namespace, "-id", &flags.id, "-address", &flags.address])
        .args(["-publish-binary", &flags.publish_binary])
        .arg("-socket")
        .arg(address.path())
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if flags.debug || input.debug() {
        command.arg("-debug");
    }
    command.env(ASKED, asked.as_nanos().to_string());
    if let Some(address) = input.ttrpc_address() {
        command.env(TTRPC_ADDRESS, address);
    }
    let mut server = command.spawn().context("cannot start the shim's server")?;
    let written = write_whole(bundle, PID_FILE, &server.id().to_string());
    if written.is_err() {
        // It has not done anything yet; who cannot be found again must not stay.
        let _ = server.kill();
    }
    written.with_context(|| format!("cannot write {PID_FILE} to {}", bundle.display()))
}

/// The program's own file. Its name shows in the process list, unlike that of `/proc/self/exe`,
/// which is the way when the file has been replaced since.
fn own_program() -> PathBuf {
    env::current_exe().ok().filter(|path| path.exists()).unwrap_or_else(|| "/proc/self/exe".into())
}

/// The name that this program was started under, if it is one of a shim's: it chooses the server's
/// configuration (`containerd-shim-kata-qemu-v2` for `io.containerd.kata-qemu.v2`).
fn own_name() -> String {
    let name = env::args_os().next().map(PathBuf::from);
    let name = name.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    name.filter(|name| is_shims_name(name.as_bytes())).unwrap_or(PROGRAM).to_owned()
}

fn is_shims_name(name: &[u8]) -> bool {
    name.starts_with(b"containerd-shim-kata-") && name.ends_with(b"v2")
}

/// The pid that [`spawn`] wrote; `None` if no server was started for this bundle.
pub(crate) fn recorded_pid(bundle: &Path) -> Option<Pid> {
    let pid: i32 = fs::read_to_string(bundle.join(PID_FILE)).ok()?.trim().parse().ok()?;
    Pid::from_raw(pid.max(0))
}

/// Ends the server of sandbox `id` if it still runs as `pid`: politely, and if it does not listen,
/// at once. Somebody else who has got the pid since is left alone. When it returns, the server is
/// gone, or cannot be made to go.
pub(crate) fn end(pid: Pid, namespace: &str, id: &str) -> anyhow::Result<()> {
    // Only what the descriptor pins can be compared and signalled without a race.
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
    let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    if cmdline.is_empty() {
        // It is about to be gone: its memory is, while its socket may still be open.
        has_ended(&pidfd)?;
        return Ok(());
    }
    if !is_servers_command_line(&cmdline, namespace, id) {
        return Ok(());
    }
    for signal in [Signal::TERM, Signal::KILL] {
        match pidfd_send_signal(&pidfd, signal) {
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            sent => sent.with_context(|| format!("cannot end the shim's server (pid {pid})"))?,
        }
        if has_ended(&pidfd)? {
            return Ok(());
        }
    }
    anyhow::bail!("the shim's server (pid {pid}) does not end, although it was killed")
}

/// Waits for a process's end for [`GRACE`] and says whether it has come.
fn has_ended(pidfd: &OwnedFd) -> io::Result<bool> {
    let grace = Timespec::try_from(GRACE).map_err(io::Error::other)?;
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    Ok(rustix::io::retry_on_intr(|| poll(&mut fds, Some(&grace)))? > 0)
}

/// Whether `cmdline`, words that each end with NUL (proc_pid_cmdline(5)), is what [`spawn`] makes.
fn is_servers_command_line(cmdline: &[u8], namespace: &str, id: &str) -> bool {
    let words: Vec<&[u8]> = cmdline.split(|byte| *byte == 0).collect();
    let has = |flag: &str, value: &str| {
        words.windows(2).any(|two| two[0] == flag.as_bytes() && two[1] == value.as_bytes())
    };
    words.first().is_some_and(|name| is_shims_name(name))
        && has("-namespace", namespace)
        && has("-id", id)
        && words.contains(&b"-socket".as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_sandboxs_own_server_is_recognized() {
        let line =
            b"containerd-shim-kata-v2\0-namespace\0ns\0-id\0c1\0-address\0\0-socket\0/run/s\0";
        assert!(is_servers_command_line(line, "ns", "c1"));
        let linked = b"containerd-shim-kata-qemu-v2\0-namespace\0ns\0-id\0c1\0-socket\0/run/s\0";
        assert!(is_servers_command_line(linked, "ns", "c1"));
        assert!(!is_servers_command_line(line, "ns", "c2"));
        assert!(!is_servers_command_line(line, "other", "c1"));
        assert!(!is_servers_command_line(
            b"vim\0-namespace\0ns\0-id\0c1\0-socket\0x\0",
            "ns",
            "c1"
        ));
        assert!(!is_servers_command_line(b"", "ns", "c1"));
    }

    #[test]
    fn another_process_with_the_pid_is_left_alone() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        end(Pid::from_child(&child), "ns", "c1").unwrap();
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// A shell that goes by the server's name.
    fn impostor(script: &str) -> std::process::Child {
        let mut command = Command::new("/bin/sh");
        command.arg0(PROGRAM).args([
            "-c",
            script,
            "-namespace",
            "ns",
            "-id",
            "c1",
            "-socket",
            "/x",
        ]);
        command.stdout(Stdio::piped()).spawn().unwrap()
    }

    #[test]
    fn a_server_is_asked_to_end_and_killed_when_it_does_not_listen() {
        use std::io::Read;
        for (script, expected) in [
            ("trap 'exit 3' TERM; echo; while :; do read -t 1 x; done", 3),
            ("trap '' TERM; echo; while :; do sleep 1; done", -9),
        ] {
            let mut server = impostor(script);
            server.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
            end(Pid::from_child(&server), "ns", "c1").unwrap();
            let status = server.wait().unwrap();
            use std::os::unix::process::ExitStatusExt;
            assert_eq!(status.code().unwrap_or_else(|| -status.signal().unwrap()), expected);
        }
    }

    #[test]
    fn a_pid_file_that_is_missing_or_broken_is_no_pid() {
        let bundle = tempfile::tempdir().unwrap();
        assert_eq!(recorded_pid(bundle.path()), None);
        for (content, expected) in
            [("17\n", Pid::from_raw(17)), ("x", None), ("0", None), ("-3", None)]
        {
            fs::write(bundle.path().join(PID_FILE), content).unwrap();
            assert_eq!(recorded_pid(bundle.path()), expected, "{content:?}");
        }
    }
}
