//! Those who wait for an end: of the VM, of its agent, of a process; and what such an end brings
//! about.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use kata_agent_client::{AgentError, ProcessEnd};

use super::{SIGKILL, Shared, guest_id, room};
use crate::{Delivery, Exit, ProcessKey, SandboxError, SandboxEvent};
use crate::{boot, diagnosis};

/// The end of a process whose own cannot be learned; its status as containerd has it.
const UNKNOWN_END: ProcessEnd = ProcessEnd { status: 255, out_of_memory: false };

/// How long the VM's death may take to explain a broken connection. Less than those wait whose
/// requests it has cost.
const EXPLANATION: Duration = Duration::from_secs(1);

/// How often at most the engine is told that a container lacks memory: each time costs it a write
/// to its disk.
const OOM_PACE: Duration = Duration::from_secs(1);

/// How often at most the guest is asked for the next container that lacks memory.
const OOM_QUESTIONS: Duration = Duration::from_millis(100);

/// How often, and how long after one another, it is looked for a process that a guest may start too
/// late.
const LATE_TRIES: u32 = 10;
const LATE_PAUSE: Duration = Duration::from_secs(1);

/// How long a container may take to end that was killed.
const DYING: Duration = Duration::from_secs(60);

/// Notices the death of the VMM or of the file server, without either of which there is no sandbox.
pub(super) async fn watch_parts(shared: Arc<Shared>) {
    let reason = tokio::select! {
        biased;
        () = shared.until_gone() => return,
        exit = shared.vm.exited() => {
            let vm = shared.vm.as_ref();
            format!("{}; {}", diagnosis::cause(vm, &exit), diagnosis::last_words(vm))
        }
        // A guest whose file system is gone hangs at the next file that it touches, so it is not
        // asked either. But a server ends with its VM, too, and then the VM is the cause.
        _ = boot::end_of(shared.file_server.as_ref()) => {
            let cause = tokio::time::timeout(boot::GRACE, shared.vm.exited()).await;
            let of_vm = |exit| diagnosis::cause(shared.vm.as_ref(), &exit);
            cause.map_or_else(|_| "its file server ended".to_owned(), of_vm)
        }
    };
    tracing::error!("sandbox {}: {reason}", shared.id);
    shared.take_down(&reason, false).await;
}

/// Passes on what the guest's kernel killed for want of memory. There is always one such question
/// on its way, so this is also who notices a broken connection: a sandbox whose agent cannot be
/// asked any more is at its end, though its VM may live.
pub(super) async fn watch_agent(shared: Arc<Shared>) {
    let mut told = Paced::default();
    loop {
        let answer = tokio::select! {
            biased;
            answer = shared.agent.get_oom_event() => answer,
            () = shared.until_gone() => return,
        };
        match answer {
            Ok(container) => {
                if told.may_tell(&container, Instant::now()) {
                    ran_out_of_memory(&shared, &container);
                }
            }
            Err(AgentError::Disconnected { .. }) => break,
            Err(error) => tracing::debug!("sandbox {}: {error}", shared.id),
        }
        tokio::time::sleep(OOM_QUESTIONS).await;
    }
    if tokio::time::timeout(EXPLANATION, shared.until_gone()).await.is_err() {
        let reason = "the connection to its guest's agent broke";
        tracing::error!("sandbox {}: {reason}", shared.id);
        shared.take_down(reason, false).await;
    }
}

/// Tells that the guest's kernel has killed a process of the container for want of memory.
fn ran_out_of_memory(shared: &Shared, container: &str) {
    let is_news = shared.processes().ledger.ran_out_of_memory(container);
    if is_news {
        tracing::warn!(
            "container {container} ran out of memory: the guest's kernel has killed a process of it"
        );
        shared.events.emit(SandboxEvent::OutOfMemory { container: container.to_owned() });
    }
}

/// When each container was last told of.
#[derive(Debug, Default)]
struct Paced(HashMap<String, Instant>);

impl Paced {
    /// Whether it is time to tell of the container again, as will be done then.
    fn may_tell(&mut self, container: &str, now: Instant) -> bool {
        self.0.retain(|_, told| now.duration_since(*told) < OOM_PACE);
        let may = !self.0.contains_key(container);
        if may {
            self.0.insert(container.to_owned(), now);
        }
        may
    }
}

/// Follows one running process to its end, and its output to the last byte.
pub(super) async fn watch_process(shared: Arc<Shared>, key: ProcessKey) {
    let end = match shared.unless_gone(shared.agent.wait_process(&guest_id(&key))).await {
        Ok(end) => end,
        // The take-down tells the end of everything.
        Err(SandboxError::Gone { .. }) => return,
        Err(error) => {
            tracing::error!("the end of {key} cannot be learned, so it counts as failed: {error}");
            UNKNOWN_END
        }
    };
    let attached = {
        let mut processes = shared.processes();
        processes.note_end(&key);
        processes.attached(&key)
    };
    let delivery = match &attached {
        Some(stdio) => stdio.drained().await,
        None => Delivery::Whole,
    };
    // The event of its own may come later than the end, and whoever asks for the end asks for both.
    let is_news = end.out_of_memory
        && key.exec.is_none()
        && !shared.processes().ledger.is_out_of_memory(&key.container);
    if is_news {
        ran_out_of_memory(&shared, &key.container);
    }
    shared.exited(&key, Exit { status: end.status.into(), at: SystemTime::now() });
    if key.exec.is_none() {
        end_container(&shared, &key, delivery).await;
    }
}

/// A container whose init has ended: nothing of it may live on, and a VM that served only it has no
/// more work, unless somebody has not taken the last output yet: then the VM stays until the
/// container is deleted.
async fn end_container(shared: &Arc<Shared>, key: &ProcessKey, delivery: Delivery) {
    if shared.processes().ledger.has_live_execs(&key.container) {
        let killed = shared.unless_gone(shared.agent.signal_all(&key.container, SIGKILL)).await;
        if let Err(error) = killed {
            tracing::debug!("{key}: its remaining processes: {error}");
        }
        let init_exit = shared.processes().subscribe(key);
        if let Ok(mut exit) = init_exit {
            let _ = tokio::time::timeout(boot::GRACE, exit.wait_for(Option::is_some)).await;
        }
        let mut processes = shared.processes();
        let released = processes.ledger.kill_remaining(&key.container, Exit::killed());
        shared.publish(&mut processes, released);
    }
    if delivery == Delivery::Stalled {
        tracing::warn!("{key} has ended, and its output waits for a reader who takes nothing");
        return;
    }
    // Podman does not say so when it makes the first container of a pod.
    if shared.single_container && shared.processes().ledger.len() == 1 {
        return shared.take_down("its only container has ended", true).await;
    }
    // A pod's initializing containers are kept, ended, as long as the pod.
    shared.carrier.end_tasks(&key.container);
    room::leave(shared, &key.container).await;
}

/// Sees to it that a container ends that was killed. Its processes may wait for a disk or a file
/// server that hangs, or the guest may not tell; nobody is to wait for that for ever.
pub(super) async fn end_undying(shared: Arc<Shared>, key: ProcessKey) {
    let Ok(mut exit) = shared.processes().subscribe(&key) else { return };
    let ended = async { exit.wait_for(Option::is_some).await.map(drop) };
    // Its output may take longer.
    if tokio::time::timeout(DYING, ended).await.is_ok() || shared.processes().is_end_told(&key) {
        return;
    }
    let alone = shared.processes().ledger.len() == 1;
    if alone || shared.id == key.container {
        let reason = "a container was killed and did not end";
        tracing::error!("sandbox {}: {reason}", shared.id);
        return shared.take_down(reason, true).await;
    }
    tracing::error!("{key} was killed and has not ended; it counts as ended");
    {
        let mut processes = shared.processes();
        let mut released = processes.ledger.exited(&key, Exit::killed());
        released.extend(processes.ledger.kill_remaining(&key.container, Exit::killed()));
        shared.publish(&mut processes, released);
    }
    shared.carrier.end_tasks(&key.container);
    room::leave(&shared, &key.container).await;
}

/// Ends an exec that the guest may have started after nobody waited for that any more.
pub(super) async fn kill_late(shared: Arc<Shared>, key: ProcessKey) {
    let id = guest_id(&key);
    for _ in 0..LATE_TRIES {
        match shared.unless_gone(shared.agent.signal_process(&id, SIGKILL)).await {
            Ok(()) => {
                // Only what was waited for is forgotten by the guest.
                let _ = shared.unless_gone(shared.agent.wait_process(&id)).await;
                return;
            }
            Err(SandboxError::Gone { .. }) => return,
            // It is not there, or not there yet.
            Err(error) => tracing::debug!("{key}, which was started too late: {error}"),
        }
        tokio::time::sleep(LATE_PAUSE).await;
    }
}

/// Takes a container away that the guest may have made after nobody waited for that any more.
pub(super) async fn remove_late(shared: Arc<Shared>, container: String) {
    if let Err(error) = shared.unless_gone(shared.agent.remove_container(&container)).await {
        tracing::debug!("container {container}, which was made too late: {error}");
    }
    // If it was asked for: what was copied for it before was not. Unless there is another one.
    if shared.processes().subscribe(&ProcessKey::init(&container)).is_err() {
        shared.remove_copies(&container).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_container_is_told_of_once_a_second() {
        let mut told = Paced::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert!(told.may_tell("one", at(0)));
        assert!(!told.may_tell("one", at(999)));
        assert!(told.may_tell("other", at(999)));
        assert!(told.may_tell("one", at(1000)));
        assert!(!told.may_tell("one", at(1001)));
    }
}
