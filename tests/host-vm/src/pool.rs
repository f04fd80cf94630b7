//! Machines that share jobs.
//!
//! ```text
//!   jobs ──▶ queue ─┬─▶ thread: machine ── a job at a time, up to three times ─▶ its output in one piece
//!                   └─▶ thread: machine ── …
//! ```
//!
//! Two machines of one processor each do more than one of two: the emulation's locks are not
//! shared, and what its processors do at the same time cannot race.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::Result;

use crate::disk::Disk;
use crate::image::HostImage;
use crate::machine::{Died, Machine, Silent};

/// Machines at a time.
const MACHINES: usize = 2;

/// How often a job may run until it counts as failed. Emulated guests were seen to hang, and to
/// reset themselves at their kernel's first instructions; who is to blame cannot be told for sure.
const TRIES: u32 = 3;

/// How much of a machine's log is shown when a job has failed.
const LOG_LINES: usize = 40;

/// A shell command, of one line, for a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// What it is called where it is told of.
    pub name: String,
    /// Its exit status is 0 where all is well.
    pub command: String,
    /// How many processors its machine must have, at least one; more than one where it would leave
    /// something out otherwise.
    pub processors: u32,
}

/// Runs jobs on machines that have the files and directories `paths`, and prints what they say.
/// Returns whether all were well in the end. Each new try is on a new machine, and all that took
/// more than one are named in the end.
///
/// # Errors
/// A machine that cannot be made. Then no further job begins.
pub fn run(image: &HostImage, paths: Vec<PathBuf>, jobs: Vec<Job>) -> Result<bool> {
    let disk = Arc::new(Disk::of(paths)?);
    let count = MACHINES.min(jobs.len());
    // Who is alone need not wait until it is complete.
    let at_once = count == 1;
    let queue = Mutex::new(jobs.into_iter());
    let queue = || queue.lock().unwrap_or_else(PoisonError::into_inner);
    let next = || queue().next();
    let ends: Vec<Result<Vec<(String, u32)>>> = thread::scope(|scope| {
        let run = || -> Result<Vec<(String, u32)>> {
            let mut worker = Worker { image, disk: Arc::clone(&disk), machine: None, at_once };
            let mut tries = Vec::new();
            while let Some(job) = next() {
                let end = worker.tries(&job);
                if end.is_err() {
                    queue().by_ref().for_each(drop);
                }
                tries.push((job.name, end?));
            }
            Ok(tries)
        };
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(run)).collect();
        let ended = threads.into_iter().map(thread::ScopedJoinHandle::join);
        ended.map(|end| end.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    let mut well = true;
    for (name, tries) in ends.into_iter().collect::<Result<Vec<_>>>()?.concat() {
        match tries {
            0 => println!("{name} has failed {TRIES} times"),
            1 => {}
            tries => println!("{name} has passed at the {tries}. try only"),
        }
        well &= tries > 0;
    }
    Ok(well)
}

struct Worker<'a> {
    image: &'a HostImage,
    disk: Arc<Disk>,
    /// With how many processors it has.
    machine: Option<(u32, Machine)>,
    at_once: bool,
}

impl Worker<'_> {
    /// Which of a job's tries was well; 0 for none.
    fn tries(&mut self, job: &Job) -> Result<u32> {
        for number in 1..=TRIES {
            let started = Instant::now();
            let mut output = Output { at_once: self.at_once, text: String::new() };
            println!("began: {}", job.name);
            output.line(&format!("\n     Running {} in a host VM", job.name));
            let well = match self.once(job, &mut output) {
                Ok(well) => well,
                Err(error) => {
                    output.end();
                    return Err(error);
                }
            };
            let end = match (well, number) {
                (true, 1) => "passed".to_owned(),
                (true, _) => format!("passed at the {number}. try"),
                (false, TRIES) => "failed for good".to_owned(),
                (false, _) => format!("failed at the {number}. try; once more, on a new machine"),
            };
            output.line(&format!("{} {end}: {} s", job.name, started.elapsed().as_secs()));
            output.end();
            if well {
                return Ok(number);
            }
            self.machine = None;
        }
        Ok(0)
    }

    fn once(&mut self, job: &Job, output: &mut Output) -> Result<bool> {
        let processors = job.processors;
        let (_, machine) = match &mut self.machine {
            Some(machine) if machine.0 == processors => machine,
            other => {
                // Two would take memory for two.
                *other = None;
                match Machine::boot(self.image, Arc::clone(&self.disk), processors) {
                    Ok(machine) => other.insert((processors, machine)),
                    Err(error) => return said(Err(error), output),
                }
            }
        };
        let status = match machine.run(&job.command, |line| output.line(line)) {
            Ok(0) => return Ok(true),
            Ok(_) => machine.run("dmesg | tail -n 20", |line| output.line(line)),
            Err(error) => Err(error),
        };
        output.line(&format!("the host VM's last words:\n{}", machine.last_words(LOG_LINES)));
        if status.as_ref().is_err_and(anyhow::Error::is::<Silent>) {
            output.line(&format!("what runs there:\n{}", machine.processes()));
        }
        said(status, output)
    }
}

/// That a job has failed, or its machine, which is told. Any other error is for whoever runs this.
fn said(status: Result<i32>, output: &mut Output) -> Result<bool> {
    match status {
        Ok(_) => Ok(false),
        Err(error) if error.is::<Died>() || error.is::<Silent>() => {
            output.line(&format!("{error:#}"));
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// What a job says: at once, or in one piece, so that two jobs do not mix.
struct Output {
    at_once: bool,
    text: String,
}

impl Output {
    fn line(&mut self, line: &str) {
        if self.at_once {
            println!("{line}");
        } else {
            self.text += line;
            self.text.push('\n');
        }
    }

    fn end(self) {
        if !self.at_once {
            print!("{}", self.text);
        }
    }
}
