//! What is measured, and how.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kata_e2e::{Container, Containerd, Deadline, Part, Runtime, parts_of};

use crate::floor::{self, Recipe};

/// All that was measured, one value a round each.
#[derive(Debug, Default)]
pub(crate) struct Measurements {
    pub(crate) floor: Vec<Duration>,
    pub(crate) run_kata: Vec<Duration>,
    pub(crate) run_runc: Vec<Duration>,
    pub(crate) exec_kata: Vec<Duration>,
    pub(crate) exec_runc: Vec<Duration>,
    pub(crate) delete_kata: Vec<Duration>,
    pub(crate) delete_runc: Vec<Duration>,
    /// Of the shim, with one container running.
    pub(crate) shim_kib: Vec<u64>,
}

/// One of everything.
pub(crate) fn round(containerd: &Containerd, to: &mut Measurements) -> Result<()> {
    to.run_runc.push(run(containerd, Runtime::Runc)?);
    to.run_kata.push(run(containerd, Runtime::Kata)?);

    let reference = containerd.run(["sleep", "1000"]).under(Runtime::Runc).start()?;
    to.exec_runc.push(exec(&reference)?);
    to.delete_runc.push(delete(containerd, reference)?);

    let tested = containerd.run(["sleep", "1000"]).under(Runtime::Kata).start()?;
    to.exec_kata.push(exec(&tested)?);
    let shims = parts_of(containerd.mark(), Part::Shim)?;
    let shim = shims.first().context("there is no shim")?;
    to.shim_kib.push(shim.resident_kib()?);
    let vmms = parts_of(containerd.mark(), Part::Vmm)?;
    let recipe = Recipe::of(vmms.first().context("there is no QEMU")?)?;
    to.delete_kata.push(delete(containerd, tested)?);

    to.floor.push(floor::measure(&recipe, containerd.directory())?);
    Ok(())
}

/// `ctr run --rm … true`, from its start to its end.
fn run(containerd: &Containerd, runtime: Runtime) -> Result<Duration> {
    let run = containerd.run(["true"]).under(runtime);
    let start = Instant::now();
    run.output()?.success()?;
    Ok(start.elapsed())
}

/// `ctr task exec … true`; the first one of a container is not counted.
fn exec(container: &Container<'_>) -> Result<Duration> {
    container.exec(["true"]).output()?.success()?;
    let exec = container.exec(["true"]);
    let start = Instant::now();
    exec.output()?.success()?;
    Ok(start.elapsed())
}

/// `ctr task delete --force` of a running container, until the last of its processes on the host is gone.
fn delete(containerd: &Containerd, container: Container<'_>) -> Result<Duration> {
    let mut processes = parts_of(containerd.mark(), Part::Vmm)?;
    processes.extend(parts_of(containerd.mark(), Part::FileServer)?);
    processes.extend(parts_of(containerd.mark(), Part::Shim)?);
    let start = Instant::now();
    let deleted = containerd.ctr(["task", "delete", "--force", container.id()])?;
    for process in &processes {
        ensure!(process.ends(Deadline::for_command())?, "{} stays", process.describe());
    }
    let elapsed = start.elapsed();
    ensure!(container.status()?.is_none(), "the task is still there: {deleted}");
    container.remove()?;
    Ok(elapsed)
}
