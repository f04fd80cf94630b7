//! Hypervisors beside each other on a machine with KVM: how long a container takes, and what a VMM costs beside its guest's memory.
//! Exits with 0 whatever the figures are.
//!
//! `host-vm run 'PATH/drivers krun qemu' PATH/drivers` runs it where the machine itself has no KVM.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use kata_e2e::{Containerd, Part, Process, Scenario, parts_of};

/// Nothing changes any more after that.
const SETTLED: Duration = Duration::from_secs(1);

/// Mappings from this size on, in KiB, are the guest's memory: it has 2 GiB, and nothing else of a VMM is as large.
const GUEST_MEMORY: u64 = 512 * 1024;

/// Measures containers under the hypervisors NAME, in turns.
#[derive(Debug, Parser)]
struct Arguments {
    /// How often each thing is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Hypervisors as in `io.containerd.kata-NAME.v2`; ratios are to the last one.
    #[arg(required = true)]
    names: Vec<String>,
}

/// What was measured of one hypervisor.
#[derive(Debug)]
struct Figures {
    name: String,
    /// Of `ctr run --rm … true`, from its start to its end, in seconds.
    starts: Vec<f64>,
    /// Of the VMM of an idle sandbox, without its guest's memory, in MiB.
    shares: Vec<f64>,
}

fn main() -> Result<()> {
    let Arguments { runs, names } = Arguments::parse();
    let named = |name| Figures { name, starts: Vec::new(), shares: Vec::new() };
    let mut all: Vec<Figures> = names.into_iter().map(named).collect();
    Scenario::unconfigured().run(|containerd| {
        for _ in 0..runs {
            for figures in &mut all {
                figures.starts.push(start(containerd, &figures.name)?);
                figures.shares.push(share(containerd, &figures.name)?);
            }
        }
        Ok(())
    })?;
    let base = all.last().map(|last| median(&last.starts));
    let base = base.context("there is at least one hypervisor")?;
    println!("{runs} runs, medians; a guest of 2048 MiB");
    println!(
        "| hypervisor | ctr run … true | ÷ the last one | VMM's PSS without the guest's memory |"
    );
    println!("|---|---|---|---|");
    for Figures { name, starts, shares } in &all {
        let (start, share) = (median(starts), median(shares));
        println!("| {name} | {start:.2} s | {:.2} | {share:.1} MiB |", start / base);
    }
    Ok(())
}

fn start(containerd: &Containerd, hypervisor: &str) -> Result<f64> {
    let run = containerd.run(["true"]).under_hypervisor(hypervisor);
    let started = Instant::now();
    run.output()?.success()?;
    Ok(started.elapsed().as_secs_f64())
}

fn share(containerd: &Containerd, hypervisor: &str) -> Result<f64> {
    let container = containerd.run(["sleep", "1000"]).under_hypervisor(hypervisor).start()?;
    std::thread::sleep(SETTLED);
    let vmms = parts_of(containerd.mark(), Part::Vmm)?;
    ensure!(vmms.len() == 1, "not exactly one VMM: {vmms:?}");
    let kib = share_of(&vmms[0])?;
    container.remove()?;
    Ok(kib as f64 / 1024.0)
}

fn share_of(process: &Process) -> Result<u64> {
    let maps = fs::read_to_string(format!("/proc/{}/smaps", process.pid))
        .with_context(|| format!("cannot look at {}", process.describe()))?;
    Ok(without_guest(&maps))
}

/// A process's share of the memory that it maps (proc_pid_smaps(5)) but for the guest's, in KiB.
fn without_guest(maps: &str) -> u64 {
    let (mut share, mut is_guest) = (0, false);
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next().and_then(|word| word.parse::<u64>().ok())) {
            (Some("Size:"), Some(kib)) => is_guest = kib >= GUEST_MEMORY,
            (Some("Pss:"), Some(kib)) if !is_guest => share += kib,
            _ => {}
        }
    }
    share
}

/// Of at least one value.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len() - 1;
    f64::midpoint(sorted[last / 2], sorted[last.div_ceil(2)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_mappings_are_the_guests() {
        let maps = "55d0-55d1 r-xp 00000000 fe:01 12 /usr/bin/vmm\nSize: 8 kB\nPss: 4 kB\n\
                    7f00-7f10 rw-p 00000000 00:00 0\nSize: 2097152 kB\nPss: 100 kB\nPss_Dirty: 7 kB\n\
                    7fff-8000 rw-p 00000000 00:00 0 [stack]\nSize: 132 kB\nPss: 16 kB\n";
        assert_eq!(without_guest(maps), 20);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
    }
}
