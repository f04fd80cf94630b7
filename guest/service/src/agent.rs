//! The agent: what all requests share.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use kata_guest_setup::boot::Clocks;
use kata_guest_setup::reaper::Reaper;
use tokio::sync::{mpsc, watch};

use crate::sandbox::{Sandbox, lock};
use crate::shell;

/// Out-of-memory events that wait for the host; more are not remembered.
const OOM_BACKLOG: usize = 64;

/// What the agent was told when it was started.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Size of a container's pipes in bytes; `None` leaves the kernel's.
    pub pipe_size: Option<u32>,
    /// How long a device may take to appear.
    pub hotplug_timeout: Duration,
    /// Whether the agent is PID 1.
    pub is_init: bool,
    /// The agent's first instruction.
    pub started: Clocks,
    /// The machine was set up, on the kernel's clock.
    pub ready: Duration,
}

/// The state behind the services.
///
/// The sandbox sits behind a mutex, not in a task of its own, because the server runs every request
/// as a task and most look at it once. It is never held across an await, and the agent has one
/// thread, so it is never contended. Who waits for longer than a request shares it.
#[derive(Debug)]
pub struct Agent {
    pub(crate) settings: Settings,
    pub(crate) reaper: Reaper,
    sandbox: Arc<Mutex<Sandbox>>,
    pub(crate) oom_sender: mpsc::Sender<String>,
    /// Asynchronous, for it is held while the host waits for an event.
    pub(crate) oom_events: tokio::sync::Mutex<mpsc::Receiver<String>>,
    destroyed: watch::Sender<bool>,
    /// The size of debug consoles.
    pub(crate) console_size: watch::Sender<shell::Size>,
}

impl Agent {
    /// An agent without a sandbox. `reaper` must be running. Hides this process from the containers
    /// to come.
    ///
    /// # Errors
    ///
    /// Fails when the kernel does not let the process hide, which no known one does.
    pub fn new(settings: Settings, reaper: Reaper) -> std::io::Result<Self> {
        kata_guest_container::fork::hide()?;
        let (oom_sender, oom_events) = mpsc::channel(OOM_BACKLOG);
        Ok(Self {
            settings,
            reaper,
            sandbox: Arc::default(),
            oom_sender,
            oom_events: tokio::sync::Mutex::new(oom_events),
            destroyed: watch::Sender::new(false),
            console_size: watch::Sender::new(None),
        })
    }

    /// Returns when the host has destroyed the sandbox.
    pub async fn destroyed(&self) {
        // The sender lives as long as this value, so this does not fail.
        let _ = self.destroyed.subscribe().wait_for(|destroyed| *destroyed).await;
    }

    pub(crate) fn destroy(&self) {
        self.destroyed.send_replace(true);
    }

    pub(crate) fn sandbox(&self) -> MutexGuard<'_, Sandbox> {
        lock(&self.sandbox)
    }

    /// As above, for a task.
    pub(crate) fn shared_sandbox(&self) -> Arc<Mutex<Sandbox>> {
        Arc::clone(&self.sandbox)
    }

    /// The status that child `pid` ends with, as a shell puts it.
    pub(crate) fn exit_of(&self, pid: i32) -> watch::Receiver<Option<i32>> {
        let (sender, exit) = watch::channel(None);
        let status = self.reaper.claim(pid);
        tokio::spawn(async move {
            if let Some(status) = status.await {
                sender.send_replace(Some(status.code()));
            }
        });
        exit
    }
}
