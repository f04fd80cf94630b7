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

/// What a process that has none of the guest's memory costs, in MiB.
pub(crate) fn pss(process: &Process) -> Result<f64> {
    Ok(share_of(process)?.rest as f64 / 1024.0)
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
    let text = container.exec(["cat", "/proc/meminfo", "/proc/zoneinfo"]).output()?.success()?;
    Ok(size - free_in_guest(&text)? / 1024.0)
}

/// In KiB. `MemAvailable` of proc_meminfo(5) leaves out the free pages that each vCPU keeps at hand, which may be several MiB:
/// they are the `count` lines of proc_zoneinfo(5), in pages.
fn free_in_guest(text: &str) -> Result<f64> {
    let (mut available, mut at_hand) = (None, 0.0);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("MemAvailable:"), Some(kib)) => available = Some(number(kib)?),
            (Some("count:"), Some(pages)) => at_hand += number(pages)? * 4.0,
            _ => {}
        }
    }
    Ok(available.context("no MemAvailable")? + at_hand)
}

fn number(word: &str) -> Result<f64> {
    word.parse().with_context(|| format!("the guest says '{word}' where a number belongs"))
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

    #[test]
    fn pages_at_hand_of_a_vcpu_are_free() {
        let text = "MemTotal: 237364 kB\nMemAvailable: 205904 kB\nNode 0, zone    DMA32\n  pagesets\n    cpu: 0\n              \
                    count: 1762\n              high:  5085\n";
        assert_eq!(free_in_guest(text).unwrap(), 205_904.0 + 4.0 * 1762.0);
        assert!(free_in_guest("MemTotal: 1 kB\n").is_err());
    }
}
