//! The processes of a fixture, found in /proc.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{Shutdown, shutdown};
use rustix::param::clock_ticks_per_second;
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_open, pidfd_send_signal,
};

use crate::deadline::Deadline;
use crate::mark::Mark;
use crate::runtime::Installation;
use crate::watch::{Watch, until};

/// The parts of a sandbox on the host that can be killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The virtual machine monitor, or the jailer that becomes one.
    Vmm,
    /// The virtio-fs server.
    FileServer,
    /// The shim's server.
    Shim,
    /// The owner of a sandbox without a shim.
    Proxy,
    /// What stands for a process on the host.
    StandIn,
    /// The command line, as an engine calls it.
    CommandLine,
    /// What Podman has watch over a container.
    Monitor,
    /// gVisor: its kernel, its file server, and the processes that its containers run in.
    Gvisor,
}

impl Part {
    /// How its program may be called, or how the name begins.
    #[must_use]
    pub fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Vmm => {
                &["qemu-system-", "kata-krun", "cloud-hypervisor", "jailer", "firecracker"]
            }
            Self::FileServer => &["kata-virtiofsd"],
            Self::Shim => &["containerd-shim-"],
            Self::Proxy => &["kata-proxy"],
            Self::StandIn => &["kata-shim"],
            Self::CommandLine => &["kata-runtime"],
            Self::Monitor => &["conmon"],
            Self::Gvisor => &["runsc"],
        }
    }
}

/// A process that carries a fixture's mark.
#[derive(Debug)]
pub struct Process {
    /// Its process id.
    pub pid: u32,
    /// Its program; empty if it cannot be told.
    pub program: PathBuf,
    /// Its command line.
    pub command_line: Vec<String>,
    pidfd: OwnedFd,
}

impl Process {
    /// Whether its program is the one of `part`.
    #[must_use]
    pub fn is(&self, part: Part) -> bool {
        let name = self.program.file_name().unwrap_or_default().as_bytes();
        part.programs().iter().any(|program| name.starts_with(program.as_bytes()))
    }

    /// Shuts down the socket that it has as descriptor `number`, as if the other side had gone
    /// (pidfd_getfd(2), shutdown(2)).
    pub fn shut_socket(&self, number: i32) -> Result<()> {
        let socket = pidfd_getfd(&self.pidfd, number, PidfdGetfdFlags::empty())
            .with_context(|| format!("cannot get descriptor {number} of {}", self.describe()))?;
        Ok(shutdown(&socket, Shutdown::Both)?)
    }

    /// Sends a signal to it, or to nobody if it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot signal {}", self.pid)),
        }
    }

    /// Waits for its end. False when the deadline has passed.
    pub fn ends(&self, deadline: Deadline) -> Result<bool> {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let ready = poll(&mut fds, Some(&deadline.timespec())).context("cannot poll")?;
        Ok(ready > 0)
    }

    /// Its end is an event on this descriptor.
    pub(crate) fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Its resident memory in KiB that is its own or shared with others, from /proc/PID/status.
    pub fn resident_kib(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let line = line.with_context(|| format!("process {} has ended", self.pid))?;
        line.trim().trim_end_matches(" kB").parse().context("VmRSS is not a number")
    }

    /// The time that processors have spent on all of its threads, from /proc/PID/stat
    /// (proc_pid_stat(5)), to a hundredth of a second.
    pub fn processor_time(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        let mut ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
        let mut next = || ticks.next().context("too few fields in stat")?.context("no number");
        let ticks = next()? + next()?;
        Ok(Duration::from_millis(ticks * 1000 / clock_ticks_per_second()))
    }

    /// Its cgroup in every hierarchy that controllers are in, below the hierarchy's root, from
    /// /proc/PID/cgroup (cgroups(7)). Where there is the second version only, the one that it has.
    pub fn cgroups(&self) -> Result<Vec<String>> {
        let table = fs::read_to_string(format!("/proc/{}/cgroup", self.pid))
            .with_context(|| format!("process {} has ended", self.pid))?;
        let rows: Vec<(&str, &str)> =
            table.lines().filter_map(|line| line.split_once(':')?.1.split_once(':')).collect();
        let second_only = rows.len() == 1;
        let rows = rows.into_iter().filter(|(kind, _)| second_only || !kind.is_empty());
        Ok(rows.map(|(_, path)| path.to_owned()).collect())
    }

    /// The mounts of which it has files open and which are not there where it is, by their numbers
    /// in /proc/PID/fdinfo and /proc/PID/mountinfo (proc(5)). What it has brought along from
    /// outside of a jail is on some of them.
    pub fn lost_mounts(&self) -> Result<BTreeSet<u64>> {
        let process = PathBuf::from(format!("/proc/{}", self.pid));
        let table = fs::read_to_string(process.join("mountinfo"))
            .with_context(|| format!("process {} has ended", self.pid))?;
        let number = |text: &str| text.trim().parse::<u64>().ok();
        let there: BTreeSet<u64> =
            table.lines().filter_map(|line| number(line.split_whitespace().next()?)).collect();
        let mut used = BTreeSet::new();
        for entry in fs::read_dir(process.join("fd"))?.flatten() {
            // It may be closed by now. What has no path is a pipe, a socket or an event.
            let is_file = fs::read_link(entry.path()).is_ok_and(|path| path.is_absolute());
            let info = process.join("fdinfo").join(entry.file_name());
            let info = fs::read_to_string(info).unwrap_or_default();
            let mount = info.lines().find_map(|line| number(line.strip_prefix("mnt_id:")?));
            used.extend(mount.filter(|_| is_file));
        }
        Ok(used.difference(&there).copied().collect())
    }

    /// One line for an error.
    #[must_use]
    pub fn describe(&self) -> String {
        format!(
            "process {}: {} [{}]",
            self.pid,
            self.program.display(),
            self.command_line.join(" ")
        )
    }
}

/// Waits until a process of one part that carries `mark` has come to be. Every step of a sandbox's
/// start opens a file, which is the event that this waits for.
pub fn await_part(mark: &Mark, part: Part, deadline: Deadline) -> Result<Process> {
    let watch = Watch::new()?;
    let installation = Installation::under_test();
    for place in [installation.bin(), installation.libexec(), installation.assets()] {
        watch.use_of(&place)?;
    }
    for place in ["/usr/bin", "/dev", "/run"] {
        watch.use_of(Path::new(place))?;
    }
    let found = until(&watch, deadline, || Ok(parts_of(mark, part)?.into_iter().next()))?;
    found.with_context(|| format!("no process {}… came to be", part.programs().join("… or ")))
}

/// The processes of one part that carry `mark`.
pub fn parts_of(mark: &Mark, part: Part) -> Result<Vec<Process>> {
    Ok(marked(mark)?.into_iter().filter(|process| process.is(part)).collect())
}

/// Every living process that carries `mark` in its command line, environment, cgroup, directory or
/// an open file. Not this one.
pub(crate) fn marked(mark: &Mark) -> Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("cannot list /proc")? {
        let name = entry.context("cannot list /proc")?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if pid == std::process::id() {
            continue;
        }
        if let Some(process) = inspect(pid, mark) {
            found.push(process);
        }
    }
    Ok(found)
}

/// The process, if it lives and carries `mark`. One that ends meanwhile is none.
fn inspect(pid: u32, mark: &Mark) -> Option<Process> {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
    // Opened first, so that what is read below is never another process's.
    let pidfd = pidfd_open(raw, PidfdFlags::empty()).ok()?;
    let folder = PathBuf::from(format!("/proc/{pid}"));
    if is_zombie(&folder) || !carries(&folder, mark) {
        return None;
    }
    let command_line = fs::read(folder.join("cmdline")).unwrap_or_default();
    let command_line = String::from_utf8_lossy(&command_line);
    let command_line = command_line.split_terminator('\0').map(str::to_owned).collect();
    let program = fs::read_link(folder.join("exe")).unwrap_or_default();
    Some(Process { pid, program, command_line, pidfd })
}

fn is_zombie(folder: &Path) -> bool {
    let Ok(stat) = fs::read_to_string(folder.join("stat")) else { return true };
    // The name before it is in brackets, and may hold anything.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    matches!(state, None | Some('Z' | 'X'))
}

fn carries(folder: &Path, mark: &Mark) -> bool {
    let in_file = |name| fs::read(folder.join(name)).is_ok_and(|text| mark.is_in(&text));
    let in_link = |path: &Path| {
        fs::read_link(path).is_ok_and(|target| mark.is_in(target.as_os_str().as_bytes()))
    };
    ["cmdline", "environ", "cgroup"].into_iter().any(in_file)
        || ["cwd", "root", "exe"].into_iter().any(|name| in_link(&folder.join(name)))
        || open_files(folder).iter().any(|fd| in_link(fd))
}

fn open_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder.join("fd")).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// What the open descriptors of a process lead to, as far as they carry `mark` and `filter` takes
/// them.
pub(crate) fn open_paths(pid: u32, filter: impl Fn(&str) -> bool) -> Vec<String> {
    let links = open_files(Path::new(&format!("/proc/{pid}")));
    let targets = links.iter().filter_map(|link| fs::read_link(link).ok());
    targets.map(|target| target.display().to_string()).filter(|target| filter(target)).collect()
}
