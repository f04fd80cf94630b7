//! A container as the service knows it: its plan, its processes and whether it runs.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kata_guest_container::process::Process;
use kata_guest_container::spec::Plan;
use tokio::task::AbortHandle;

/// Where a container is in its life.
///
/// ```text
///  Created ──StartContainer──▶ Running
///     ▲                           ▲
///     │ Pause/Resume              │ Pause/Resume
///     ▼                           ▼
///  Paused { started: false }   Paused { started: true }
/// ```
///
/// That its init has ended is not a phase: the init's status says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Its init waits.
    Created,
    /// Its init runs, or has run.
    Running,
    /// All its processes are frozen.
    Paused {
        /// Whether its init had been let run before.
        started: bool,
    },
}

/// Whose process ids a container sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pids {
    /// Its own, and nobody else's.
    Own,
    /// The sandbox's, which are its first container's.
    Sandbox,
    /// Those of another container that has its own.
    Another,
}

/// How a process has ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    /// Its exit code, or 128 and the number of the signal that killed it.
    pub(crate) status: i32,
    /// Whether it was a container's init, and the kernel had killed a process of the container for
    /// want of memory.
    pub(crate) out_of_memory: bool,
}

/// A container. Its parts that change sit behind a mutex because several requests at a time look at
/// them; it is never held across an await, and the agent has one thread, so it is never contended.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) plan: Plan,
    pub(crate) pids: Pids,
    pub(crate) init: Arc<Process>,
    /// Mount points of its own storages.
    pub(crate) storages: Vec<PathBuf>,
    changing: Mutex<Changing>,
    /// Held while it is frozen or thawed, which may take a while: one at a time, in the order in
    /// which that was asked for.
    pub(crate) freezing: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Changing {
    phase: Phase,
    /// By exec id; `None` while one is being made.
    execs: HashMap<String, Option<Exec>>,
    /// Whether a task waits for its last process to die, to take it away then.
    mourned: bool,
    /// What listens for the out-of-memory killer, if anything does.
    oom_watch: Option<OomTask>,
}

/// A task that ends with this value. It would not end by itself: the guest's kernel tells nobody
/// that a cgroup's files are gone. And each has one of the few inotify instances that a user may
/// have (`fs.inotify.max_user_instances`), the containers' root among them.
#[derive(Debug)]
pub(crate) struct OomTask(pub(crate) AbortHandle);

impl Drop for OomTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Debug)]
struct Exec {
    process: Arc<Process>,
    /// Whether somebody has been told its status.
    waited: bool,
}

impl Container {
    pub(crate) fn new(
        id: &str,
        plan: Plan,
        pids: Pids,
        init: Process,
        storages: Vec<PathBuf>,
    ) -> Self {
        let changing = Changing {
            phase: Phase::Created,
            execs: HashMap::new(),
            mourned: false,
            oom_watch: None,
        };
        Self {
            id: id.to_owned(),
            plan,
            pids,
            init: Arc::new(init),
            storages,
            changing: Mutex::new(changing),
            freezing: tokio::sync::Mutex::default(),
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.lock().phase
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        self.lock().phase = phase;
    }

    /// Whether `exec_id` means the init: nothing, or the container's own id.
    pub(crate) fn is_init(&self, exec_id: &str) -> bool {
        exec_id.is_empty() || exec_id == self.id
    }

    /// The process with this exec id, if it is known.
    pub(crate) fn process(&self, exec_id: &str) -> Option<Arc<Process>> {
        if self.is_init(exec_id) {
            return Some(Arc::clone(&self.init));
        }
        let changing = self.lock();
        let exec = changing.execs.get(exec_id)?.as_ref()?;
        Some(Arc::clone(&exec.process))
    }

    /// Takes an exec id for a process that is about to be made. Whether it was free: the id of a
    /// process whose status has been asked for is.
    pub(crate) fn reserve(&self, exec_id: &str) -> bool {
        let mut changing = self.lock();
        let taken = match changing.execs.get(exec_id) {
            Some(Some(exec)) => !exec.waited,
            Some(None) => true,
            None => self.is_init(exec_id),
        };
        if !taken {
            changing.execs.insert(exec_id.to_owned(), None);
        }
        !taken
    }

    /// Fills or gives back what [`Container::reserve`] took.
    pub(crate) fn settle(&self, exec_id: &str, process: Option<Process>) {
        let mut changing = self.lock();
        match process {
            Some(process) => {
                let exec = Exec { process: Arc::new(process), waited: false };
                changing.execs.insert(exec_id.to_owned(), Some(exec));
            }
            None => drop(changing.execs.remove(exec_id)),
        }
    }

    /// Notes that somebody was told the status of this process. It is forgotten once its output has
    /// been read to the end too, which may come later: nothing of it must be lost.
    pub(crate) fn waited(&self, exec_id: &str) {
        let mut changing = self.lock();
        if let Some(Some(exec)) = changing.execs.get_mut(exec_id) {
            exec.waited = true;
        }
        changing.forget_finished(exec_id);
    }

    /// Notes that a stream of this process may have ended.
    pub(crate) fn read_to_end(&self, exec_id: &str) {
        self.lock().forget_finished(exec_id);
    }

    /// Notes that a task waits for its last process to die; false if one does already.
    pub(crate) fn mourn(&self) -> bool {
        !std::mem::replace(&mut self.lock().mourned, true)
    }

    /// Keeps what listens for the out-of-memory killer; `None` ends it.
    pub(crate) fn set_oom_watch(&self, watch: Option<OomTask>) {
        self.lock().oom_watch = watch;
    }

    fn lock(&self) -> MutexGuard<'_, Changing> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Changing {
    fn forget_finished(&mut self, exec_id: &str) {
        let finished = matches!(self.execs.get(exec_id), Some(Some(exec))
            if exec.waited && exec.process.stdio().output_ended());
        if finished {
            self.execs.remove(exec_id);
        }
    }
}
