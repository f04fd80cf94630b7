//! A container's life: start, exec, stop, and many starts at once.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kata_e2e::{Container, Deadline, GuestKernel, Part, parts_of};
use kata_timeline::{Stage, Timeline};

use crate::floor::{self, Boot, Recipe};
use crate::metric::{self, Group, Metric, Subject, Values};
use crate::subject::{Subjects, timed};

/// Where a running sandbox has its record.
const SANDBOXES: &str = "/run/kata";

/// The parts of a start, by the stages at their ends.
const PARTS: &[(Metric, Stage, Stage)] = &[
    (metric::MACHINE, Stage::ShimAsked, Stage::VmmExecuted),
    (metric::VMM, Stage::VmmExecuted, Stage::KernelEntered),
    (metric::KERNEL, Stage::KernelEntered, Stage::KernelDone),
    (metric::AGENT, Stage::KernelDone, Stage::AgentReached),
    (metric::CONTAINER, Stage::AgentReached, Stage::ContainerCreated),
    (metric::PROCESS, Stage::StartAsked, Stage::ProcessExecuted),
];

/// The same of each of ten starts at once, which wait for one another before them.
const PARTS_OF_MANY: &[(Metric, Stage, Stage)] = &[
    (metric::MANY_KERNEL, Stage::KernelEntered, Stage::KernelDone),
    (metric::MANY_AGENT, Stage::KernelDone, Stage::AgentReached),
    (metric::MANY_CONTAINER, Stage::AgentReached, Stage::ContainerCreated),
];

/// `ctr run --rm … true`, from its start to its end; under kata with both kernels, and from a
/// template.
pub(crate) fn run(subjects: &Subjects<'_>, subject: Subject, to: &mut Values) -> Result<()> {
    let mut runs = vec![(metric::RUN, subject, subject)];
    if subject == Subject::Kata {
        runs.push((metric::RUN_DISTRIBUTION, Subject::Kata, Subject::Distribution));
        if subjects.has_template() {
            runs.push((metric::RUN, Subject::Template, Subject::Template));
        }
    }
    for (metric, whose, configured) in runs {
        let run = subjects.run(configured, &["true"]);
        let ((), took) = timed(|| run.output()?.success().map(drop))?;
        to.add(metric, whose, took.as_secs_f64());
    }
    Ok(())
}

/// One container that is started, looked at and stopped.
pub(crate) fn life(
    subjects: &Subjects<'_>,
    subject: Subject,
    groups: &[Group],
    to: &mut Values,
) -> Result<()> {
    let idle = subjects.run(subject, &["sleep", "1000"]);
    let (container, took) = timed(|| idle.start())?;
    to.add(metric::ONE, subject, took.as_secs_f64());
    if subject == Subject::Kata {
        to.add(metric::WORK, subject, work_of(subjects)?);
    }
    let has = |group| groups.contains(&group);
    if has(Group::Exec) {
        // The first one of a container is not counted.
        container.exec(["true"]).output()?.success()?;
        let exec = container.exec(["true"]);
        let ((), took) = timed(|| exec.output()?.success().map(drop))?;
        to.add(metric::EXEC, subject, took.as_secs_f64());
    }
    if subject != Subject::Kata {
        return stop(subjects, subject, container, to);
    }
    if has(Group::Timeline) {
        record_timeline(&container, PARTS, to)?;
    }
    let recipe = recipe(subjects)?;
    stop(subjects, subject, container, to)?;
    if has(Group::Start) {
        let directory = subjects.containerd().directory();
        let boot = floor::measure(&recipe, directory)?;
        to.add(metric::RUN, Subject::Floor, boot.whole.as_secs_f64());
        add_boot(Subject::Floor, &boot, to);
        let distributions = recipe.with_kernel(&GuestKernel::Distribution.vmlinux());
        add_boot(Subject::Distribution, &floor::measure(&distributions, directory)?, to);
    }
    Ok(())
}

/// What the sandbox's processes have kept processors busy with so far, in seconds: where it is more
/// than the time of the start, starts at once cannot share the processors without loss.
fn work_of(subjects: &Subjects<'_>) -> Result<f64> {
    let mut all = Duration::ZERO;
    for part in [Part::Vmm, Part::FileServer, Part::Shim] {
        for process in parts_of(subjects.containerd().mark(), part)? {
            all += process.processor_time()?;
        }
    }
    Ok(all.as_secs_f64())
}

fn add_boot(subject: Subject, boot: &Boot, to: &mut Values) {
    to.add(metric::BOOT, subject, boot.whole.as_secs_f64());
    if let Some(kernel) = boot.kernel {
        to.add(metric::TO_INIT, subject, kernel.as_secs_f64());
    }
}

/// How a sandbox that runs has its QEMU started.
fn recipe(subjects: &Subjects<'_>) -> Result<Recipe> {
    let vmms = parts_of(subjects.containerd().mark(), Part::Vmm)?;
    Recipe::of(vmms.first().context("there is no QEMU")?)
}

fn record_timeline(
    container: &Container<'_>,
    parts: &[(Metric, Stage, Stage)],
    to: &mut Values,
) -> Result<()> {
    let timeline = Timeline::load(&std::path::Path::new(SANDBOXES).join(container.id()))?;
    for &(metric, from, until) in parts {
        if let Some(took) = timeline.between(from, until) {
            to.add(metric, Subject::Kata, took.as_secs_f64() * 1000.0);
        }
    }
    Ok(())
}

/// `ctr task delete --force`, until the last of its processes on the host is gone.
fn stop(
    subjects: &Subjects<'_>,
    subject: Subject,
    container: Container<'_>,
    to: &mut Values,
) -> Result<()> {
    let containerd = subjects.containerd();
    let mut processes = Vec::new();
    for part in [Part::Vmm, Part::FileServer, Part::Shim, Part::Gvisor] {
        processes.extend(parts_of(containerd.mark(), part)?);
    }
    let (deleted, took) = timed(|| {
        let deleted = containerd.ctr(["task", "delete", "--force", container.id()])?;
        for process in &processes {
            ensure!(process.ends(Deadline::for_command())?, "{} stays", process.describe());
        }
        Ok(deleted)
    })?;
    ensure!(container.status()?.is_none(), "the task is still there: {deleted}");
    container.remove()?;
    to.add(metric::STOP, subject, took.as_secs_f64());
    Ok(())
}

/// `count` starts at once, until the last one is ready; and with ten under kata, what machines that
/// boot at once cost each other.
pub(crate) fn burst(
    subjects: &Subjects<'_>,
    subject: Subject,
    (metric, count): (Metric, usize),
    to: &mut Values,
) -> Result<()> {
    let runs = (0..count).map(|_| subjects.run(subject, &["sleep", "1000"]));
    let start = Instant::now();
    let starting = runs.map(|run| run.starting()).collect::<Result<Vec<_>>>()?;
    let containers = starting.into_iter().map(|(client, container)| {
        client.wait()?.success()?;
        Ok(container)
    });
    let containers = containers.collect::<Result<Vec<_>>>()?;
    to.add(metric, subject, start.elapsed().as_secs_f64());
    if subject != Subject::Kata || metric != metric::TEN {
        return containers.into_iter().try_for_each(Container::remove);
    }
    containers.iter().try_for_each(|one| record_timeline(one, PARTS_OF_MANY, to))?;
    let recipe = recipe(subjects)?;
    containers.into_iter().try_for_each(Container::remove)?;
    let cores = thread::available_parallelism()?.get();
    let took = floor::measure_many(&recipe, subjects.containerd().directory(), cores)?;
    to.add(metric::FLOORS, Subject::Floor, took.as_secs_f64());
    Ok(())
}
