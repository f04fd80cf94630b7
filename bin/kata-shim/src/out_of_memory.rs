//! What the guest's kernel did for want of memory, told again by the host's.
//!
//! conmon and runc's shim, who tell Podman and Docker, ask neither the runtime nor the guest: they
//! watch the container's cgroup on the host for the out-of-memory killer. In it, memory is never
//! wanting, for the limits are the guest's. So when a container ends whose memory was wanting in
//! the guest, the killer is called there, too: a process is put into the group that touches memory
//! until the group's limit, set for this moment, makes the host's kernel kill it.
//!
//! ```text
//!   kata-shim                         victim (this program again), the first whom the killer takes
//!     starts it ────────────────────▶ enters the group, limits it to a little more than all others use,
//!     waits for its end               touches memory, lowers the limit as they leave
//!                                      ✝ by the host's kernel: the watcher has its event
//!     takes the limit away, leaves the group, exits
//! ```
//!
//! This is done at the end of a container's init only. Whatever of the sandbox is still in the
//! group then is about to end or, in a pod that lives on, is never taken before the victim.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use kata_linux::cgroup::HostCgroup;
use kata_linux::identity::ProcessIdentity;

/// What makes this program the victim; the group's directory follows.
const FLAG: &str = "--run-out-of-memory-in";

/// How much more than all others in it use the group may have meanwhile, in bytes. So much, all of
/// it the victim's in the end, that the killer does not take a VMM that is on its way out: it
/// counts what a process has in memory, for a VMM also some 50 MiB of files that another group paid
/// for, and for the victim what it has and the group's limit (proc_pid_oom_score_adj(5)).
const HEADROOM: u64 = 64 << 20;

/// How much the victim takes at a time, in bytes.
const MOUTHFUL: usize = 1 << 20;

/// How long all of it may take. What counts more than the event is that the container's end is
/// told.
const PATIENCE: Duration = Duration::from_secs(5);

/// The files of a memory controller, by the version of its hierarchy.
struct Files {
    usage: &'static str,
    limit: &'static str,
    /// What keeps the group from being swapped out instead, which kernels without swapping do not
    /// have.
    swapping: &'static str,
    /// What takes as many bytes from the group as are written, as far as nobody needs them; not in
    /// every kernel.
    reclaim: Option<&'static str>,
}

const V2: Files = Files {
    usage: "memory.current",
    limit: "memory.max",
    swapping: "memory.swap.max",
    reclaim: Some("memory.reclaim"),
};

const V1: Files = Files {
    usage: "memory.usage_in_bytes",
    limit: "memory.limit_in_bytes",
    swapping: "memory.swappiness",
    reclaim: None,
};

/// The directory of a group that has a memory controller.
struct Group {
    dir: PathBuf,
    files: &'static Files,
}

impl Group {
    fn at(dir: &Path) -> Option<Self> {
        let files = [&V2, &V1].into_iter().find(|files| dir.join(files.limit).exists())?;
        Some(Self { dir: dir.to_owned(), files })
    }

    fn read(&self, file: &str) -> io::Result<String> {
        Ok(fs::read_to_string(self.dir.join(file))?.trim().to_owned())
    }

    fn write(&self, file: &str, text: &str) -> io::Result<()> {
        fs::write(self.dir.join(file), text)
    }

    /// What all in the group use, in bytes.
    fn used(&self) -> anyhow::Result<u64> {
        let text = self.read(self.files.usage).context("cannot read what the cgroup uses")?;
        text.parse().context("what the cgroup uses is no number")
    }

    fn limit(&self, bytes: u64) -> anyhow::Result<()> {
        self.write(self.files.limit, &bytes.to_string()).context("cannot limit the cgroup")
    }
}

/// The directory that a victim's command line names; `None` if it is no victim's.
pub(crate) fn asked_for(mut args: impl Iterator<Item = std::ffi::OsString>) -> Option<PathBuf> {
    args.next().filter(|word| word == OsStr::new(FLAG))?;
    args.next().map(PathBuf::from)
}

/// Has the host's kernel find the group out of memory. As long as the caller is in it nobody
/// removes it meanwhile.
///
/// # Errors
///
/// Fails when the group has no memory controller, which nobody watches then, and when the kernel
/// did not kill the victim in time.
pub(crate) fn tell_in(cgroup: &HostCgroup) -> anyhow::Result<()> {
    let group = cgroup.dirs().iter().find_map(|dir| Group::at(dir));
    let group = group.context("the container's cgroup has no memory controller")?;
    let before = [group.files.limit, group.files.swapping].map(|file| (file, group.read(file)));
    let told = call_the_killer(&group.dir);
    for (file, text) in before {
        if let Ok(text) = text {
            // The group is about to be removed, and its limit with it.
            let _ = group.write(file, &text);
        }
    }
    told
}

fn call_the_killer(dir: &Path) -> anyhow::Result<()> {
    let program = env::current_exe().context("cannot tell where this program is")?;
    let mut victim = Command::new(program)
        .arg(FLAG)
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start a process to be killed")?;
    let ended = ProcessIdentity::of(victim.id()).is_none_or(|process| process.wait(PATIENCE));
    if !ended {
        let _ = victim.kill();
    }
    let status = victim.wait().context("cannot wait for the process to be killed")?;
    ensure!(ended && status.code().is_none(), "the host's kernel has not called its killer");
    Ok(())
}

/// What the victim does.
///
/// # Errors
///
/// Fails when the group cannot be entered or limited at first. It has not touched any memory then.
pub(crate) fn run_out_in(dir: &Path) -> anyhow::Result<()> {
    let group = Group::at(dir).context("the cgroup has no memory controller")?;
    // The most there is (proc_pid_oom_score_adj(5)).
    fs::write("/proc/self/oom_score_adj", "1000").context("cannot ask to be taken first")?;
    group.write("cgroup.procs", "0").context("cannot enter the cgroup")?;
    let _ = group.write(group.files.swapping, "0");
    // The caches of what the VMM has read would make room, bit by bit, which takes seconds on a
    // slow machine. That not all can go is told as an error.
    if let (Some(file), Ok(used)) = (group.files.reclaim, group.read(group.files.usage)) {
        let _ = group.write(file, &used);
    }
    let mut limit = limit_beside(group.used()?, 0);
    group.limit(limit)?;
    // Caches that are left make room for it first, but it cannot have more than all of the group.
    let mouthfuls = usize::try_from(limit)? / MOUTHFUL + 1;
    let mut taken = Vec::with_capacity(mouthfuls);
    for _ in 0..mouthfuls {
        taken.push(vec![1_u8; MOUTHFUL]);
        // A VM that ends meanwhile leaves room, which would take long to fill.
        let own = u64::try_from(taken.len() * MOUTHFUL)?;
        let lower = group.used().map_or(limit, |used| limit_beside(used, own));
        if lower < limit && group.limit(lower).is_ok() {
            limit = lower;
        }
    }
    Ok(())
}

/// The limit of a group that uses `used` bytes, of which the victim has `own`. It is never below
/// what is used, which version 1 would refuse.
fn limit_beside(used: u64, own: u64) -> u64 {
    let beside = used.saturating_sub(own).saturating_add(HEADROOM);
    beside.max(used.saturating_add(MOUTHFUL as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_victims_command_line_is_told_from_others() {
        let words = |line: &str| line.split(' ').map(Into::into).collect::<Vec<_>>().into_iter();
        assert_eq!(asked_for(words("--run-out-of-memory-in /g")), Some("/g".into()));
        for other in ["--sandbox-dir /s --container c", "--run-out-of-memory-in", "x"] {
            assert_eq!(asked_for(words(other)), None, "{other}");
        }
    }

    #[test]
    fn limit_follows_what_others_leave_and_is_never_below_what_is_used() {
        let mib = 1_u64 << 20;
        assert_eq!(limit_beside(130 * mib, 2 * mib), 192 * mib);
        assert_eq!(limit_beside(32 * mib, 2 * mib), 94 * mib);
        // What is counted may come late.
        assert_eq!(limit_beside(mib, 2 * mib), 64 * mib);
        assert_eq!(limit_beside(90 * mib, 80 * mib), 91 * mib);
    }

    #[test]
    fn group_is_known_by_its_limits_file() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Group::at(dir.path()).is_none());
        fs::write(dir.path().join("memory.limit_in_bytes"), "7\n").unwrap();
        let group = Group::at(dir.path()).unwrap();
        assert_eq!(group.read(group.files.limit).unwrap(), "7");
    }
}
