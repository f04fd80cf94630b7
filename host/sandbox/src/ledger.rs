//! Who is in the sandbox and how far each process has come: pure bookkeeping, no I/O.
//!
//! ```text
//!   add ──▶ Creating ──created──▶ Created ──begin_start──▶ Starting ──started──▶ Running ──exited──▶ Ending ──released──▶ Stopped
//!                                    ▲                        │                   pause │ resume
//!                                    └──────start_failed──────┘                       Paused
//! ```
//!
//! `remove` is possible everywhere, and `begin_delete` says when it is right. An exec is born
//! Created, and one whose start has failed is not started again. Two promises hold whatever the
//! order of calls, and are tested so: an exit is released exactly once for each process, and an
//! init's exit is released only after those of its execs, as containerd asks of a shim.

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use thiserror::Error;

/// A process of the sandbox: a container's init, or one that was added to it by exec.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessKey {
    /// The container's id.
    pub container: String,
    /// The exec's id, unique within its container; `None` is the init process.
    pub exec: Option<String>,
}

impl ProcessKey {
    /// The init process of a container.
    #[must_use]
    pub fn init(container: &str) -> Self {
        Self { container: container.to_owned(), exec: None }
    }

    /// A process that was added to a container.
    #[must_use]
    pub fn exec(container: &str, exec: &str) -> Self {
        Self { container: container.to_owned(), exec: Some(exec.to_owned()) }
    }
}

impl fmt::Display for ProcessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.exec {
            Some(exec) => write!(f, "process {exec} of container {}", self.container),
            None => write!(f, "container {}", self.container),
        }
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The exit status; 128 + n when signal n ended it.
    pub status: u32,
    /// When the host learned of it.
    pub at: SystemTime,
}

impl Exit {
    /// The end of a process that was killed, or whose VM was: 128 + SIGKILL.
    #[must_use]
    pub fn killed() -> Self {
        Self { status: 137, at: SystemTime::now() }
    }
}

/// What can be said of a process to the outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Made, not started.
    Created,
    /// Running.
    Running,
    /// Its container is frozen.
    Paused,
    /// Ended, not yet deleted.
    Stopped(Exit),
}

/// Why a request does not fit the state. The texts are runc's and containerd's, since their callers
/// match on them.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// No such process.
    #[error("{0} does not exist: not found")]
    NotFound(ProcessKey),
    /// The id is taken.
    #[error("{0} already exists")]
    AlreadyExists(ProcessKey),
    /// It has ended.
    #[error("process already finished: {0}: not found")]
    AlreadyFinished(ProcessKey),
    /// It is in a state in which this cannot be done.
    #[error("cannot {action} {key}: it is {state}")]
    WrongState {
        /// What was asked.
        action: &'static str,
        /// Of which process.
        key: ProcessKey,
        /// Its state in a word.
        state: &'static str,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Creating,
    Created,
    Starting,
    /// An exec that could not be started.
    Failed,
    Running,
    /// The guest has reported the end, but it is not released yet: execs of the same container come
    /// first.
    Ending(Exit),
    Stopped(Exit),
}

impl Phase {
    fn word(self) -> &'static str {
        match self {
            Self::Creating => "being created",
            Self::Created => "created",
            Self::Starting => "being started",
            Self::Failed => "a process that could not be started",
            Self::Running | Self::Ending(_) => "running",
            Self::Stopped(_) => "stopped",
        }
    }

    /// Of an init: whether its container can be frozen, and take more processes. Before it is
    /// started it can, too, as with runc.
    fn takes_more(self) -> bool {
        matches!(self, Self::Created | Self::Running)
    }

    fn is_alive(self) -> bool {
        matches!(self, Self::Starting | Self::Running)
    }
}

#[derive(Debug)]
struct Container {
    init: Phase,
    paused: bool,
    /// Somebody deletes it.
    leaves: bool,
    /// Whether the guest has told that memory was wanting.
    out_of_memory: bool,
    execs: BTreeMap<String, Phase>,
}

/// What a deletion that may begin has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deletion {
    /// How the process ended; `None` if it never ran.
    pub exit: Option<Exit>,
    /// Whether no container stays but those whose deletion has begun, too.
    pub empties_sandbox: bool,
}

/// The processes of one sandbox.
#[derive(Debug, Default)]
pub struct Ledger {
    containers: BTreeMap<String, Container>,
}

type Released = Vec<(ProcessKey, Exit)>;

impl Ledger {
    /// Enters a process: a container's init as being created, an exec as created.
    pub fn add(&mut self, key: &ProcessKey) -> Result<(), Refusal> {
        let Some(exec) = &key.exec else {
            if self.containers.contains_key(&key.container) {
                return Err(Refusal::AlreadyExists(key.clone()));
            }
            let container = Container {
                init: Phase::Creating,
                paused: false,
                leaves: false,
                out_of_memory: false,
                execs: BTreeMap::new(),
            };
            self.containers.insert(key.container.clone(), container);
            return Ok(());
        };
        let container = self.container_mut(key)?;
        if container.execs.contains_key(exec) {
            return Err(Refusal::AlreadyExists(key.clone()));
        }
        if !container.init.takes_more() || container.paused {
            let state = if container.paused { "paused" } else { container.init.word() };
            let key = ProcessKey::init(&key.container);
            return Err(Refusal::WrongState { action: "exec in", key, state });
        }
        container.execs.insert(exec.clone(), Phase::Created);
        Ok(())
    }

    /// The guest has made the container.
    pub fn created(&mut self, key: &ProcessKey) {
        if let Ok(phase @ Phase::Creating) = self.phase_mut(key) {
            *phase = Phase::Created;
        }
    }

    /// Asks whether the process may be started, and marks it as being started.
    pub fn begin_start(&mut self, key: &ProcessKey) -> Result<(), Refusal> {
        let paused = self.container(key)?.paused;
        match self.phase_mut(key)? {
            _ if paused => {
                Err(Refusal::WrongState { action: "start", key: key.clone(), state: "paused" })
            }
            phase @ Phase::Created => {
                *phase = Phase::Starting;
                Ok(())
            }
            phase => {
                Err(Refusal::WrongState { action: "start", key: key.clone(), state: phase.word() })
            }
        }
    }

    /// The guest has started it. False when its end is known already: its container has ended
    /// meanwhile.
    #[must_use]
    pub fn started(&mut self, key: &ProcessKey) -> bool {
        match self.phase_mut(key) {
            Ok(phase @ Phase::Starting) => {
                *phase = Phase::Running;
                true
            }
            _ => false,
        }
    }

    /// The guest could not start it. An init is as before; an exec, whose streams are used up, can
    /// only be deleted.
    pub fn start_failed(&mut self, key: &ProcessKey) {
        if let Ok(phase @ Phase::Starting) = self.phase_mut(key) {
            *phase = if key.exec.is_some() { Phase::Failed } else { Phase::Created };
        }
    }

    /// Enters a process's end, and returns the exits that may be told now, in the order in which to
    /// tell them. Empty when the end was known already, or is held back until the container's execs
    /// have ended.
    pub fn exited(&mut self, key: &ProcessKey, exit: Exit) -> Released {
        match self.phase_mut(key) {
            Ok(phase) if !matches!(phase, Phase::Ending(_) | Phase::Stopped(_)) => {
                *phase = Phase::Ending(exit);
            }
            _ => return Released::new(),
        }
        self.release(&key.container)
    }

    /// Declares every exec of the container that still lives as killed, so that its init's exit is
    /// held back no longer.
    pub fn kill_remaining(&mut self, container: &str, exit: Exit) -> Released {
        if let Some(entry) = self.containers.get_mut(container) {
            for phase in entry.execs.values_mut().filter(|phase| phase.is_alive()) {
                *phase = Phase::Ending(exit);
            }
        }
        self.release(container)
    }

    /// The VM is gone: everything that has not ended has been killed.
    pub fn kill_all(&mut self, exit: Exit) -> Released {
        let mut released = Released::new();
        let names: Vec<String> = self.containers.keys().cloned().collect();
        for name in names {
            if let Some(container) = self.containers.get_mut(&name) {
                for phase in container.execs.values_mut().chain([&mut container.init]) {
                    if !matches!(phase, Phase::Ending(_) | Phase::Stopped(_)) {
                        *phase = Phase::Ending(exit);
                    }
                }
            }
            released.extend(self.release(&name));
        }
        released
    }

    /// Whether any exec of the container is alive.
    #[must_use]
    pub fn has_live_execs(&self, container: &str) -> bool {
        self.containers
            .get(container)
            .is_some_and(|container| container.execs.values().any(|phase| phase.is_alive()))
    }

    /// Asks whether the container may be frozen.
    pub fn may_pause(&self, container: &str) -> Result<(), Refusal> {
        self.expect_alive(container, false, "pause")
    }

    /// Asks whether the container may be thawed.
    pub fn may_resume(&self, container: &str) -> Result<(), Refusal> {
        self.expect_alive(container, true, "resume")
    }

    /// The guest has frozen or thawed the container.
    pub fn set_paused(&mut self, container: &str, paused: bool) {
        if let Some(container) = self.containers.get_mut(container) {
            container.paused = paused;
        }
    }

    /// Enters that the guest's kernel has killed a process of the container for want of memory.
    /// False when that is no news: the container is unknown, or has ended with it known.
    pub fn ran_out_of_memory(&mut self, container: &str) -> bool {
        let Some(container) = self.containers.get_mut(container) else { return false };
        let is_first = !std::mem::replace(&mut container.out_of_memory, true);
        is_first || !matches!(container.init, Phase::Ending(_) | Phase::Stopped(_))
    }

    /// Whether the guest's kernel has killed a process of the container for want of memory.
    #[must_use]
    pub fn is_out_of_memory(&self, container: &str) -> bool {
        self.containers.get(container).is_some_and(|container| container.out_of_memory)
    }

    /// Asks whether the process can get a signal now.
    pub fn may_signal(&self, key: &ProcessKey) -> Result<(), Refusal> {
        match self.phase(key)? {
            Phase::Running | Phase::Starting => Ok(()),
            Phase::Created if key.exec.is_none() => Ok(()),
            Phase::Ending(_) | Phase::Stopped(_) => Err(Refusal::AlreadyFinished(key.clone())),
            phase => {
                Err(Refusal::WrongState { action: "signal", key: key.clone(), state: phase.word() })
            }
        }
    }

    /// Whether the guest is making or starting the process right now.
    #[must_use]
    pub fn is_on_its_way(&self, key: &ProcessKey) -> bool {
        matches!(self.phase(key), Ok(Phase::Creating | Phase::Starting))
    }

    /// Whether the process waits to be started.
    #[must_use]
    pub fn is_created(&self, key: &ProcessKey) -> bool {
        matches!(self.phase(key), Ok(Phase::Created))
    }

    /// Asks whether the process may be deleted, and marks its container as leaving if it is an
    /// init. A deletion that was not brought to its end may begin again.
    pub fn begin_delete(&mut self, key: &ProcessKey) -> Result<Deletion, Refusal> {
        let exit = match self.phase(key)? {
            Phase::Stopped(exit) => Some(exit),
            Phase::Created | Phase::Failed => None,
            phase => {
                let (key, state) = (key.clone(), phase.word());
                return Err(Refusal::WrongState { action: "delete", key, state });
            }
        };
        if key.exec.is_none() {
            self.container_mut(key)?.leaves = true;
        }
        let empties_sandbox = self.containers.values().all(|container| container.leaves);
        Ok(Deletion { exit, empties_sandbox })
    }

    /// Forgets a process; with an init, its container's execs as well.
    pub fn remove(&mut self, key: &ProcessKey) {
        match &key.exec {
            None => {
                self.containers.remove(&key.container);
            }
            Some(exec) => {
                if let Some(container) = self.containers.get_mut(&key.container) {
                    container.execs.remove(exec);
                }
            }
        }
    }

    /// What can be said of the process.
    pub fn status(&self, key: &ProcessKey) -> Result<Status, Refusal> {
        let paused = self.container(key)?.paused;
        Ok(match self.phase(key)? {
            Phase::Created | Phase::Running | Phase::Ending(_) if paused => Status::Paused,
            Phase::Creating | Phase::Created | Phase::Starting | Phase::Failed => Status::Created,
            Phase::Running | Phase::Ending(_) => Status::Running,
            Phase::Stopped(exit) => Status::Stopped(exit),
        })
    }

    /// The ids of the execs of a container that are alive.
    #[must_use]
    pub fn live_execs(&self, container: &str) -> Vec<String> {
        let Some(container) = self.containers.get(container) else { return Vec::new() };
        container
            .execs
            .iter()
            .filter(|(_, phase)| phase.is_alive())
            .map(|(id, _)| id.clone())
            .collect()
    }

    /// How many containers there are, whatever their state.
    #[must_use]
    pub fn len(&self) -> usize {
        self.containers.len()
    }

    /// Whether no container is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.containers.is_empty()
    }

    fn release(&mut self, name: &str) -> Released {
        let mut released = Released::new();
        let Some(container) = self.containers.get_mut(name) else { return released };
        for (exec, phase) in &mut container.execs {
            if let Phase::Ending(exit) = *phase {
                *phase = Phase::Stopped(exit);
                released.push((ProcessKey::exec(name, exec), exit));
            }
        }
        let waits_for_execs = container.execs.values().any(|phase| phase.is_alive());
        if let (Phase::Ending(exit), false) = (container.init, waits_for_execs) {
            container.init = Phase::Stopped(exit);
            container.paused = false;
            released.push((ProcessKey::init(name), exit));
        }
        released
    }

    fn expect_alive(&self, name: &str, paused: bool, action: &'static str) -> Result<(), Refusal> {
        let key = ProcessKey::init(name);
        let container = self.container(&key)?;
        if container.init.takes_more() && container.paused == paused {
            return Ok(());
        }
        let state = if container.paused { "paused" } else { container.init.word() };
        Err(Refusal::WrongState { action, key, state })
    }

    fn container(&self, key: &ProcessKey) -> Result<&Container, Refusal> {
        self.containers.get(&key.container).ok_or_else(|| Refusal::NotFound(key.clone()))
    }

    fn container_mut(&mut self, key: &ProcessKey) -> Result<&mut Container, Refusal> {
        self.containers.get_mut(&key.container).ok_or_else(|| Refusal::NotFound(key.clone()))
    }

    fn phase(&self, key: &ProcessKey) -> Result<Phase, Refusal> {
        let container = self.container(key)?;
        let phase = match &key.exec {
            None => Some(&container.init),
            Some(exec) => container.execs.get(exec),
        };
        phase.copied().ok_or_else(|| Refusal::NotFound(key.clone()))
    }

    fn phase_mut(&mut self, key: &ProcessKey) -> Result<&mut Phase, Refusal> {
        let container = self.container_mut(key)?;
        match &key.exec {
            None => Ok(&mut container.init),
            Some(exec) => {
                container.execs.get_mut(exec).ok_or_else(|| Refusal::NotFound(key.clone()))
            }
        }
    }
}

#[cfg(test)]
mod tests;
