//! What an idle sandbox costs.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kata_e2e::{Container, Part, Process, parts_of};

use crate::metric::{self, Subject, Values};
use crate::subject::Subjects;

/// How the guest's memory is called among a process's mappings.
const GUEST_MEMORY: &str = "/memfd:memory-backend-memfd";

/// Nothing changes any more after that.
const SETTLED: Duration = Duration::from_secs(1);

/// A process's share of the memory that it maps, in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Share {
    guest: u64,
    rest: u64,
}

/// Starts one container, lets it sleep, and looks.
pub(crate) fn idle(subjects: &Subjects<'_>, to: &mut Values) -> Result<()> {
    let container = subjects.run(Subject::Kata, &["sleep", "1000"]).start()?;
    let settled = Instant::now() + SETTLED;
    let mark = subjects.containerd().mark();
    let part = |part| parts_of(mark, part).map(|all| all.into_iter().next());
    let (vmm, server) =
        (part(Part::Vmm)?.context("no VMM")?, part(Part::FileServer)?.context("no file server")?);
    let shim = part(Part::Shim)?.context("no shim")?;
    std::thread::sleep(settled.saturating_duration_since(Instant::now()));
    let shares = [share_of(&vmm)?, share_of(&server)?, share_of(&shim)?];
    let mib = |kib: u64| kib as f64 / 1024.0;
    let guest = shares.iter().map(|share| share.guest).sum();
    let rest = shares.iter().map(|share| share.rest).sum();
    for (metric, kib) in [
        (metric::ALL_PSS, guest + rest),
        (metric::REST_PSS, rest),
        (metric::TOUCHED, guest),
        (metric::VMM_PSS, shares[0].rest),
        (metric::SERVER_PSS, shares[1].rest),
        (metric::SHIM_PSS, shares[2].rest),
    ] {
        to.add(metric, Subject::Kata, mib(kib));
    }
    to.add(metric::GUEST_USED, Subject::Kata, guest_in_use(&container, &vmm)?);
    container.remove()
}

fn share_of(process: &Process) -> Result<Share> {
    let maps = fs::read_to_string(format!("/proc/{}/smaps", process.pid))
        .with_context(|| format!("cannot look at {}", process.describe()))?;
    Ok(parse(&maps))
}

/// proc_pid_smaps(5): a line for each mapping, and lines of what is in it.
fn parse(maps: &str) -> Share {
    let mut share = Share::default();
    let mut is_guest = false;
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next().and_then(|word| word.parse::<u64>().ok())) {
            (Some("Pss:"), Some(kib)) if is_guest => share.guest += kib,
            (Some("Pss:"), Some(kib)) => share.rest += kib,
            (Some(first), _) if !first.ends_with(':') => is_guest = line.contains(GUEST_MEMORY),
            _ => {}
        }
    }
    share
}

/// All of the guest's memory that it could not give to a container, in MiB: what its kernel, its page tables and its agent hold.
fn guest_in_use(container: &Container<'_>, vmm: &Process) -> Result<f64> {
    let size = vmm.command_line.windows(2).find(|pair| pair[0] == "-m").map(|pair| &pair[1]);
    let size = size.and_then(|size| size.strip_suffix('M')).context("the VMM has no -m")?;
    let size: f64 = size.parse().context("the VMM's -m is no number")?;
    let text = container.exec(["cat", "/proc/meminfo"]).output()?.success()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.context("no MemAvailable")?.trim().trim_end_matches(" kB");
    Ok(size - kib.parse::<f64>().context("MemAvailable is no number")? / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_memory_is_told_from_the_rest() {
        let maps = "55d0-55d1 r-xp 00000000 fe:01 12 /usr/bin/qemu\nRss: 8 kB\nPss:                   4 kB\n\
                    7f00-7f10 rw-s 00000000 00:01 99 /memfd:memory-backend-memfd (deleted)\nPss: 100 kB\n\
                    Pss_Dirty: 7 kB\nVmFlags: rd wr sh\n7fff-8000 rw-p 00000000 00:00 0 [stack]\nPss: 16 kB\n";
        assert_eq!(parse(maps), Share { guest: 100, rest: 20 });
    }
}
