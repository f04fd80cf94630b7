//! Which event each thing that happens to a process is to containerd.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kata_sandbox::{EventSink, Exit, ProcessKey, SandboxEvent};
use kata_shim_api::api::CreateTaskRequest;
use kata_shim_api::events::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskOOM, TaskPaused,
    TaskResumed, TaskStart,
};
use kata_shim_api::timestamp;
use rustix::fs::{Mode, OFlags, open};
use tokio::sync::watch;

use super::Publisher;

/// Publishes what happens in one sandbox.
#[derive(Debug)]
pub(crate) struct TaskEvents {
    publisher: Publisher,
    /// The pid that stands for every process of the sandbox on the host; 0 until it is known.
    pid: AtomicU32,
    /// How often each container that is not deleted has been told to be out of memory.
    out_of_memory: watch::Sender<HashMap<String, u64>>,
    /// The files that say so to an engine that looks for them.
    // A mutex and not a channel: a look-up that is never held over an await.
    files: Mutex<HashMap<String, PathBuf>>,
}

/// The file in a container's bundle that tells CRI-O that memory was wanting (CRI-O,
/// internal/oci/runtime_vm.go). Its conmon writes it for other kinds of runtimes.
const OUT_OF_MEMORY: &str = "oom";

impl TaskEvents {
    pub(crate) fn new(publisher: Publisher) -> Self {
        Self {
            publisher,
            pid: AtomicU32::new(0),
            out_of_memory: watch::Sender::default(),
            files: Mutex::default(),
        }
    }

    /// Has the container's engine find a file in the bundle once memory was wanting.
    pub(crate) fn tell_by_file(&self, container: &str, bundle: &Path) {
        self.files().insert(container.to_owned(), bundle.join(OUT_OF_MEMORY));
    }

    fn files(&self) -> MutexGuard<'_, HashMap<String, PathBuf>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves when the container has been told to be out of memory more than `known` times, with
    /// how often. Never, if it is not any more.
    pub(crate) async fn out_of_memory_beyond(&self, container: &str, known: u64) -> u64 {
        let of = |all: &HashMap<String, u64>| all.get(container).copied().unwrap_or_default();
        let mut told = self.out_of_memory.subscribe();
        let told = told.wait_for(|all| of(all) > known).await;
        of(&told.expect("the sender lives as long as this value is borrowed"))
    }

    /// From now on events name this pid. To be called before the first process starts.
    pub(crate) fn set_pid(&self, pid: u32) {
        self.pid.store(pid, Ordering::Relaxed);
    }

    /// A container was made.
    pub(crate) fn created(&self, req: &CreateTaskRequest, pid: u32) {
        let io = TaskIO {
            stdin: req.stdin.clone(),
            stdout: req.stdout.clone(),
            stderr: req.stderr.clone(),
            terminal: req.terminal,
            ..TaskIO::default()
        };
        self.publisher.publish(&TaskCreate {
            container_id: req.id.clone(),
            bundle: req.bundle.clone(),
            rootfs: req.rootfs.clone(),
            io: Some(io).into(),
            checkpoint: req.checkpoint.clone(),
            pid,
            ..TaskCreate::default()
        });
    }

    /// A process was registered, to be started later.
    pub(crate) fn exec_added(&self, key: &ProcessKey) {
        self.publisher.publish(&TaskExecAdded {
            container_id: key.container.clone(),
            exec_id: key.exec.clone().unwrap_or_default(),
            ..TaskExecAdded::default()
        });
    }

    /// A process that had ended was deleted.
    pub(crate) fn deleted(&self, key: &ProcessKey, pid: u32, exit: Exit) {
        if key.exec.is_none() {
            self.out_of_memory.send_modify(|all| {
                all.remove(&key.container);
            });
            self.files().remove(&key.container);
        }
        self.publisher.publish(&TaskDelete {
            container_id: key.container.clone(),
            pid,
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)).into(),
            // Empty stands for the init.
            id: key.exec.clone().unwrap_or_default(),
            ..TaskDelete::default()
        });
    }

    /// A container was frozen.
    pub(crate) fn paused(&self, container: &str) {
        self.publisher
            .publish(&TaskPaused { container_id: container.to_owned(), ..TaskPaused::default() });
    }

    /// A container was thawed.
    pub(crate) fn resumed(&self, container: &str) {
        self.publisher
            .publish(&TaskResumed { container_id: container.to_owned(), ..TaskResumed::default() });
    }

    /// Resolves when containerd has got everything, at the latest after `deadline`.
    pub(crate) async fn flush(&self, deadline: Duration) {
        self.publisher.flush(deadline).await;
    }

    fn started(&self, process: ProcessKey) {
        let pid = self.pid.load(Ordering::Relaxed);
        let container_id = process.container;
        match process.exec {
            None => {
                self.publisher.publish(&TaskStart { container_id, pid, ..TaskStart::default() });
            }
            Some(exec_id) => {
                self.publisher.publish(&TaskExecStarted {
                    container_id,
                    exec_id,
                    pid,
                    ..TaskExecStarted::default()
                });
            }
        }
    }

    fn exited(&self, process: ProcessKey, exit: Exit) {
        self.publisher.publish(&TaskExit {
            // Docker tells an init by its id being the container's.
            id: process.exec.unwrap_or_else(|| process.container.clone()),
            container_id: process.container,
            pid: self.pid.load(Ordering::Relaxed),
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)).into(),
            ..TaskExit::default()
        });
    }
}

impl EventSink for TaskEvents {
    fn emit(&self, event: SandboxEvent) {
        match event {
            SandboxEvent::Started { process } => self.started(process),
            SandboxEvent::Exited { process, exit } => self.exited(process, exit),
            SandboxEvent::OutOfMemory { container } => {
                let file = self.files().get(&container).cloned();
                if let Some(file) = file
                    && let Err(errno) = make_file(&file)
                {
                    tracing::warn!("cannot write {}: {errno}", file.display());
                }
                self.out_of_memory
                    .send_modify(|all| *all.entry(container.clone()).or_default() += 1);
                self.publisher
                    .publish_repeatable(&TaskOOM { container_id: container, ..TaskOOM::default() });
            }
        }
    }
}

/// Makes an empty file, or finds one. No link is followed, and nobody waited for.
fn make_file(path: &Path) -> rustix::io::Result<()> {
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    open(path, flags | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran_out(events: &TaskEvents, container: &str) {
        events.emit(SandboxEvent::OutOfMemory { container: container.to_owned() });
    }

    #[tokio::test]
    async fn whoever_watches_is_told_each_time_and_of_its_own_container_only() {
        let events = TaskEvents::new(Publisher::start("default".to_owned(), None));
        let now =
            |known| tokio::time::timeout(Duration::ZERO, events.out_of_memory_beyond("one", known));
        ran_out(&events, "other");
        assert!(now(0).await.is_err());
        let (told, ()) = tokio::join!(events.out_of_memory_beyond("one", 0), async {
            tokio::task::yield_now().await;
            ran_out(&events, "one");
        });
        assert_eq!(told, 1);
        ran_out(&events, "one");
        assert_eq!(now(0).await, Ok(2));
        assert_eq!(now(1).await, Ok(2));
        assert!(now(2).await.is_err());
        let exit = Exit::killed();
        events.deleted(&ProcessKey::exec("one", "shell"), 7, exit);
        assert_eq!(now(0).await, Ok(2));
        events.deleted(&ProcessKey::init("one"), 7, exit);
        assert!(now(0).await.is_err());
    }
}
