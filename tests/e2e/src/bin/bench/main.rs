//! `make bench`: measures, prints a table, and writes JSON and a picture. Exits with 0 whatever the
//! figures are, and with 1 when something did not work at all.
//!
//! Whatever is compared is measured in turns, so that a busy moment of the machine spoils no ratio.

mod engines;
mod floor;
mod io;
mod life;
mod markdown;
mod memory;
mod metric;
mod plot;
mod report;
mod subject;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use kata_e2e::{Client, GuestKernel, Input, Installation, Scenario, podman_and_docker};

use engines::Engines;
use metric::{Group, Subject, Values};
use subject::{Configurations, Subjects};

/// Measures containers under kata, runc and runsc, and the least that a virtual machine can take.
#[derive(Debug, Parser)]
struct Arguments {
    /// How often each thing is measured.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// What is measured; without it, everything.
    #[arg(long, value_delimiter = ',')]
    groups: Vec<Group>,
    /// Another guest kernel than the installed one.
    #[arg(long)]
    kernel: Option<PathBuf>,
    /// Another initial ramdisk than the installed one.
    #[arg(long)]
    initrd: Option<PathBuf>,
    /// A disk image instead of an initial ramdisk.
    #[arg(long, conflicts_with = "initrd")]
    image: Option<PathBuf>,
    /// The guest's memory in MiB.
    #[arg(long, default_value_t = 256)]
    memory: u32,
    /// Where the figures go: `bench.json`, `bench.md` and `bench.svg` in this directory.
    #[arg(long, default_value = "build")]
    output: PathBuf,
}

fn main() -> Result<()> {
    let mut arguments = Arguments::parse();
    if arguments.groups.is_empty() {
        arguments.groups = Group::value_variants().to_vec();
    }
    let directory = tempfile::tempdir().context("cannot make a directory")?;
    let configurations = configurations(&arguments, directory.path())?;
    let mut values = Values::default();
    let outcome = if arguments.groups.contains(&Group::Engines) {
        podman_and_docker(&configurations.under_test, |podman, docker| {
            let engines = Some(Engines { podman, docker });
            all_rounds(&arguments, &configurations, engines, &mut values)
        })
    } else {
        all_rounds(&arguments, &configurations, None, &mut values)
    };
    // What was measured before something failed is worth to be seen, too.
    let installed = Installation::under_test();
    let kernel = arguments.kernel.unwrap_or_else(|| installed.kernel());
    let ramdisk = match arguments.image {
        Some(_) => None,
        None => Some(arguments.initrd.unwrap_or_else(|| installed.initrd())),
    };
    let targets = report::targets(&values, ramdisk.as_deref(), is_small(&kernel)?)?;
    println!("a guest of {} MiB\n", arguments.memory);
    print!("{}", report::table(&values, &targets));
    fs::create_dir_all(&arguments.output).context("cannot make the output's directory")?;
    for (name, content) in [
        ("bench.json", report::json(&values, &targets, &kernel)?),
        ("bench.md", markdown::page(&values, &targets, &kernel, arguments.memory)),
        ("bench.svg", plot::svg(&values)),
    ] {
        let file = arguments.output.join(name);
        fs::write(&file, content).with_context(|| format!("cannot write {}", file.display()))?;
        println!("written to {}", file.display());
    }
    outcome
}

fn all_rounds(
    arguments: &Arguments,
    configurations: &Configurations,
    engines: Option<Engines<'_>>,
    values: &mut Values,
) -> Result<()> {
    // A configuration that the environment names would win over each container's own.
    Scenario::unconfigured().run(|containerd| {
        let subjects = Subjects::find(containerd, configurations)?;
        if let Some(why) = subjects.without_runsc() {
            values.leave_out(Subject::Runsc, why);
        }
        if arguments.groups.contains(&Group::Io) {
            containerd.import(&io::image())?;
        }
        for round in 1..=arguments.runs {
            eprint!("\rround {round} of {} ", arguments.runs);
            measure(&subjects, &arguments.groups, values)?;
            engines.map_or(Ok(()), |engines| engines.measure(values))?;
        }
        if arguments.groups.contains(&Group::Burst) {
            for round in 1..=arguments.runs {
                eprint!("\rmany at once, round {round} of {} ", arguments.runs);
                burst(&subjects, values)?;
            }
        }
        eprintln!();
        Ok(())
    })
}

/// One round of everything that takes one container at a time.
fn measure(subjects: &Subjects<'_>, groups: &[Group], values: &mut Values) -> Result<()> {
    let has = |wanted: &[Group]| wanted.iter().any(|group| groups.contains(group));
    for subject in subjects.runtimes() {
        if has(&[Group::Start]) {
            life::run(subjects, subject, values)?;
        }
        if has(&[Group::Start, Group::Timeline, Group::Exec, Group::Stop, Group::Burst]) {
            life::life(subjects, subject, groups, values)?;
        }
        if has(&[Group::Io]) {
            io::files(subjects, subject, values)?;
        }
    }
    if has(&[Group::Memory]) {
        memory::idle(subjects, values)?;
        memory::idle_with_reader(subjects, values)?;
        memory::idle_by_hand(subjects, values)?;
        for subject in subjects.runtimes().into_iter().filter(|one| *one != Subject::Kata) {
            memory::idle_without_vm(subjects, subject, values)?;
        }
    }
    Ok(())
}

fn burst(subjects: &Subjects<'_>, values: &mut Values) -> Result<()> {
    for many in [(metric::TEN, 10), (metric::TWENTY, 20)] {
        for subject in subjects.runtimes() {
            life::burst(subjects, subject, many, values)?;
        }
    }
    Ok(())
}

/// Whether this kernel is another one than the distribution's, beside which it is measured.
fn is_small(kernel: &Path) -> Result<bool> {
    let read = |file: &Path| fs::read(file).with_context(|| format!("no {}", file.display()));
    Ok(read(kernel)? != read(&GuestKernel::Distribution.vmlinux())?)
}

/// Writes the configurations into `directory`, and makes the template there.
fn configurations(arguments: &Arguments, directory: &Path) -> Result<Configurations> {
    let Arguments { kernel, initrd, image, memory, groups, .. } = arguments;
    let asked = [("kernel", kernel), ("initrd", initrd), ("image", image)];
    let asked: Vec<_> =
        asked.into_iter().filter_map(|(key, path)| Some((key, path.clone()?))).collect();
    let guest = GuestKernel::Distribution;
    let distribution = [("kernel", guest.vmlinux()), ("initrd", guest.initrd())];
    let template = || {
        let file = configure(directory.join("template.toml"), *memory, asked.clone())?;
        make_template(&file, &directory.join("template"))?;
        Ok::<_, anyhow::Error>(file)
    };
    let wants_template = image.is_none() && groups.contains(&Group::Start);
    Ok(Configurations {
        under_test: configure(directory.join("configuration.toml"), *memory, asked.clone())?,
        distribution: configure(directory.join("distribution.toml"), *memory, distribution)?,
        template: wants_template.then(template).transpose()?,
    })
}

/// Has the sandboxes of a configuration go on from a template, which is made.
fn make_template(configuration: &Path, place: &Path) -> Result<()> {
    let lines = format!("enable_template = true\ntemplate_path = '{}'\n", place.display());
    let text = fs::read_to_string(configuration).context("no configuration")? + &lines;
    fs::write(configuration, text).context("cannot write a configuration")?;
    let mut command = Command::new(Installation::under_test().bin().join("kata-runtime"));
    command.env("KATA_CONF_FILE", configuration).args(["factory", "init"]);
    Client::spawn(command, Input::Nothing)?.wait()?.success().map(drop)
}

/// Writes a configuration with this memory in MiB, and these assets.
fn configure(
    file: PathBuf,
    memory: u32,
    assets: impl IntoIterator<Item = (&'static str, PathBuf)>,
) -> Result<PathBuf> {
    let mut text = format!("[hypervisor.qemu]\ndefault_memory = {memory}\n");
    for (key, path) in assets {
        let path = fs::canonicalize(&path).with_context(|| format!("no {}", path.display()))?;
        text.push_str(&format!("{key} = {:?}\n", path.display().to_string()));
    }
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}
