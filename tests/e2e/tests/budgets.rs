//! What Firecracker is for: starts that are quicker than QEMU's, and little memory beside the guest's. Runs with a configuration
//! (`KATA_E2E_CONFIG`) that chooses it, on a machine where KVM works.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kata_e2e::{Containerd, Part, Scenario, parts_of};

/// How often each is started, in turns.
const STARTS: usize = 5;

/// Of QEMU's time.
const RATIO: f64 = 0.8;

/// Beside the guest's memory, in KiB.
const REST: u64 = 10 << 10;

/// Mappings of at least so many KiB are the guest's memory, of which every guest here has more.
const GUEST_MEMORY: u64 = 64 << 10;

/// The configuration that is tested; `None` if it is not Firecracker's.
fn firecracker() -> Result<Option<PathBuf>> {
    let Some(file) = std::env::var_os("KATA_E2E_CONFIG") else { return Ok(None) };
    let chosen = fs::read_to_string(&file)?.contains("hypervisor_name = \"firecracker\"");
    Ok(chosen.then(|| file.into()))
}

#[test]
fn firecracker_starts_sooner_than_qemu_and_needs_little_memory() -> Result<()> {
    let Some(firecracker) = firecracker()? else {
        eprintln!("left out, for it is not Firecracker that is tested: its budgets");
        return Ok(());
    };
    let directory = tempfile::tempdir()?;
    let qemu = directory.path().join("qemu.toml");
    // Without a network it is the plain microvm, the quickest machine that it has.
    let text = "[runtime]\nhypervisor_name = \"qemu\"\ninternetworking_model = \"none\"\n";
    fs::write(&qemu, text)?;
    // The installed configuration is nobody's: each run brings its own.
    Scenario::unconfigured().run(|containerd| {
        let start = |file: &PathBuf| {
            let run = containerd.run(["true"]);
            let run = run.option("--runtime-config-path", &file.display().to_string());
            let begin = Instant::now();
            run.output()?.success()?;
            anyhow::Ok(begin.elapsed())
        };
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..STARTS {
            ours.push(start(&firecracker)?);
            theirs.push(start(&qemu)?);
        }
        let (ours, theirs) = (median(ours), median(theirs));
        let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
        let rest = beside_the_guest(containerd, &firecracker)?;
        eprintln!("start: {ours:.2?}, QEMU {theirs:.2?}, ratio {ratio:.2}; {rest} KiB beside the guest's memory");
        ensure!(ratio <= RATIO, "a start takes {ratio:.2} of QEMU's time");
        ensure!(rest <= REST, "Firecracker takes {rest} KiB beside the guest's memory");
        Ok(())
    })
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// The VMM's share of memory that is not the guest's (proc_pid_smaps(5)), in KiB.
fn beside_the_guest(containerd: &Containerd, configuration: &std::path::Path) -> Result<u64> {
    let run = containerd.run(["sleep", "1000"]);
    let run = run.option("--runtime-config-path", &configuration.display().to_string());
    let container = run.start()?;
    let vmms = parts_of(containerd.mark(), Part::Vmm)?;
    let vmm = vmms.first().context("there is no VMM")?;
    let maps = fs::read_to_string(format!("/proc/{}/smaps", vmm.pid))?;
    let kib = |line: &str, key: &str| -> Option<u64> {
        line.strip_prefix(key)?.trim().strip_suffix(" kB")?.parse().ok()
    };
    let (mut rest, mut size) = (0, 0);
    for line in maps.lines() {
        size = kib(line, "Size:").unwrap_or(size);
        if size < GUEST_MEMORY {
            rest += kib(line, "Pss:").unwrap_or(0);
        }
    }
    container.remove()?;
    Ok(rest)
}
