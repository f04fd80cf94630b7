//! Hypervisors beside each other on a machine with KVM: how long a container takes, and what a VMM
//! costs beside its guest's memory. Exits with 0 whatever the figures are.
//!
//! `host-vm run 'PATH/drivers krun qemu' PATH/drivers` runs it where the machine itself has no KVM.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use kata_e2e::{Containerd, Part, Scenario, Share, Summary, let_it_settle, parts_of};

/// Mappings from this size on, in KiB, are the guest's memory: it has 2 GiB, and nothing else of a
/// VMM is as large.
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
    let last = all.last().context("there is at least one hypervisor")?;
    let base = median(&last.starts)?;
    println!("{runs} runs, medians; a guest of 2048 MiB");
    println!(
        "| hypervisor | time of ctr run --rm … true | ÷ the last one | memory of the VMM without its guest's |"
    );
    println!("|---|---|---|---|");
    for Figures { name, starts, shares } in &all {
        let (start, share) = (median(starts)?, median(shares)?);
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
    let_it_settle();
    let vmms = parts_of(containerd.mark(), Part::Vmm)?;
    ensure!(vmms.len() == 1, "not exactly one VMM: {vmms:?}");
    let share = Share::of(&vmms[0], |mapping| mapping.size >= GUEST_MEMORY)?;
    container.remove()?;
    Ok(share.rest_mib())
}

fn median(values: &[f64]) -> Result<f64> {
    Ok(Summary::of(values).context("nothing was measured")?.median)
}
