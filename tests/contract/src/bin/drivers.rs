//! Hypervisors beside each other on a machine with KVM: how long a container takes, the least that
//! its virtual machine can take, and what a VMM costs beside its guest's memory. Exits with 0
//! whatever the figures are.
//!
//! `host-vm run 'PATH/drivers krun microvm' PATH/drivers` runs it where the machine itself has no
//! KVM.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::{Parser, ValueEnum};
use kata_cloud_hypervisor::{CloudHypervisor, CloudHypervisorSettings};
use kata_driver_contract::program_on_path;
use kata_e2e::{
    Configuration, Containerd, Installation, Part, Runtime, Scenario, Share, Summary,
    floor_ramdisk, let_it_settle, parts_of,
};
use kata_firecracker::{Firecracker, FirecrackerSettings};
use kata_hypervisor::{GuestRoot, Hypervisor, VmSpec};
use kata_krun::{Krun, KrunSettings};
use kata_qemu::{MachineChoice, Qemu, QemuSettings};
use tokio::time::timeout;

/// The guest's memory in MiB, as the default configuration has it.
const MEMORY_MIB: u32 = 2048;

/// Mappings from this size on, in KiB, are the guest's memory: nothing else of a VMM is as large.
const GUEST_MEMORY: u64 = 512 * 1024;

/// Long enough for a boot in a virtual machine inside of an emulated one.
const PATIENCE: Duration = Duration::from_secs(90);

/// Measures containers under hypervisors, in turns.
#[derive(Debug, Parser)]
struct Arguments {
    /// How often each thing is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Hypervisors; ratios are to the last one.
    #[arg(required = true)]
    names: Vec<Name>,
}

/// A hypervisor, with QEMU's machine.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Name {
    Krun,
    Microvm,
    Q35,
    CloudHypervisor,
    Firecracker,
}

impl Name {
    /// The configuration that chooses it.
    fn configuration(self) -> Result<Configuration> {
        let (name, section, keys) = match self {
            Self::Krun => ("krun", "krun", String::new()),
            Self::Microvm => ("qemu", "qemu", "machine_type = \"microvm\"".to_owned()),
            Self::Q35 => ("qemu", "qemu", "machine_type = \"q35\"".to_owned()),
            Self::CloudHypervisor => ("clh", "clh", path_of("cloud-hypervisor")?),
            Self::Firecracker => ("firecracker", "firecracker", path_of("firecracker")?),
        };
        Configuration::with(&format!(
            "[runtime]\nhypervisor_name = \"{name}\"\n[hypervisor.{section}]\n{keys}\n"
        ))
    }

    /// What starts its VMM, as the runtime would.
    fn driver(self) -> Result<Box<dyn Hypervisor>> {
        let qemu = |machine| Qemu::new(QemuSettings { machine, ..QemuSettings::default() });
        Ok(match self {
            Self::Krun => {
                let program = Installation::under_test().libexec().join("kata-krun");
                Box::new(Krun::new(KrunSettings::new(program)))
            }
            Self::Microvm => Box::new(qemu(MachineChoice::Microvm)),
            Self::Q35 => Box::new(qemu(MachineChoice::Q35)),
            Self::CloudHypervisor => {
                let program = on_path("cloud-hypervisor")?;
                let settings = CloudHypervisorSettings { program, ..Default::default() };
                Box::new(CloudHypervisor::new(settings))
            }
            Self::Firecracker => {
                let program = on_path("firecracker")?;
                let settings = FirecrackerSettings { program, ..Default::default() };
                Box::new(Firecracker::new(settings))
            }
        })
    }

    /// As the command line has it.
    fn shown(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

fn on_path(program: &str) -> Result<std::path::PathBuf> {
    program_on_path(program).map_err(|obstacle| anyhow!(obstacle))
}

fn path_of(program: &str) -> Result<String> {
    Ok(format!("path = \"{}\"", on_path(program)?.display()))
}

/// What was measured of one hypervisor.
#[derive(Debug)]
struct Figures {
    name: Name,
    configuration: Configuration,
    /// Of `ctr run --rm … true`, from its start to its end, in seconds.
    starts: Vec<f64>,
    /// From the start of its VMM to the end of a guest that ends at once, in seconds.
    floors: Vec<f64>,
    /// Of the VMM of an idle sandbox, without its guest's memory, in MiB.
    shares: Vec<f64>,
}

impl Figures {
    fn new(name: Name) -> Result<Self> {
        let configuration = name.configuration()?;
        Ok(Self { name, configuration, starts: vec![], floors: vec![], shares: vec![] })
    }

    fn measure(&mut self, containerd: &Containerd) -> Result<()> {
        self.starts.push(self.start(containerd)?);
        self.floors.push(floor(self.name)?);
        self.shares.push(self.share(containerd)?);
        Ok(())
    }

    fn start(&self, containerd: &Containerd) -> Result<f64> {
        let file = self.configuration.file().display().to_string();
        let run = containerd.run(["true"]).under(Runtime::Kata);
        let run = run.option("--runtime-config-path", &file);
        let started = Instant::now();
        run.output()?.success()?;
        Ok(started.elapsed().as_secs_f64())
    }

    fn share(&self, containerd: &Containerd) -> Result<f64> {
        let file = self.configuration.file().display().to_string();
        let run = containerd.run(["sleep", "1000"]).under(Runtime::Kata);
        let container = run.option("--runtime-config-path", &file).start()?;
        let_it_settle();
        let vmms = parts_of(containerd.mark(), Part::Vmm)?;
        ensure!(vmms.len() == 1, "not exactly one VMM: {vmms:?}");
        let share = Share::of(&vmms[0], |mapping| mapping.size >= GUEST_MEMORY)?;
        container.remove()?;
        Ok(share.rest_mib())
    }
}

/// The same kernel and amount of memory, without devices but for the agent's channel, and an init
/// that ends the machine at once.
fn floor(name: Name) -> Result<f64> {
    let directory = tempfile::tempdir().context("cannot make a directory")?;
    let initrd = directory.path().join("floor.img");
    fs::write(&initrd, floor_ramdisk()).context("cannot write the initial ramdisk")?;
    let run_dir = directory.path().join("run");
    fs::create_dir(&run_dir).context("cannot make a directory")?;
    let driver = name.driver()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(boot_to_end(driver.as_ref(), &initrd, &run_dir))
}

async fn boot_to_end(driver: &dyn Hypervisor, initrd: &Path, run_dir: &Path) -> Result<f64> {
    let mut spec = VmSpec::bare(
        format!("floor-{}", std::process::id()),
        Installation::under_test().kernel(),
        GuestRoot::Initrd(initrd.to_owned()),
        run_dir.to_owned(),
    );
    spec.memory_mib = MEMORY_MIB;
    let started = Instant::now();
    let vm = driver.boot(&spec).await.context("the floor's machine does not start")?;
    let Ok(exit) = timeout(PATIENCE, vm.exited()).await else {
        bail!("the floor's machine does not end: {:#?}", vm.console().last_lines(40));
    };
    let taken = started.elapsed().as_secs_f64();
    ensure!(exit.signal.is_none(), "the floor's machine was killed: {exit}");
    Ok(taken)
}

fn main() -> Result<()> {
    let Arguments { runs, names } = Arguments::parse();
    let mut all = names.into_iter().map(Figures::new).collect::<Result<Vec<_>>>()?;
    Scenario::unconfigured().run(|containerd| {
        for _ in 0..runs {
            for figures in &mut all {
                let name = figures.name.shown();
                figures.measure(containerd).with_context(|| format!("with {name}"))?;
            }
        }
        Ok(())
    })?;
    let last = all.last().context("there is at least one hypervisor")?;
    let base = median(&last.starts)?;
    println!("{runs} runs, medians; a guest of {MEMORY_MIB} MiB");
    println!(
        "| hypervisor | time of ctr run --rm … true | ÷ the last one | the floor | ÷ the floor | memory of the VMM without its guest's |"
    );
    println!("|---|---|---|---|---|---|");
    for Figures { name, starts, floors, shares, .. } in &all {
        let (start, floor, share) = (median(starts)?, median(floors)?, median(shares)?);
        println!(
            "| {} | {start:.2} s | {:.2} | {floor:.2} s | {:.2} | {share:.1} MiB |",
            name.shown(),
            start / base,
            start / floor
        );
    }
    Ok(())
}

fn median(values: &[f64]) -> Result<f64> {
    Ok(Summary::of(values).context("nothing was measured")?.median)
}
