//! What an idle sandbox costs.

use anyhow::{Context, Result};
use kata_e2e::{CommandLine, Container, IDLE, Part, Process, Share, let_it_settle, parts_of};

use crate::metric::{self, Subject, Values};
use crate::subject::Subjects;

/// How the guest's memory is called among a process's mappings.
const GUEST_MEMORY: &str = "/memfd:memory-backend-memfd";

/// Starts one container, lets it sleep, and looks.
pub(crate) fn idle(subjects: &Subjects<'_>, to: &mut Values) -> Result<()> {
    let container = subjects.run(Subject::Kata, &["sleep", "1000"]).start()?;
    let mark = subjects.containerd().mark();
    let part = |part| parts_of(mark, part).map(|all| all.into_iter().next());
    let (vmm, server) =
        (part(Part::Vmm)?.context("no VMM")?, part(Part::FileServer)?.context("no file server")?);
    let shim = part(Part::Shim)?.context("no shim")?;
    let_it_settle();
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
        (metric::SHIM_RSS, shares[2].resident),
    ] {
        to.add(metric, Subject::Kata, mib(kib));
    }
    to.add(metric::GUEST_USED, Subject::Kata, guest_in_use(&container, &vmm)?);
    container.remove()
}

/// One whose output is read, as it always is by hand: so its shim is what `kata-proxy` is compared
/// with.
pub(crate) fn idle_with_reader(subjects: &Subjects<'_>, to: &mut Values) -> Result<()> {
    let run = subjects.run(Subject::Kata, &["sh", "-c", IDLE]);
    let (client, container) = run.attach_and_keep()?;
    client.expect("up\n")?;
    let shims = parts_of(subjects.containerd().mark(), Part::Shim)?;
    let_it_settle();
    to.add(metric::READ_PSS, Subject::Kata, pss(shims.first().context("no shim")?)?);
    container.kill("KILL")?;
    client.wait()?;
    container.remove()
}

/// The same container by hand: its sandbox has no shim.
pub(crate) fn idle_by_hand(subjects: &Subjects<'_>, to: &mut Values) -> Result<()> {
    CommandLine::configured(subjects.configuration(), |host| {
        host.run_idle("idle")?;
        let owner = host.await_part(Part::Proxy)?;
        let_it_settle();
        to.add(metric::OWNER_PSS, Subject::Kata, pss(&owner)?);
        host.succeed(&["delete", "--force", &host.id("idle")]).map(drop)
    })
}

/// The same under a runtime that has its processes on the host: its shim, and the kernel of its own
/// that it has, if any. A process of runc's container is not among them: it would cost the same
/// anywhere.
pub(crate) fn idle_without_vm(
    subjects: &Subjects<'_>,
    subject: Subject,
    to: &mut Values,
) -> Result<()> {
    let container = subjects.run(subject, &["sleep", "1000"]).start()?;
    let mark = subjects.containerd().mark();
    let shim = parts_of(mark, Part::Shim)?.into_iter().next().context("no shim")?;
    let kernel = parts_of(mark, Part::Gvisor)?;
    let_it_settle();
    let shim = share_of(&shim)?;
    let mut all = shim.rest_mib();
    for process in &kernel {
        all += pss(process)?;
    }
    to.add(metric::ALL_PSS, subject, all);
    to.add(metric::SHIM_PSS, subject, shim.rest_mib());
    to.add(metric::SHIM_RSS, subject, shim.resident as f64 / 1024.0);
    container.remove()
}

/// What a process that has none of the guest's memory costs, in MiB.
pub(crate) fn pss(process: &Process) -> Result<f64> {
    Ok(share_of(process)?.rest_mib())
}

fn share_of(process: &Process) -> Result<Share> {
    Share::of(process, |mapping| mapping.line.contains(GUEST_MEMORY))
}

/// All of the guest's memory that it could not give to a container, in MiB: what its kernel, its
/// page tables and its agent hold.
fn guest_in_use(container: &Container<'_>, vmm: &Process) -> Result<f64> {
    let size = vmm.command_line.windows(2).find(|pair| pair[0] == "-m").map(|pair| &pair[1]);
    let size = size.and_then(|size| size.strip_suffix('M')).context("the VMM has no -m")?;
    let size: f64 = size.parse().context("the VMM's -m is no number")?;
    let text = container.exec(["cat", "/proc/meminfo", "/proc/zoneinfo"]).output()?.success()?;
    Ok(size - free_in_guest(&text)? / 1024.0)
}

/// In KiB. `MemAvailable` of proc_meminfo(5) leaves out the free pages that each vCPU keeps at
/// hand, which may be several MiB: they are the `count` lines of proc_zoneinfo(5), in pages.
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
    fn pages_at_hand_of_a_vcpu_are_free() {
        let text = "MemTotal: 237364 kB\nMemAvailable: 205904 kB\nNode 0, zone    DMA32\n  pagesets\n    cpu: 0\n              \
                    count: 1762\n              high:  5085\n";
        assert_eq!(free_in_guest(text).unwrap(), 205_904.0 + 4.0 * 1762.0);
        assert!(free_in_guest("MemTotal: 1 kB\n").is_err());
    }
}
